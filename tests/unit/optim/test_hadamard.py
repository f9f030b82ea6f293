"""The rotation before codecs of few bits: what it is, that it is undone, and that both implementations agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.errors import PeerError
from runnel.kernels import Float32, implementation, words_of
from runnel.kernels.hadamard_reference import sign_bits
from runnel.optim.codec_hadamard import BLOCK, HadamardCodec
from runnel.optim.codecs import TWO_BIT, codec_named
from tests.support.codecs import FLOAT_MAX, bits, decoded, mixed, values_of

both = pytest.mark.parametrize("by", ["numba", "reference"])
rotated = pytest.mark.parametrize(
    "name", ["hadamard+int4", "hadamard+e3m0", "hadamard+two-bit", "hadamard+sign"]
)


def there_and_back(x: Float32, blocks: int, by: str) -> tuple[Float32, Float32]:
    kernels, words = implementation(by).rotations["hadamard"], words_of(4, 0, blocks)
    there, back = np.empty_like(x), np.empty_like(x)
    kernels.forward(x, words, there)
    kernels.backward(there, words, back)
    return there, back


@both
@pytest.mark.parametrize(("size", "blocks"), [(1, 2), (2, 3), (8, 2), (128, 3), (4096, 2)])
def test_a_block_is_multiplied_by_signs_and_the_hadamard_matrix(
    size: int, blocks: int, by: str
) -> None:
    x = values_of(size * blocks, seed=size)
    there, back = there_and_back(x, blocks, by)
    index = np.arange(size)
    matrix = 1.0 - 2.0 * (np.bitwise_count(index[:, None] & index[None, :]) % 2)
    signs = np.where(sign_bits(words_of(4, 0, blocks), size), -1.0, 1.0)
    expected = (signs * x.reshape(blocks, size)) @ matrix / size
    assert np.abs(there.reshape(blocks, size) - expected).max() < 1e-6
    assert np.abs(back - x).max() < 1e-6


@both
def test_what_is_read_may_be_overwritten_and_a_rotation_keeps_lengths(by: str) -> None:
    kernels, words = implementation(by).rotations["hadamard"], words_of(9, 5, 2)
    x = values_of(2 * BLOCK, seed=1)
    there, _ = there_and_back(x, 2, by)
    assert 64 * np.linalg.norm(there) == pytest.approx(np.linalg.norm(x), rel=1e-5)
    kernels.forward(x, words, out := np.empty_like(x))
    kernels.forward(x, words, x)
    assert bits(x) == bits(out)


def test_signs_are_even_and_differ_from_block_to_block() -> None:
    drawn = np.where(sign_bits(words_of(3, 0, 64), BLOCK), -1.0, 1.0)
    assert abs(drawn.mean()) < 5 / np.sqrt(drawn.size)
    products = drawn @ drawn.T / BLOCK - np.eye(64)
    assert np.abs(products).max() < 6 / np.sqrt(BLOCK)


@rotated
@pytest.mark.parametrize("size", [0, 1, 3, 700, BLOCK, BLOCK + 1, 2 * BLOCK + 300])
def test_both_implementations_write_the_same_bytes(name: str, size: int) -> None:
    fast = codec_named(name, by="numba").seeded(77)
    slow = codec_named(name, by="reference").seeded(77)
    x = mixed(size)
    left, other = np.empty_like(x), np.empty_like(x)
    payload = fast.encode(x, left)
    assert payload == slow.encode(x, other)
    assert len(payload) == fast.max_bytes(size)
    assert bits(left) == bits(other) == bits(x - decoded(slow, payload, size))
    assert fast.norm(payload, size) == slow.norm(payload, size)


@rotated
@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=90),
    seed=st.integers(-(2**70), 2**70),
)
@settings(max_examples=40, deadline=None)
def test_any_finite_values_come_back_finite_whatever_the_seed(
    name: str, numbers: list[float], seed: int
) -> None:
    codec, x = codec_named(name).seeded(seed), np.array(numbers, np.float32)
    assert np.isfinite(decoded(codec, codec.encode(x), x.size)).all()


def test_the_last_block_is_padded_to_a_power_of_two_and_no_further() -> None:
    codec, inner = codec_named("hadamard+two-bit"), codec_named("two-bit")
    for rest, padded in ((1, 1), (3, 4), (512, 512), (513, 1024), (4095, 4096)):
        assert codec.max_bytes(BLOCK + rest) == 8 + inner.max_bytes(BLOCK + padded)
    assert codec.max_bytes(0) == 0


@both
def test_a_payload_begins_with_its_seed_and_is_read_without_being_told_it(by: str) -> None:
    codec, x = HadamardCodec(TWO_BIT, seed=258, by=by), values_of(BLOCK + 9)
    payload = codec.encode(x)
    assert payload[:8] == bytes([2, 1, 0, 0, 0, 0, 0, 0])
    expected = decoded(codec, payload, x.size)
    assert bits(decoded(codec_named("hadamard+two-bit"), payload, x.size)) == bits(expected)
    other = (259).to_bytes(8, "little") + payload[8:]
    assert bits(decoded(codec, other, x.size)) != bits(expected)


@rotated
def test_one_large_value_no_longer_spoils_its_block(name: str) -> None:
    x = np.full(BLOCK, 1e-3, np.float32)
    x[17] = 1.0
    left, plain = np.empty_like(x), np.empty_like(x)
    codec_named(name).encode(x, left)
    codec_named(name.partition("+")[2]).encode(x, plain)
    rest = np.arange(BLOCK) != 17
    assert np.linalg.norm(left) < 0.7 * np.linalg.norm(x)
    if name == "hadamard+sign":  # its one scale is the mean
        assert np.linalg.norm(plain) > 0.9 * np.linalg.norm(x)
    assert np.isfinite(left[rest]).all()


@rotated
def test_error_feedback_sends_everything_in_the_end(name: str) -> None:
    x, e = values_of(BLOCK + 300, seed=6), np.zeros(BLOCK + 300, np.float32)
    sent = np.zeros(x.size, np.float64)
    for turn in range(1, 61):
        codec = codec_named(name).seeded(turn)
        room = memoryview(bytearray(codec.max_bytes(x.size)))
        codec.accumulate(codec.encode_parts([(e, x)], x.size, room), 1.0, got := np.zeros_like(x))
        sent += got
    assert np.linalg.norm(sent + e - 60 * x.astype(np.float64)) < 1e-2
    assert np.linalg.norm(e) < 3 * np.linalg.norm(x)


@rotated
def test_the_largest_values_come_back_finite_and_wrong_scales_are_refused(name: str) -> None:
    codec = codec_named(name)
    x = np.full(BLOCK, FLOAT_MAX, np.float32)
    x[::2] *= -1
    payload = bytearray(codec.encode(x))
    assert np.isfinite(decoded(codec, bytes(payload), x.size)).all()
    payload[8:10] = b"\xff\xff"
    with pytest.raises(PeerError, match="scales"):
        decoded(codec, bytes(payload), x.size)
