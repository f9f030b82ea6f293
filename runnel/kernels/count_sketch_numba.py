"""Compiled arithmetic of the count sketch; `count_sketch_reference` says in numpy what it does.

The rules of `blockwise_numba` for compiled code hold here too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

from runnel.kernels.count_sketch_reference import DIGIT_BITS, LARGEST, NEGLIGIBLE, ROWS
from runnel.kernels.draws import Words
from runnel.kernels.draws_numba import STEP, mixed
from runnel.kernels.signatures import Float32, SketchKernels

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]
_WORDS_IN = types.Array(types.uint64, 1, "C", readonly=True)

_TWENTY_BITS = np.uint64(2**20 - 1)

_Places = npt.NDArray[np.int32]
"""Of each value and row the cell among all of the chunk, with its lowest bit shifted in for the sign."""


@njit(inline="always")
def _draw(word: Any, columns: int, places: _Places) -> None:
    """Where the values of a chunk go, [values, rows]."""
    drawn = np.uint64(word)
    for i in range(places.shape[0]):
        drawn = np.uint64(drawn + STEP)
        digits = mixed(drawn)
        for row in range(ROWS):
            digit = np.uint64(digits >> np.uint64(row * DIGIT_BITS))
            twenty = np.uint64(np.uint64(digit >> np.uint64(1)) & _TWENTY_BITS)
            column = np.uint64(np.uint64(twenty * np.uint64(columns)) >> np.uint64(20))
            cell = np.int64(column) + row * columns
            places[i, row] = np.int32(2 * cell + np.int64(np.uint64(digit & np.uint64(1))))


@njit(inline="always")
def _sign(place: Any) -> Any:
    """1 or -1; a product with it is exact, and no branch is guessed wrong half of the time."""
    return np.float32(
        np.int32(np.int32(1) - np.int32(np.int32(place & np.int32(1)) << np.int32(1)))
    )


@njit(inline="always")
def _said(cells: Float32, place: Any) -> Any:
    """A cell with a value's sign."""
    return np.float32(cells[place >> np.int32(1)] * _sign(place))


@njit(inline="always")
def _median(cells: Float32, places: _Places, i: int) -> Any:
    """What is read of a value."""
    a, b, c = _said(cells, places[i, 0]), _said(cells, places[i, 1]), _said(cells, places[i, 2])
    middle = max(min(a, b), min(max(a, b), c))
    return np.float32(0) if middle == np.float32(0) else middle


@njit(inline="always")
def _kept(v: Any) -> Any:
    """A value as it is added up."""
    return np.float64(0) if abs(v) < NEGLIGIBLE else np.float64(v)


@njit(inline="always")
def _factor(x: Float32, cells: Float32, places: _Places) -> Any:
    """What brings that which is read closest to the values, from 0 to 1."""
    along, square = 0.0, 0.0
    for i in range(x.size):
        found = np.float64(_median(cells, places, i))
        along += _kept(x[i]) * found
        square += found * found
    return min(max(along / square, 0.0), 1.0) if square > 0 else 0.0


@njit(types.void(_FLOATS_IN, _WORDS_IN, types.int64, _FLOATS_OUT), **_COMPILE)
def sketch(values: Float32, words: Words, columns: int, cells: Float32) -> None:
    """See `SketchKernels.sketch`."""
    chunk, size = values.size // max(words.size, 1), ROWS * columns
    places = np.empty((chunk, ROWS), np.int32)
    sums = np.empty(size, np.float64)
    for w in range(words.size):
        x, held = values[w * chunk : (w + 1) * chunk], cells[w * size : (w + 1) * size]
        _draw(words[w], columns, places)
        sums[:] = 0
        for i in range(chunk):
            v = _kept(x[i])
            for row in range(ROWS):
                place = places[i, row]
                sums[place >> np.int32(1)] += v * np.float64(_sign(place))
        for cell in range(size):
            held[cell] = np.float32(min(max(sums[cell], -LARGEST), LARGEST))
        factor = _factor(x, held, places)
        for cell in range(size):
            held[cell] = np.float32(np.float64(held[cell]) * factor)


@njit(types.void(_FLOATS_IN, _WORDS_IN, types.int64, _FLOATS_OUT), **_COMPILE)
def read(cells: Float32, words: Words, columns: int, out: Float32) -> None:
    """See `SketchKernels.read`."""
    chunk, size = out.size // max(words.size, 1), ROWS * columns
    places = np.empty((chunk, ROWS), np.int32)
    for w in range(words.size):
        y, held = out[w * chunk : (w + 1) * chunk], cells[w * size : (w + 1) * size]
        _draw(words[w], columns, places)
        for i in range(chunk):
            y[i] = _median(held, places, i)


COUNT_SKETCH = SketchKernels(sketch, read)
