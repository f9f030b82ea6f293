"""Codecs of one and two bits and of the largest values only: what is sent, and what of it is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.errors import ConfigError, PeerError
from runnel.kernels import Float32, words_of
from runnel.kernels.random_k_reference import drawn, permuted
from runnel.optim.codec_random_k import RandomKCodec
from runnel.optim.codec_sparse import CHUNK
from runnel.optim.codecs import codec_named
from tests.support.codecs import bits, decoded, mixed, values_of

few_bits = pytest.mark.parametrize(
    "name", ["two-bit", "sign", "top-k", "top-k:7", "top-k:700", "random-k:9"]
)
both = pytest.mark.parametrize("by", ["numba", "reference"])
NUMBERS = np.array([0, -0.0, 1e-45, -1e-40, 2**-113, 2**-111, 1, -1, 3, 1e30, -3.4e38], np.float32)


def scale(bf16: int) -> bytes:
    return bf16.to_bytes(2, "little")


@few_bits
@pytest.mark.parametrize("size", [511, 512, 513, 1000, 4095, 4096, 4097, 6000, 12_289])
def test_both_implementations_agree_where_blocks_end(name: str, size: int) -> None:
    fast, slow = codec_named(name, by="numba"), codec_named(name, by="reference")
    x = mixed(size)
    left, other = np.empty_like(x), np.empty_like(x)
    payload = fast.encode(x, left)
    assert payload == slow.encode(x, other)
    assert len(payload) == fast.max_bytes(size)
    assert bits(left) == bits(other)
    assert bits(decoded(fast, payload, size)) == bits(decoded(slow, payload, size))
    assert fast.norm(payload, size) == slow.norm(payload, size)


@few_bits
@given(
    picks=st.lists(st.integers(0, len(NUMBERS) - 1), min_size=1, max_size=40),
    size=st.integers(1, 5_000),
    turn=st.integers(0, 5_000),
)
@settings(max_examples=60, deadline=None)
def test_repeated_numbers_of_all_sizes_are_encoded_alike_and_decoded_to_finite_ones(
    name: str, picks: list[int], size: int, turn: int
) -> None:
    fast, slow = codec_named(name, by="numba"), codec_named(name, by="reference")
    x = np.roll(np.resize(NUMBERS[picks], size), turn)
    payload, left = fast.encode(x), np.empty_like(x)
    assert payload == slow.encode(x, left)
    back = decoded(fast, payload, size)
    assert np.isfinite(back).all()
    assert bits(left) == bits(x - back)


@both
def test_two_bits_lie_where_the_format_says(by: str) -> None:
    x = np.array([1, -1, 8, -8, 1, 1], np.float32)  # mean 20 / 6, so that from 5 on they are large
    payload = codec_named("two-bit", by=by).encode(x)
    assert payload == scale(0x3F80) + scale(0x4100) + bytes([0b00_00_01_00, 0b00_00_11_10])
    assert decoded(codec_named("two-bit", by=by), payload, 6).tolist() == x.tolist()


@both
def test_signs_lie_where_the_format_says(by: str) -> None:
    x = np.array([1, -3, 2, -2, 0, -0.0, -1, 1, 2, -3], np.float32)
    payload = codec_named("sign", by=by).encode(x)
    assert payload == scale(0x3FC0) + bytes([0b0000_1000, 0b0001_0111])  # 1.5, of 15 / 10
    assert decoded(codec_named("sign", by=by), payload, 10).tolist() == [
        1.5, -1.5, 1.5, -1.5, 1.5, -1.5, -1.5, 1.5, 1.5, -1.5,
    ]  # fmt: skip


@both
def test_the_largest_values_lie_where_the_format_says(by: str) -> None:
    codec = codec_named("top-k:3", by=by)
    x = np.zeros(CHUNK, np.float32)
    x[[2, 0x321, 0xFED]] = [-1, 4, 1]
    payload = codec.encode(x)
    indices = bytes([0x02, 0x10, 0x32, 0xED, 0x0F, 0x00])
    assert payload == scale(0x3F80) + scale(0x4080) + bytes([0b00_00_01_10]) + indices
    assert np.array_equal(decoded(codec, payload, CHUNK), x)


@both
def test_of_equal_magnitudes_the_first_are_sent(by: str) -> None:
    codec = codec_named("top-k:40", by=by)
    x = np.where(np.arange(2 * CHUNK) % 3, np.float32(-2), np.float32(1))
    x[CHUNK + 4_000] = 5
    back = decoded(codec, codec.encode(x), x.size)
    expected = np.flatnonzero(x[:CHUNK] == -2)[:40].tolist()
    assert np.flatnonzero(back[:CHUNK]).tolist() == expected
    assert np.flatnonzero(back[CHUNK:]).tolist() == [
        *np.flatnonzero(x[CHUNK:] == -2)[:39].tolist(),
        4_000,
    ]


@pytest.mark.parametrize("count", [1, 64, 512, 513, 4096])
def test_what_is_sent_is_what_a_sort_finds(count: int) -> None:
    codec, x = codec_named(f"top-k:{count}"), values_of(3 * CHUNK + 1_000, seed=4)
    sent = np.flatnonzero(decoded(codec, codec.encode(x), x.size))
    for first in range(0, x.size, CHUNK):
        chunk = np.abs(x[first : first + CHUNK])
        number = -(-count * chunk.size // CHUNK)
        expected = np.sort(np.argsort(-chunk, kind="stable")[:number]) + first
        assert sent[(sent >= first) & (sent < first + CHUNK)].tolist() == expected.tolist()


def test_two_bits_err_less_than_equal_steps_would() -> None:
    codec, x = codec_named("two-bit"), values_of(64 * 512, seed=5)
    left = np.empty_like(x)
    codec.encode(x, left)
    magnitude = np.abs(x.reshape(-1, 512))
    step = magnitude.mean(axis=1, keepdims=True) * 0.6267
    equal_steps = magnitude - np.where(magnitude >= 2 * step, 3 * step, step)
    assert np.square(left).sum() < 0.7 * np.square(equal_steps).sum()


@pytest.mark.parametrize("name", ["two-bit", "sign", "top-k", "top-k:700", "random-k"])
def test_error_feedback_sends_everything_in_the_end(name: str) -> None:
    codec, x = codec_named(name), values_of(3 * CHUNK, seed=6)
    x[:CHUNK] *= np.float32(1e-3)
    e, sent = np.zeros_like(x), np.zeros(x.size, np.float64)
    early = 0.0
    for turn in range(1, 201):
        codec = codec.seeded(turn)
        room = memoryview(bytearray(codec.max_bytes(x.size)))
        codec.accumulate(codec.encode_parts([(e, x)], x.size, room), 1.0, total := np.zeros_like(x))
        sent += total
        early = early or float(np.linalg.norm(e)) * 50
        assert np.linalg.norm(sent + e - turn * x.astype(np.float64)) < 1e-4 * turn
    assert np.linalg.norm(e) < early


def payload_of(name: str, size: int = CHUNK + 900) -> tuple[bytearray, Float32]:
    x = values_of(size, seed=8)
    return bytearray(codec_named(name).encode(x)), x


@both
def test_indices_that_do_not_rise_are_refused(by: str) -> None:
    codec, (payload, x) = codec_named("top-k", by=by), payload_of("top-k")
    first = sum(codec._section_bytes(x.size)[:2])  # type: ignore[attr-defined]
    pairs = {
        "equal": bytes([5, 0x50, 0]),
        "falling": bytes([5, 0x40, 0]),
    }
    for pair in pairs.values():
        wrong = payload.copy()
        wrong[first : first + 3] = pair
        out = np.ones(x.size, np.float32)
        with pytest.raises(PeerError, match="indices that do not rise") as caught:
            codec.decode(bytes(wrong), out)
        assert caught.value.reason == "malformed"
        with pytest.raises(PeerError, match="indices that do not rise"):
            codec.accumulate(bytes(wrong), 1.0, out)
        with pytest.raises(PeerError, match="indices that do not rise"):
            codec.norm(bytes(wrong), x.size)
        assert np.all(out == 1)


@both
def test_an_index_beyond_a_short_chunk_is_refused(by: str) -> None:
    codec, (payload, x) = codec_named("top-k:9", by=by), payload_of("top-k:9")
    assert codec_named("top-k:9").max_bytes(x.size) == len(payload)
    last = payload[-3:]  # of two entries
    index = (last[1] >> 4) | last[2] << 4
    assert index < 900
    payload[-2:] = bytes([(payload[-2] & 15) | (900 & 15) << 4, 900 >> 4])
    with pytest.raises(PeerError, match="indices that do not rise within a chunk"):
        decoded(codec, bytes(payload), x.size)


@both
def test_bits_that_belong_to_no_entry_must_be_zero(by: str) -> None:
    codec, (payload, x) = codec_named("top-k:9", by=by), payload_of("top-k:9", CHUNK)
    for place, mask in ((-1, 0xFF), (-2, 0xF0), (4, 0xC0), (5, 0xC0), (6, 0xC0)):
        for bit in (1 << i for i in range(8) if mask >> i & 1):
            assert not payload[place] & bit
            wrong = payload.copy()
            wrong[place] |= bit
            with pytest.raises(PeerError, match="stray bits"):
                decoded(codec, bytes(wrong), x.size)


@pytest.mark.parametrize("name", ["two-bit", "top-k", "random-k"])
def test_a_larger_scale_in_the_first_place_is_refused(name: str) -> None:
    payload, x = payload_of(name)
    first = 8 if name == "random-k" else 0  # behind its seed
    payload[first : first + 4] = payload[first + 2 : first + 4] + payload[first : first + 2]
    with pytest.raises(PeerError, match="larger scale of a block comes first"):
        decoded(codec_named(name), bytes(payload), x.size)


@pytest.mark.parametrize("bf16", [0x7F80, 0x7FC0, 0x07FF, 0xBF80])
def test_scales_of_entries_that_no_encoder_writes_are_refused(bf16: int) -> None:
    payload, x = payload_of("top-k")
    payload[2:4] = scale(bf16)
    with pytest.raises(PeerError, match="top-k: scales"):
        decoded(codec_named("top-k"), bytes(payload), x.size)


@pytest.mark.parametrize(
    "name", ["top-k:0", "top-k:4097", "top-k:", "top-k:1.5", "top-k:-1", "top-k: 7", "top-k:07"]
)
def test_a_number_that_top_k_cannot_have_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match="expected top-k:1 to top-k:4096"):
        codec_named(name)


def test_other_codecs_take_no_number() -> None:
    with pytest.raises(ConfigError, match="expected int8 alone"):
        codec_named("int8:3")


@both
def test_what_a_seed_draws_lies_where_the_format_says(by: str) -> None:
    x = values_of(2 * CHUNK + 1_000, seed=3)
    codec = RandomKCodec(5, seed=-2, by=by)
    payload = codec.encode(x)
    assert payload[:8] == (2**64 - 2).to_bytes(8, "little")
    assert len(payload) == 8 + 3 * 4 + 2 + 2 + 1  # of the last 1,000 values, 2
    back = decoded(codec, payload, x.size)
    words = words_of(2**64 - 2, 0, 3)
    whole, short = drawn(words[:2], CHUNK, 5), drawn(words[2:], 1_000, 2)
    places = [*whole[0], *(CHUNK + whole[1]), *(2 * CHUNK + short[0])]
    assert np.flatnonzero(back).tolist() == sorted(places)
    assert np.array_equal(np.sign(back[places]), np.sign(x[places]))
    assert bits(decoded(codec_named("random-k:5"), payload, x.size)) == bits(back)  # of any seed


def test_a_seed_draws_permutations_whose_places_are_equally_likely() -> None:
    words = words_of(5, 0, 4_000)
    places = permuted(words)
    assert np.array_equal(np.sort(places[:50], axis=1), np.tile(np.arange(CHUNK), (50, 1)))
    counts = np.bincount(places[:, :64].ravel(), minlength=CHUNK)
    expected = 4_000 * 64 / CHUNK
    chi_squared = np.square(counts - expected).sum() / expected
    assert abs(chi_squared - CHUNK) < 5 * np.sqrt(2 * CHUNK)
    assert np.array_equal(words_of(5, 7, 3), words[7:10])
    assert words_of(6, 0, 1) != words_of(5, 0, 1)


def test_sums_of_one_seed_hold_no_more_values_than_each_of_them() -> None:
    codec = codec_named("random-k").seeded(11)
    total = np.zeros(3 * CHUNK + 77, np.float32)
    for peer in range(4):
        codec.accumulate(codec.encode(values_of(total.size, seed=peer)), 0.25, total)
    left = np.empty_like(total)
    codec.encode(total, left)
    assert np.count_nonzero(total) == 3 * 256 + -(-256 * 77 // CHUNK)
    assert np.all(left[total == 0] == 0)
