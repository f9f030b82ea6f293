"""What codecs refuse, from callers and from peers, and that a refusal changes nothing."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.errors import PeerError
from runnel.optim.codecs import codec_named
from tests.support.codecs import (
    BLOCKS,
    FLOAT_MAX,
    bits,
    decoded,
    every_codec,
    values_of,
)


@every_codec
@pytest.mark.parametrize("by", ["numba", "reference"])
def test_a_value_that_is_not_finite_is_named_and_nothing_is_lost(name: str, by: str) -> None:
    codec = codec_named(name, by=by)
    for bad, index in product((np.nan, np.inf, -np.inf), (0, 255, 256, 600, 699)):
        x = values_of(700)
        x[index] = bad
        held = x.copy()
        with pytest.raises(ValueError, match=rf"value {index} is {bad}"):
            codec.encode(held, held)
        assert np.array_equal(held, x, equal_nan=True)
        with pytest.raises(ValueError, match=rf"value {index} is {bad}"):
            codec.encode(x)


@every_codec
@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 513])
def test_a_payload_of_another_length_is_refused(name: str, size: int) -> None:
    codec = codec_named(name)
    payload = codec.encode(values_of(size))
    for wrong in (payload + b"\0", payload[:-1], b"") if payload else (b"\0",):
        out = np.ones(size, np.float32)
        with pytest.raises(PeerError, match="malformed") as caught:
            codec.decode(wrong, out)
        assert caught.value.reason == "malformed"
        with pytest.raises(PeerError, match="malformed"):
            codec.accumulate(wrong, 1.0, out)
        assert np.all(out == 1)


@every_codec
@given(payload=st.binary(min_size=1, max_size=300), size=st.integers(0, 300))
@settings(max_examples=80, deadline=None)
def test_any_bytes_are_refused_or_decode_to_finite_values(
    name: str, payload: bytes, size: int
) -> None:
    fast, slow = codec_named(name, by="numba"), codec_named(name, by="reference")
    payload = (payload * (fast.max_bytes(size) // len(payload) + 1))[: fast.max_bytes(size)]
    out, other = np.ones(size, np.float32), np.ones(size, np.float32)
    try:
        fast.decode(payload, out)
    except PeerError:
        assert np.all(out == 1)
        with pytest.raises(PeerError):
            slow.decode(payload, other)
        return
    slow.decode(payload, other)
    assert np.isfinite(out).all()
    assert bits(out) == bits(other)


@every_codec
@given(seed=st.integers(0, 1000), position=st.integers(0, 10**6), flip=st.integers(1, 255))
@settings(max_examples=80, deadline=None)
def test_a_corrupted_byte_is_refused_or_decodes_to_finite_values(
    name: str, seed: int, position: int, flip: int
) -> None:
    codec = codec_named(name)
    x = values_of(301, seed, scale=1e37 if seed % 2 else 1.0)
    payload = bytearray(codec.encode(x))
    payload[position % len(payload)] ^= flip
    out = np.ones(301, np.float32)
    try:
        codec.decode(payload, out)
    except PeerError:
        assert np.all(out == 1)
    else:
        assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("int8", 0x7F80),
        ("int8", 0x7FC0),
        ("int8", 0x7C02),
        ("int8", 0xBF80),
        ("int8", 0x07FF),
        ("int4", 0x7E13),
        ("int4", 0x7F80),
        ("int4", 0),
        ("e3m0", 255),
        ("e3m0", 7),
        ("two-bit", 0x7F80),
        ("two-bit", 0x7FC0),
        ("two-bit", 0x07FF),
        ("sign", 0x7F80),
        ("sign", 0xFFC0),
        ("sign", 0),
    ],
)
def test_scales_that_no_encoder_writes_are_refused(name: str, scale: int) -> None:
    codec, layout = codec_named(name), BLOCKS[name]
    payload = bytearray(codec.encode(values_of(2 * layout.block)))
    payload[layout.scale_bytes : 2 * layout.scale_bytes] = scale.to_bytes(
        layout.scale_bytes, "little"
    )
    with pytest.raises(PeerError, match=f"{name}: scales"):
        decoded(codec, bytes(payload), 2 * layout.block)


@pytest.mark.parametrize(("name", "limit"), [("int8", 0x7C01), ("int4", 0x7E12)])
def test_the_largest_scale_is_the_last_one_whose_top_code_is_finite(name: str, limit: int) -> None:
    steps = 127.0 if name == "int8" else 7.0
    for scale, finite in ((limit, True), (limit + 1, False)):
        wide = np.array([scale << 16], np.uint32).view(np.float32).astype(np.float64)[0]
        assert (wide * steps <= FLOAT_MAX) == finite
    assert BLOCKS[name].largest_scale == limit
    x = np.full(3, FLOAT_MAX, np.float32)
    back = decoded(codec_named(name), codec_named(name).encode(x), 3)
    assert np.all(back > 0.99 * FLOAT_MAX)


@pytest.mark.parametrize(
    ("name", "code"), [("int8", 0x80), ("int4", 0x08), ("int4", 0x80), ("e3m0", 0x28)]
)
@pytest.mark.parametrize("by", ["numba", "reference"])
def test_codes_that_no_encoder_writes_are_refused(name: str, code: int, by: str) -> None:
    codec = codec_named(name, by=by)
    payload = bytearray(codec.encode(values_of(300)))
    payload[-20] = code
    with pytest.raises(PeerError, match="a code that no encoder writes"):
        decoded(codec, bytes(payload), 300)


@pytest.mark.parametrize("half", [0x7F80, 0xFF80, 0x7FC0, 0x0001, 0x807F, 0x8000])
@pytest.mark.parametrize("by", ["numba", "reference"])
def test_halves_that_no_encoder_of_bf16_writes_are_refused(half: int, by: str) -> None:
    codec = codec_named("bf16", by=by)
    payload = bytearray(codec.encode(values_of(9)))
    payload[4:6] = half.to_bytes(2, "little")
    with pytest.raises(PeerError, match="bf16: a value that no encoder writes"):
        decoded(codec, bytes(payload), 9)


@pytest.mark.parametrize(
    ("name", "size", "stray"),
    [
        ("int4", 3, {-1: 0xF0}),
        ("e3m0", 3, {-1: 0xF0}),
        ("two-bit", 5, {-2: 0xC0, -1: 0xF0}),
        ("two-bit", 513, {-1: 0xFC}),
        ("sign", 3, {-1: 0xF8}),
        ("sign", 9, {-2: 0xE0, -1: 0xF0}),
    ],
)
def test_bits_that_belong_to_no_value_must_be_zero(
    name: str, size: int, stray: dict[int, int]
) -> None:
    codec = codec_named(name)
    payload = codec.encode(-np.ones(size, np.float32))
    for place, mask in stray.items():
        assert payload[place] & mask == 0
        for bit in (1 << i for i in range(8) if mask >> i & 1):
            wrong = bytearray(payload)
            wrong[place] |= bit
            with pytest.raises(PeerError, match="a code that no encoder writes"):
                decoded(codec, bytes(wrong), size)


@every_codec
@pytest.mark.parametrize(
    "array",
    [np.zeros(8, np.float64), np.zeros((2, 4), np.float32), np.zeros(16, np.float32)[::2]],
    ids=["float64", "two-dimensional", "strided"],
)
def test_arrays_that_are_not_float32_vectors_are_refused(name: str, array: Any) -> None:
    codec = codec_named(name)
    with pytest.raises(ValueError, match="float32"):
        codec.encode(array)
    with pytest.raises(ValueError, match="float32"):
        codec.decode(b"", array)
    with pytest.raises(ValueError, match="7 values, expected 8"):
        codec.encode(np.zeros(8, np.float32), np.zeros(7, np.float32))


@every_codec
@pytest.mark.parametrize("scale", [np.nan, np.inf, 1e39])
def test_a_scale_beyond_float32_is_refused(name: str, scale: float) -> None:
    out = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="scale is"):
        codec_named(name).accumulate(codec_named(name).encode(out), scale, out)
