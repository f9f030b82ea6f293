from __future__ import annotations

import math
import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.dht.wire import MAX_DEPTH, MAX_VALUES, pack, unpack
from runnel.errors import PeerError

LARGE = 1 << 24

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5), max_leaves=30).filter(
    lambda value: depth(value) <= MAX_DEPTH
)


def depth(value: Any) -> int:
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def same(a: Any, b: Any) -> bool:
    """Equality that tells 1 from 1.0 and True, and 0.0 from -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    return bool(a == b)


def refused(data: bytes, max_bytes: int = LARGE) -> str:
    with pytest.raises(PeerError) as caught:
        unpack(data, max_bytes=max_bytes)
    assert caught.value.reason == "malformed"
    return str(caught.value)


def recoded(data: bytes) -> bytes | str:
    """What `data` decodes to, encoded again; or why it does not decode."""
    try:
        return pack(unpack(data, max_bytes=LARGE))
    except PeerError as error:
        return error.reason


@given(values)
def test_every_value_comes_back_with_its_types(value: Any) -> None:
    data = pack(value)
    assert same(unpack(data, max_bytes=len(data)), value)
    assert same(unpack(bytearray(data), max_bytes=len(data)), value)
    assert same(unpack(memoryview(data), max_bytes=len(data)), value)


@given(st.binary(max_size=60))
def test_whatever_decodes_encodes_to_the_same_bytes(data: bytes) -> None:
    assert recoded(data) in {data, "malformed"}


@given(values, st.data())
def test_every_proper_prefix_is_refused(value: Any, data: st.DataObject) -> None:
    encoded = pack(value)
    assert "cut" in refused(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(values, st.binary(min_size=1, max_size=5))
def test_bytes_after_the_message_are_refused(value: Any, more: bytes) -> None:
    assert f"{len(more)} bytes after the message" in refused(pack(value) + more)


@given(values, st.data())
def test_a_changed_byte_never_gives_the_same_value(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(pack(value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        decoded = unpack(encoded, max_bytes=LARGE)
    except PeerError:
        return
    assert not same(decoded, value)


@pytest.mark.parametrize(
    "data",
    [
        b"\xcc\x05",  # 5 in two bytes
        b"\xcd\x00\xff",
        b"\xd0\x05",
        b"\xd1\xff\xff",
        b"\xd3" + bytes(8),
        b"\xd9\x01a",  # text of one byte with a length of its own
        b"\xda\x00\x01a",
        b"\xc5\x00\x01a",
        b"\xdc\x00\x01\x01",  # a list of one with a length of its own
        b"\xdd\x00\x00\x00\x01\x01",
    ],
)
def test_longer_forms_of_a_value_are_refused(data: bytes) -> None:
    assert msgpack.unpackb(data) is not None, "msgpack itself takes it"
    assert "shortest" in refused(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",  # maps
        b"\xde\x00\x00",
        b"\xdf\x00\x00\x00\x00",
        b"\xc1",  # never used
        b"\xca\x3f\x80\x00\x00",  # 32-bit float
        b"\xd4\x01a",  # extensions
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc7\x00\x01",
    ],
)
def test_types_that_messages_do_not_have_are_refused(data: bytes) -> None:
    assert "starts no value" in refused(data)


def test_text_that_is_not_unicode_is_refused() -> None:
    refused(b"\xa1\xff")
    refused(b"\xa3\xed\xa0\x80")  # a lone surrogate
    with pytest.raises(ValueError, match="surrogates"):
        pack("\ud800")


def test_not_a_number_is_refused_both_ways_and_infinities_are_not() -> None:
    refused(b"\xcb" + struct.pack(">d", math.nan))
    refused(b"\xcb\xff\xf0\x00\x00\x00\x00\x00\x01")
    with pytest.raises(ValueError, match="NaN"):
        pack([1.0, [math.nan]])
    assert unpack(pack([math.inf, -math.inf]), max_bytes=100) == [math.inf, -math.inf]


def test_lists_nest_eight_deep_and_no_deeper() -> None:
    assert unpack(pack(nested(MAX_DEPTH)), max_bytes=100) == nested(MAX_DEPTH)
    with pytest.raises(ValueError, match="deeper"):
        pack(nested(MAX_DEPTH + 1))
    assert "deeper" in refused(b"\x91" * MAX_DEPTH + b"\x90")
    assert "deeper" in refused(b"\x91" * 100_000 + b"\x90")


def test_the_cap_counts_bytes() -> None:
    data = pack(b"12345")
    assert unpack(data, max_bytes=len(data)) == b"12345"
    assert "at most 6" in refused(data, max_bytes=len(data) - 1)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff" * 8,
        b"\xdc\xff\xff" * 8 + b"\xc0" * 70_000,
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff" + bytes(1000),
        b"\xdd\x00\x10\x00\x00" * 8 + b"\xc0" * (1 << 20),
    ],
)
def test_announced_lengths_take_no_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        refused(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(data) + 50_000


def test_the_number_of_values_is_bounded_both_ways() -> None:
    most = [None] * (MAX_VALUES - 1)
    assert unpack(pack(most), max_bytes=LARGE) == most
    with pytest.raises(ValueError, match="more than"):
        pack([*most, None])
    assert "more than" in refused(msgpack.packb([*most, None]))


@pytest.mark.parametrize("value", [{}, {"a": 1}, object(), 1j, {1}, range(2), [[{}]]])
def test_other_types_are_not_packed(value: Any) -> None:
    with pytest.raises(TypeError, match="no place"):
        pack(value)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, [2**70]])
def test_integers_beyond_64_bits_are_not_packed(value: Any) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        pack(value)


def test_tuples_and_bytearrays_pack_as_lists_and_bytes() -> None:
    assert pack((1, (2, bytearray(b"x")))) == pack([1, [2, b"x"]])


def test_known_bytes_never_change() -> None:
    value = [1, -1, 300, 2**64 - 1, 1.5, "é", b"\x00", None, True, False, [[]], -(2**63)]
    assert pack(value).hex() == (
        "9c01ffcd012ccfffffffffffffffffcb3ff8000000000000a2c3a9c40100c0c3c29190d38000000000000000"
    )


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from([0x90, 0x91, 0x92, 0xC0, 0xC4, 0xCB, 0xD9, 0xDC, 0x01]), max_size=40)
)
def test_structured_noise_is_decoded_or_refused(noise: list[int]) -> None:
    data = bytes(noise)
    assert recoded(data) in {data, "malformed"}
