"""Compiled arithmetic of the random-k codec; `random_k_reference` says in numpy what it does.

The rules of `blockwise_numba` for compiled code hold here too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

from runnel.kernels.draws import Words
from runnel.kernels.random_k_reference import are_any
from runnel.kernels.signatures import Float32, PlaceKernels, Places, SparseKernels
from runnel.kernels.sparse_numba import SENT

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]
_PLACES_OUT = types.int32[:, ::1]
_WORDS_IN = types.Array(types.uint64, 1, "C", readonly=True)

_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = np.int32(0x7F800000)
_DIGIT = np.int32(4095)
_FOLD = np.int32(6)

_Bits = npt.NDArray[np.int32]


@njit(inline="always")
def _digit(word: Any, number: Any) -> Any:
    """A twelve-bit digit of a word."""
    shifted = np.uint64(np.uint64(word) >> np.uint64(number * 12))
    return np.int32(np.int64(np.uint64(shifted & np.uint64(4095))))


@njit(inline="always")
def _draw(word: Any, chunk: int, count: int, kept: _Bits) -> None:
    """The first `count` places of a word's permutation that are within the chunk."""
    a, b = np.int32(_digit(word, 0) | np.int32(1)), _digit(word, 1)
    c, d = np.int32(_digit(word, 2) | np.int32(1)), _digit(word, 3)
    e, found, i = _digit(word, 4), 0, np.int32(0)
    while found < count:
        j = np.int32(np.int32(np.int32(a * i) + b) & _DIGIT)
        j = np.int32(j ^ np.int32(j >> _FOLD))
        j = np.int32(np.int32(np.int32(c * j) + d) & _DIGIT)
        j = np.int32(j ^ np.int32(j >> _FOLD))
        j = np.int32(np.int32(j + e) & _DIGIT)
        kept[found] = j
        if j < chunk:
            found += 1
        i = np.int32(i + np.int32(1))


@njit(inline="always")
def _add(x: Float32, more: Float32) -> Any:
    """Adds to a chunk in its place; the bits of the largest magnitude."""
    largest = np.int32(0)
    for i in range(x.size):
        v = np.float32(x[i] + more[i])
        x[i] = v
        largest = max(largest, np.int32(v.view(np.int32) & _MAGNITUDE))
    return largest


@njit(types.int64(_FLOATS_OUT, _FLOATS_IN, types.int64), **_COMPILE)
def _add_up(values: Float32, added: Float32, chunks: int) -> int:
    chunk = values.size // max(chunks, 1)
    step = chunk if added.size == values.size else 0
    for c in range(chunks):
        x = values[c * chunk : (c + 1) * chunk]
        if _add(x, added[c * step : c * step + chunk]) >= _INFINITE:
            return c
    return -1


@njit(types.void(_WORDS_IN, types.int64, _PLACES_OUT), **_COMPILE)
def read(where: Words, chunk: int, places: Places) -> None:
    """See `PlaceKernels.read`."""
    for c in range(places.shape[0]):
        _draw(where[c], chunk, places.shape[1], places[c])


def choose(values: Float32, added: Float32, where: Words, places: Places) -> int:
    """See `PlaceKernels.choose`."""
    read(where, values.size // max(len(places), 1), places)
    refused: int = _add_up(values, added, len(places))
    return refused


RANDOM_K = SparseKernels(PlaceKernels(choose, read, are_any), SENT)
