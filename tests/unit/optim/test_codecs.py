"""Codecs: what comes back, and that bytes and bits are the same for both implementations and for all time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.errors import BugError, ConfigError, PeerError
from runnel.hashing import digest
from runnel.kernels import Float32
from runnel.optim.codec_plain import HalfCodec
from runnel.optim.codecs import CODECS, codec_named, planned_bytes
from runnel.optim.parts import PART, parts_of
from tests.support.codecs import BLOCKS, FLOAT_MAX, bits, decoded, every_codec, mixed, values_of


def test_a_codec_goes_by_the_name_that_it_was_asked_for() -> None:
    for name in (*CODECS, "top-k:7", "top-k:4096", "random-k:7", "count-sketch:4096"):
        assert codec_named(name).name == name
    assert codec_named("top-k:64").name == "top-k"


def test_an_unknown_codec_is_a_config_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'int5'.*fp32, fp16, bf16, int8, int4, e3m0, two-bit"):
        codec_named("int5")


@every_codec
def test_both_implementations_give_the_same_bytes_and_bits_at_every_kind_of_length(
    name: str,
) -> None:
    fast, slow = codec_named(name, by="numba"), codec_named(name, by="reference")
    everything = mixed(301)
    for size in (*range(140), *range(140, 301, 7), *range(255, 260)):
        x = everything[:size].copy()
        left_fast, left_slow = np.empty_like(x), np.empty_like(x)
        payload = fast.encode(x, left_fast)
        assert payload == slow.encode(x, left_slow)
        assert len(payload) == planned_bytes(name, size) <= fast.max_bytes(size)
        assert payload == fast.encode(x)
        assert bits(left_fast) == bits(left_slow)
        assert bits(decoded(fast, payload, size)) == bits(decoded(slow, payload, size))


@every_codec
def test_both_implementations_accumulate_the_same_bits(name: str) -> None:
    fast, slow = codec_named(name, by="numba"), codec_named(name, by="reference")
    x = np.clip(mixed(20_011), -1e30, 1e30).astype(np.float32)
    payload = fast.encode(x)
    start = values_of(x.size, seed=9)
    for scale in (1.0, 1 / 3, -0.7, 1e-20, 0.0):
        a, b = start.copy(), start.copy()
        fast.accumulate(payload, scale, a)
        slow.accumulate(payload, scale, b)
        plain = start + np.float32(scale) * decoded(slow, payload, x.size)
        assert bits(a) == bits(b) == bits(plain)


@every_codec
@pytest.mark.parametrize("size", [1, 255, 256, 700])
def test_the_residual_may_take_the_place_of_the_values(name: str, size: int) -> None:
    codec = codec_named(name)
    x = mixed(size)
    left, in_place = np.empty_like(x), x.copy()
    assert codec.encode(x, left) == codec.encode(in_place, in_place)
    assert bits(left) == bits(in_place)


@every_codec
def test_the_residual_is_what_decoding_leaves_bit_for_bit(name: str) -> None:
    codec = codec_named(name)
    x = mixed(4_999)
    left = np.empty_like(x)
    back = decoded(codec, codec.encode(x, left), x.size)
    assert bits(left) == bits(x - back)
    if name in {"fp32", "bf16", "int8", "int4", "e3m0"}:
        assert np.array_equal(left + back, x)
    elif name == "fp16":
        assert np.array_equal((left + back)[np.abs(x) <= 65504], x[np.abs(x) <= 65504])
    else:  # what is sent may be much larger than the value, so that the difference is rounded
        rounding = np.maximum(np.abs(x), np.abs(back)) * np.float32(2**-23)
        assert np.all(np.abs(left.astype(np.float64) + back - x) <= rounding)
        assert np.array_equal(left[back == 0], x[back == 0])


@every_codec
@pytest.mark.parametrize("size", [0, 1, 700, PART + 4099])
def test_of_a_pair_of_parts_the_sum_is_encoded(name: str, size: int) -> None:
    codec, x, e = codec_named(name), mixed(size), np.flip(mixed(size)) * np.float32(0.25)
    room = memoryview(bytearray(codec.max_bytes(size)))
    left = np.empty_like(x)
    payload = codec.encode(x * np.float32(0.25) + e, left)
    kept = e.copy()
    fed = x * np.float32(0.25)
    assert codec.encode_parts(((fed[p], e[p]) for p in parts_of(0, size)), size, room) == payload
    assert np.array_equal(fed, left)
    assert bits(e) == bits(kept)


@every_codec
def test_a_sum_that_is_not_finite_is_named_by_its_place(name: str) -> None:
    codec, first = codec_named(name), np.zeros(PART + 900, np.float32)
    second = np.zeros_like(first)
    first[PART + 700] = second[PART + 700] = FLOAT_MAX
    room = memoryview(bytearray(codec.max_bytes(first.size)))
    pairs = ((first[p], second[p]) for p in parts_of(0, first.size))
    with pytest.raises(ValueError, match=rf"value {PART + 700} is inf"):
        codec.encode_parts(pairs, first.size, room)


@every_codec
def test_what_is_added_to_a_part_must_be_of_its_size(name: str) -> None:
    codec = codec_named(name)
    room = memoryview(bytearray(codec.max_bytes(512)))
    with pytest.raises(ValueError, match="511 values, expected 512"):
        codec.encode_parts([(np.zeros(512, np.float32), np.zeros(511, np.float32))], 512, room)


@every_codec
@pytest.mark.parametrize("size", [0, 1, 700, PART, PART + 3, 2 * PART + 300])
def test_parts_are_encoded_and_decoded_as_the_whole_is(name: str, size: int) -> None:
    codec, x = codec_named(name), mixed(size)
    left, in_parts = np.empty_like(x), np.full_like(x, np.nan)
    losses = []

    def parts() -> Iterator[Float32]:
        for part in parts_of(0, size):
            in_parts[part] = x[part]
            yield in_parts[part]
            losses.append(in_parts[part].copy())

    payload = codec.encode(x, left)
    room = memoryview(bytearray(codec.max_bytes(size) + 7))
    assert codec.encode_parts(parts(), size, room) == payload
    assert bits(in_parts) == bits(left)
    assert b"".join(map(bits, losses)) == bits(left)
    back = [part.copy() for part in codec.decode_parts(payload, size)]
    assert [part.size for part in back] == [p.stop - p.start for p in parts_of(0, size)]
    assert b"".join(map(bits, back)) == bits(decoded(codec, payload, size))


@every_codec
def test_parts_that_do_not_make_the_whole_are_a_mistake_of_ours(name: str) -> None:
    codec, zeros = codec_named(name), np.zeros(512, np.float32)
    room = memoryview(bytearray(codec.max_bytes(1024)))
    for count, numel in ((1, 511), (1, 513), (2, 1024)):
        with pytest.raises(BugError, match=r"parts? of 512 values"):
            codec.encode_parts([zeros.copy() for _ in range(count)], numel, room)


@every_codec
def test_a_payload_needs_room_that_is_long_enough_and_aligned(name: str) -> None:
    codec, zeros = codec_named(name), np.zeros(512, np.float32)
    size = codec.max_bytes(512)
    for room in (memoryview(bytearray(size - 1)), memoryview(bytearray(size + 1))[1:]):
        with pytest.raises(BugError, match="for a payload of"):
            codec.encode_parts([zeros], 512, room)


@every_codec
def test_a_value_that_is_not_finite_is_named_by_its_place_among_all_parts(name: str) -> None:
    codec, whole = codec_named(name), np.zeros(2 * PART, np.float32)
    room = memoryview(bytearray(codec.max_bytes(whole.size)))
    whole[PART + 700] = np.inf
    with pytest.raises(ValueError, match=rf"value {PART + 700} is inf"):
        codec.encode_parts([whole[part] for part in parts_of(0, whole.size)], whole.size, room)


@every_codec
@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=300),
    scale=st.floats(min_value=-1, max_value=1, width=32),
)
@settings(max_examples=60, deadline=None)
def test_any_finite_values_decode_to_finite_ones_alike_in_both_implementations(
    name: str, numbers: list[float], scale: float
) -> None:
    fast, slow = codec_named(name, by="numba"), codec_named(name, by="reference")
    x = np.array(numbers, np.float32)
    left = np.empty_like(x)
    payload = fast.encode(x, left)
    assert payload == slow.encode(x)
    back = decoded(fast, payload, x.size)
    assert np.isfinite(back).all()
    assert bits(back) == bits(decoded(slow, payload, x.size))
    assert bits(left) == bits(x - back)
    out = np.ones_like(x)
    fast.accumulate(payload, scale, out)
    assert bits(out) == bits(np.float32(1) + np.float32(scale) * back)


@every_codec
@pytest.mark.parametrize("number", [0.0, -0.0, 1.0, -3.7, 1e-42, 1e-30, 6e4])
def test_a_constant_comes_back_within_the_codecs_step(name: str, number: float) -> None:
    codec = codec_named(name)
    x = np.full(389, number, np.float32)
    back = decoded(codec, codec.encode(x), x.size)
    tolerance = {
        "fp32": 0,
        "fp16": 2**-11,
        "bf16": 2**-8,
        "int8": 1 / 127,
        "int4": 1 / 7,
        "e3m0": 1 / 3,
        "two-bit": 2**-8,
        "sign": 2**-8,
    }.get(name, 1)
    floor = {"fp32": 0.0, "fp16": 2.0**-25}.get(name, 2.0**-111)
    if name.startswith("count-sketch"):  # which tells of all values together, and little of each
        assert np.linalg.norm(back - x) <= np.linalg.norm(x) + floor
        return
    assert np.all(np.abs(back - x) <= tolerance * np.abs(x) + np.float32(floor))


@pytest.mark.parametrize(("name", "steps"), [("int8", 127), ("int4", 7)])
def test_absmax_codecs_err_by_half_a_step_at_most(name: str, steps: int) -> None:
    codec, block = codec_named(name), BLOCKS[name].block
    x = values_of(64 * block, seed=5)
    left = np.empty_like(x)
    codec.encode(x, left)
    largest = np.abs(x.reshape(-1, block)).max(axis=1, keepdims=True)
    assert np.all(np.abs(left.reshape(-1, block)) <= largest / steps * (0.5 + 1 / 128))


def test_e3m0_errs_by_a_third_of_the_value_or_by_less_than_the_smallest_power() -> None:
    x = values_of(64 * 128, seed=5)
    left = np.empty_like(x)
    codec_named("e3m0").encode(x, left)
    largest = np.abs(x.reshape(-1, 128)).max(axis=1, keepdims=True)
    bound = np.maximum(np.abs(x.reshape(-1, 128)) / 3, largest * 2.0**-6)
    assert np.all(np.abs(left.reshape(-1, 128)) <= bound)


def test_absmax_scales_have_eight_significant_bits_so_products_are_exact() -> None:
    x = mixed(6_400)
    for name in ("int8", "int4"):
        layout, payload = BLOCKS[name], codec_named(name).encode(x)
        scales, _ = layout.split(np.frombuffer(payload, np.uint8), x.size)
        wide = (scales.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        codes = np.arange(-127, 128, dtype=np.float64)[:, None]
        product = codes * wide if name == "int8" else codes[120:135] * wide
        assert np.array_equal(product, product.astype(np.float32).astype(np.float64))


def test_e3m0_encodes_what_it_decoded_to_the_same_bytes() -> None:
    codec = codec_named("e3m0")
    payload = codec.encode(mixed(2_222))
    assert codec.encode(decoded(codec, payload, 2_222)) == payload


@pytest.mark.parametrize(("name", "steps"), [("int8", 127), ("int4", 7)])
def test_absmax_codecs_encode_what_they_decoded_to_the_same_bytes_if_the_top_code_is_used(
    name: str, steps: int
) -> None:
    codec, layout = codec_named(name), BLOCKS[name]
    x = np.round(values_of(8 * layout.block, seed=2, scale=steps - 1)) * np.float32(0.0078125)
    x[:: layout.block] = np.float32(steps * 0.0078125)
    payload = codec.encode(x)
    assert np.array_equal(decoded(codec, payload, x.size), x)
    assert codec.encode(decoded(codec, payload, x.size)) == payload


def test_fp16_rounds_to_even_and_clamps_instead_of_overflowing() -> None:
    x = np.array(
        [
            65504,
            65519.99,
            65520,
            1e38,
            -FLOAT_MAX,
            2049,
            2051,
            2**-25,
            3 * 2**-25,
            -(2**-24),
            1e-40,
        ],
        np.float32,
    )
    back = decoded(HalfCodec(), HalfCodec().encode(x), x.size)
    expected = [65504, 65504, 65504, 65504, -65504, 2048, 2052, 0, 2**-23, -(2**-24), 0]
    assert back.tolist() == expected


def test_fp16_agrees_with_numpy_on_every_half_and_the_floats_around_it() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[(halves & 0x7C00) != 0x7C00]
    exact = halves.view(np.float16).astype(np.float32)
    codec = HalfCodec(by="numba")
    assert codec.encode(exact) == halves.tobytes()
    assert bits(decoded(codec, halves.tobytes(), exact.size)) == bits(exact)
    between = np.concatenate([(exact[1:] + exact[:-1]) / np.float32(2), exact * np.float32(1.0003)])
    between = np.concatenate([between, np.nextafter(between, np.float32(0))])
    assert codec.encode(between) == HalfCodec(by="reference").encode(between)


@pytest.mark.parametrize("by", ["numba", "reference"])
def test_bf16_rounds_to_even_clamps_and_knows_no_subnormal_number(by: str) -> None:
    codec = HalfCodec("bf16", by=by)
    x = np.array([1, 257, 259, -257.01, 1e38, FLOAT_MAX, -FLOAT_MAX, 2**-126], np.float32)
    x = np.append(x, np.array([1e-38, -1e-40, -0.0], np.float32))
    left = np.empty_like(x)
    payload = codec.encode(x, left)
    largest = float(np.array([0x7F7F0000], np.uint32).view(np.float32)[0])
    back = decoded(codec, payload, x.size)
    assert back[[0, 1, 2, 3]].tolist() == [1, 256, 260, -258]
    assert back[4] == float(torch.tensor(1e38).to(torch.bfloat16))
    assert back[5:].tolist() == [largest, -largest, 2.0**-126, 0, 0, 0]
    assert payload[-6:] == bytes(6)  # +0
    assert np.array_equal(left + back, x)
    normal = mixed(20_000)
    normal = normal[(np.abs(normal) >= 2.0**-126) & (np.abs(normal) <= largest)]
    wanted = torch.from_numpy(normal).to(torch.bfloat16).to(torch.float32).numpy()
    assert bits(decoded(codec, codec.encode(normal), normal.size)) == bits(wanted)


def test_nibbles_lie_where_the_format_says() -> None:
    x = np.array([7, -6, 5, -4, 3], np.float32)
    payload = codec_named("int4").encode(x)
    assert payload == bytes.fromhex("803f") + bytes([0xC7, 0x3A, 0x05])
    x = np.array([64, -32, 1, 0.7, 0.0], np.float32)
    payload = codec_named("e3m0").encode(x)
    assert payload == bytes([127 + 6, 0x07, 0x0E, 0x01])


@every_codec
def test_a_payload_may_lie_at_an_odd_address_of_a_larger_buffer(name: str) -> None:
    codec = codec_named(name)
    x = values_of(777)
    payload = codec.encode(x)
    framed = bytearray(b"x" + payload + b"y")
    out = np.empty(777, np.float32)
    codec.decode(memoryview(framed)[1:-1], out)
    assert bits(out) == bits(decoded(codec, payload, 777))
    total = np.zeros(777, np.float32)
    codec.accumulate(memoryview(framed)[1:-1].toreadonly(), 1.0, total)
    assert np.array_equal(total, out)


@every_codec
def test_threads_that_flush_subnormal_numbers_write_the_same_payload(name: str) -> None:
    codec, x = codec_named(name), mixed(5_000)
    payload = codec.encode(x)
    plain = decoded(codec, payload, x.size)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        flushed = codec.encode(x)
        back = decoded(codec, payload, x.size)
    finally:
        torch.set_flush_denormal(False)
    assert flushed == payload
    assert bits(back) == bits(plain)


@every_codec
def test_the_norm_of_a_payload_is_that_of_its_values_in_both_implementations(name: str) -> None:
    fast, slow = codec_named(name, by="numba"), codec_named(name, by="reference")
    everything = np.clip(mixed(5_001), -1e30, 1e30).astype(np.float32)
    for size in (0, 1, 2, 127, 128, 129, 255, 256, 257, 5_001):
        payload = fast.encode(everything[:size])
        exact = np.linalg.norm(decoded(fast, payload, size).astype(np.float64))
        assert fast.norm(payload, size) == slow.norm(payload, size)
        assert fast.norm(payload, size) == pytest.approx(exact, rel=1e-12)


@every_codec
def test_a_payload_of_another_size_has_no_norm(name: str) -> None:
    codec = codec_named(name)
    with pytest.raises(PeerError, match="expected"):
        codec.norm(codec.encode(values_of(777)), 9_999)


GOLDEN = {
    "fp32": ("415437001a4eb51dc8fb1dc69167b4f5", "9ffaf1e384e2c0f223b0ab39bcce2a26"),
    "fp16": ("275d0aa1c47ceee0cfeb328bc023f4af", "6b11190c2fba72c1c0fe61f9a01b615e"),
    "int8": ("4b25cee840c7efb03612196a96a33e89", "a8e1cd1ddc19773b3cb2f7d0286763a5"),
    "int4": ("8056e5678bda0e7daad855c99b778325", "21d74b6ef84b0ff5b7411c89d493ddd2"),
    "e3m0": ("bdcf22a9abe41557219da31fc59f68ad", "6bcb754100f15aa7b6f5ec54329613a3"),
    "two-bit": ("b468d2c461a9a882749fb15e443b0b2d", "60953414d9ee6a15031f085512faa608"),
    "sign": ("a2ee678b48c93be24dcaa64ec7678363", "4a5774a5902d96c807d1ac74e875d6e5"),
    "top-k": ("eeee2c72ccf2354aa40a976519e5280f", "bff5e22f466ea8d05aee398f9dde0cfa"),
    "bf16": ("228138d3922e357fbd19598c755bdb2b", "d044e8f5a39f332e9f610e4f895eeb45"),
    "random-k": ("f69acffa0ae1db2afd3d89a640a31989", "7d849ac6eeb9ace62113474b1ceed5bd"),
    "random-k:7": ("a3a2afa0bc3acd1a5b350fddb2323500", "4e9538a26f76cb4a1ced02618f1cd9b6"),
    "hadamard+int4": ("32294b7735d8238ec48aa27d4c90d9b5", "222a57bcffc60621572b99fcfabb2394"),
    "l-greco+e3m0": ("f5c34f4fdea57a5aa8e1c5b5ca3275ce", "6bcb754100f15aa7b6f5ec54329613a3"),
    "count-sketch": ("d2e322525a6fdf0c88feeeededd1e0d4", "4832149917b0ebddf6f45aa5a02f32c3"),
    "count-sketch:6": ("e60333f2557b0a1d42d62163e61fa9f3", "c7134bc5cd8e1cdb14cc4d5b2d475048"),
    "top-k:7": ("41b1f90f2a33f85ee4bdbf911ba6eada", "a03e551ebe84711b6778c620a747a2a9"),
}
"""blake3 of the payload, and of a vector after accumulating a third of it."""


@every_codec
@pytest.mark.parametrize("by", ["numba", "reference"])
def test_payloads_never_change(name: str, by: str) -> None:
    codec = codec_named(name, by=by)
    x = values_of(10_007, seed=1, scale=1e-3)
    payload = codec.encode(x)
    total = values_of(10_007, seed=2)
    codec.accumulate(payload, 1 / 3, total)
    assert (digest(payload).hex()[:32], digest(bits(total)).hex()[:32]) == GOLDEN[name]
