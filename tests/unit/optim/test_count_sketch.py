"""The count sketch: what its cells hold, what is read of them, and that reading never tells more than there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.errors import PeerError
from runnel.kernels import Float32, implementation, words_of
from runnel.kernels.count_sketch_reference import ROWS, drawn
from runnel.optim.codec_count_sketch import CountSketchCodec
from runnel.optim.codecs import E3M0, codec_named
from tests.support.codecs import FLOAT_MAX, bits, decoded, mixed, values_of

CHUNK = 4096
_MASK = 2**64 - 1

both = pytest.mark.parametrize("by", ["numba", "reference"])


def mixed_word(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _MASK
    return word ^ word >> 31


def slow_cells(x: Float32, word: int, columns: int) -> tuple[list[list[float]], list[float]]:
    """The plain sums of one chunk, by Python's integers and floats; and what is read of them."""
    cells, places = [[0.0] * columns for _ in range(ROWS)], []
    for i, value in enumerate(x.tolist()):
        digits, mine = mixed_word(word + (i + 1) * 0x9E3779B97F4A7C15 & _MASK), []
        for row in range(ROWS):
            digit = digits >> 21 * row & 2**21 - 1
            sign = -1.0 if digit & 1 else 1.0
            mine.append((row, (digit >> 1) * columns >> 20, sign))
            cells[row][mine[-1][1]] += sign * value
        places.append(mine)
    read = [sorted(sign * cells[row][column] for row, column, sign in mine)[1] for mine in places]
    return cells, read


@both
@pytest.mark.parametrize(("chunk", "chunks", "columns"), [(1, 2, 2), (300, 1, 20), (CHUNK, 2, 64)])
def test_cells_are_signed_sums_that_a_factor_brings_closest(
    chunk: int, chunks: int, columns: int, by: str
) -> None:
    kernels, words = implementation(by).sketches["count-sketch"], words_of(4, 7, chunks)
    x = values_of(chunk * chunks, seed=2)
    cells, out = np.empty(chunks * ROWS * columns, np.float32), np.empty_like(x)
    kernels.sketch(x, words, columns, cells)
    kernels.read(cells, words, columns, out)
    rows = zip(x.reshape(chunks, -1), words.tolist(), cells.reshape(chunks, -1), strict=True)
    for (values, word, held), found in zip(rows, out.reshape(chunks, -1), strict=True):
        sums, read = slow_cells(values, word, columns)
        factor = float(values @ np.array(read) / np.square(read).sum())
        assert 0 < factor <= 1.0001
        assert np.allclose(held, factor * np.array(sums).ravel(), rtol=1e-5, atol=1e-6)
        assert np.allclose(found, factor * np.array(read), rtol=1e-5, atol=1e-6)


def test_cells_and_signs_are_equally_likely_and_rows_differ() -> None:
    where, negative = drawn(words_of(5, 0, 40), CHUNK, 64)
    counts = np.bincount(where.ravel(), minlength=64)
    expected = where.size / 64
    assert np.square(counts - expected).sum() / expected < 64 + 5 * np.sqrt(2 * 64)
    assert abs(negative.mean() - 0.5) < 5 / np.sqrt(4 * negative.size)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.mean(where[:, a] == where[:, b]) == pytest.approx(1 / 64, rel=0.1)
        assert np.mean(negative[:, a] == negative[:, b]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("size", [1, 2, 17, 300, 700, CHUNK, CHUNK + 9])
def test_what_is_lost_is_less_than_what_there_was(size: int) -> None:
    for seed in range(20):
        x = values_of(size, seed=seed)
        codec, left = codec_named("count-sketch").seeded(seed), np.empty_like(x)
        codec.encode(x, left)
        assert np.linalg.norm(left) < 0.999 * np.linalg.norm(x)


@given(
    numbers=st.lists(st.floats(width=32, min_value=-(2.0**99), max_value=2.0**99), max_size=90),
    seed=st.integers(-(2**70), 2**70),
)
@settings(max_examples=80, deadline=None)
def test_of_any_values_hardly_more_is_lost_than_there_was(numbers: list[float], seed: int) -> None:
    x = np.array(numbers, np.float32)
    codec = codec_named("count-sketch").seeded(seed)
    left = np.empty_like(x)
    codec.encode(x, left)
    lost, there = (np.linalg.norm(v.astype(np.float64)) for v in (left, x))
    assert lost <= 1.2 * there  # cells are rounded to powers of two after the factor was chosen


@both
def test_a_large_value_arrives_nearly_whole_without_an_index(by: str) -> None:
    codec, x = CountSketchCodec(E3M0, by=by), values_of(CHUNK, seed=3, scale=1e-3)
    x[1_000] = -4
    back = decoded(codec, codec.encode(x), CHUNK)
    assert np.argmax(np.abs(back)) == 1_000
    assert -4 * 4 / 3 < back[1_000] < -4 * 2 / 3
    assert np.linalg.norm(np.delete(back, 1_000)) < 1


@both
def test_a_payload_is_a_seed_and_e3m0_blocks_of_a_chunks_cells(by: str) -> None:
    codec, x = CountSketchCodec(E3M0, 6, seed=258, by=by), values_of(2 * CHUNK + 700)
    payload = codec.encode(x)
    assert payload[:8] == bytes([2, 1, 0, 0, 0, 0, 0, 0])
    assert len(payload) == 8 + 3 + 9 + 9 + 3  # scales; of the last 700 values six cells
    expected = decoded(codec, payload, x.size)
    assert bits(decoded(codec_named("count-sketch:6"), payload, x.size)) == bits(expected)
    other = (259).to_bytes(8, "little") + payload[8:]
    assert bits(decoded(codec, other, x.size)) != bits(expected)


@both
def test_the_largest_values_leave_a_finite_residual(by: str) -> None:
    codec = CountSketchCodec(E3M0, by=by)
    x = np.full(CHUNK + 3, FLOAT_MAX, np.float32)
    x[::2] *= -1
    left = np.empty_like(x)
    back = decoded(codec, codec.encode(x, left), x.size)
    assert np.isfinite(left).all()
    assert np.abs(back).max() <= 2.0**100


def test_a_cell_above_the_largest_is_refused() -> None:
    codec = codec_named("count-sketch")
    payload = bytearray(codec.encode(values_of(CHUNK)))
    payload[8] = 227
    assert np.isfinite(decoded(codec, bytes(payload), CHUNK)).all()
    payload[8] = 228
    with pytest.raises(PeerError, match="scales"):
        decoded(codec, bytes(payload), CHUNK)


def test_error_feedback_sends_everything_in_the_end() -> None:
    x, e = values_of(CHUNK + 300, seed=6), np.zeros(CHUNK + 300, np.float32)
    sent, owed = np.zeros(x.size, np.float64), []
    for turn in range(1, 201):
        codec = codec_named("count-sketch:512").seeded(turn)
        room = memoryview(bytearray(codec.max_bytes(x.size)))
        codec.accumulate(codec.encode_parts([(e, x)], x.size, room), 1.0, got := np.zeros_like(x))
        sent += got
        owed.append(float(np.linalg.norm(e)))
    assert np.linalg.norm(sent + e - 200 * x.astype(np.float64)) < 1e-2
    assert owed[-1] < 1.1 * owed[99] < 15 * np.linalg.norm(x)


@both
def test_subnormal_values_are_left_where_they_are(by: str) -> None:
    x = np.full(700, 1e-40, np.float32)
    codec, left = CountSketchCodec(E3M0, by=by), np.empty_like(x)
    assert not any(decoded(codec, codec.encode(x, left), x.size))
    assert bits(left) == bits(x)
    assert np.isfinite(decoded(codec, codec.encode(mixed(9_000)), 9_000)).all()
