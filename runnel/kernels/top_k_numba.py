"""Compiled arithmetic of the top-k codec; `top_k_reference` says in numpy what it does.

The rules of `blockwise_numba` for compiled code hold here too. The largest values of a chunk are found
without sorting: eight strided rows make columns, and a search by bisection over the columns' largest
magnitudes gives a bound that few values reach. Those are collected; a second bisection over them finds
the smallest magnitude that is sent. One byte for each value then brings them back into their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

from runnel.kernels.signatures import Codes, Float32, PlaceKernels, Places, SparseKernels
from runnel.kernels.sparse_numba import SENT

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]
_BYTES_IN = types.Array(types.uint8, 1, "C", readonly=True)
_BYTES_OUT = types.uint8[::1]
_PLACES_IN = types.Array(types.int32, 2, "C", readonly=True)
_PLACES_OUT = types.int32[:, ::1]

_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = np.int32(0x7F800000)
_ROWS = 8
_BINADE = np.int32(1 << 23)

_Bits = npt.NDArray[np.int32]


@njit(inline="always")
def _reaching(bits: _Bits, size: int, bound: Any) -> Any:
    """How many of the first `size` are at least `bound`."""
    found = np.int32(0)
    for i in range(size):
        found = np.int32(found + (np.int32(1) if bits[i] >= bound else np.int32(0)))
    return found


@njit(inline="always")
def _survey(x: Float32, more: Float32, bits: _Bits, tops: _Bits) -> Any:
    """Adds to a chunk; its magnitudes, the largest of each column, and the largest of all."""
    columns = tops.size
    for i in range(columns):
        tops[i] = np.int32(0)
    for row in range(_ROWS):
        first, last = row * columns, min((row + 1) * columns, x.size)
        y, z, u = x[first:last], more[first:last], bits[first:last]
        for i in range(last - first):
            v = np.float32(y[i] + z[i])
            y[i] = v
            w = np.int32(v.view(np.int32) & _MAGNITUDE)
            u[i] = w
            tops[i] = max(tops[i], w)
    largest = np.int32(0)
    for i in range(columns):
        largest = max(largest, tops[i])
    return largest


@njit(inline="always")
def _bound(tops: _Bits, count: Any, largest: Any, guess: Any) -> Any:
    """A magnitude that `count` columns reach, and few more if that is found soon; 0 if so many are not."""
    low, high = np.int32(0), np.int32(largest + np.int32(1))
    if tops.size < count:
        return low
    bound = guess if np.int32(0) < guess < high else np.int32(max(largest - _BINADE, np.int32(0)))
    for attempt in range(31):
        found = _reaching(tops, tops.size, bound)
        if count <= found <= count + count // 2:
            return bound
        if found < count:
            high = bound
        else:
            low = bound
        if high - low <= np.int32(1):
            break
        step = np.int32(-(1 << 20)) if found < count else np.int32(1 << 19)
        near = np.int32(bound + step)
        middle = np.int32(low + np.int32(np.int32(high - low) >> np.int32(1)))
        bound = near if attempt < 4 and low < near < high else middle
    return low


@njit(inline="always")
def _collect(bits: _Bits, tops: _Bits, bound: Any, chosen: _Bits, places: _Bits) -> int:
    """The magnitudes of at least `bound` and their places, column by column; how many."""
    columns, found = tops.size, 0
    for i in range(columns):
        if tops[i] >= bound:
            for place in range(i, bits.size, columns):
                w = bits[place]
                chosen[found] = w
                places[found] = np.int32(place)
                if w >= bound:
                    found += 1
    return found


@njit(inline="always")
def _last_kept(chosen: _Bits, found: int, bound: Any, largest: Any, count: Any) -> Any:
    """The magnitude of the `count`-th largest."""
    low, high = np.int32(bound), np.int32(largest + np.int32(1))
    while high - low > np.int32(1):
        middle = np.int32(low + np.int32(np.int32(high - low) >> np.int32(1)))
        if _reaching(chosen, found, middle) >= count:
            low = middle
        else:
            high = middle
    return low


@njit(inline="always")
def _in_order(
    candidates: tuple[_Bits, _Bits, int], last: Any, ties: Any, marks: Codes, kept: _Bits
) -> int:
    """The places of what exceeds `last`, and of the first `ties` that equal it, rising; how many.

    `marks` holds a zero byte for each value, and does so again afterwards.
    """
    chosen, places, found = candidates
    for i in range(found):
        if chosen[i] >= last:
            marks[places[i]] = np.uint8(1) if chosen[i] > last else np.uint8(2)
    words = marks.view(np.uint64)
    total = 0
    for w in range(words.size):
        if words[w] != np.uint64(0):
            words_at = w * 8
            for place in range(words_at, words_at + 8):
                mark = marks[place]
                marks[place] = np.uint8(0)
                if mark == np.uint8(1) or (mark == np.uint8(2) and ties > 0):
                    kept[total] = np.int32(place)
                    total += 1
                    ties -= np.int64(mark >> np.uint8(1))
    return total


@njit(types.int64(_FLOATS_OUT, _FLOATS_IN, _PLACES_OUT), **_COMPILE)
def _choose(values: Float32, added: Float32, places: Places) -> int:
    chunks, count = places.shape
    chunk = values.size // max(chunks, 1)
    bits, tops = np.empty(chunk, np.int32), np.empty((chunk + _ROWS - 1) // _ROWS, np.int32)
    chosen, where = np.empty(chunk + 1, np.int32), np.empty(chunk + 1, np.int32)
    marks = np.zeros((chunk + 7) // 8 * 8, np.uint8)
    step = chunk if added.size == values.size else 0
    guess = np.int32(0)
    for c in range(chunks):
        x = values[c * chunk : (c + 1) * chunk]
        largest = _survey(x, added[c * step : c * step + chunk], bits, tops)
        if largest >= _INFINITE:
            return c
        guess = _bound(tops, count, largest, guess)
        found = _collect(bits, tops, guess, chosen, where)
        last = _last_kept(chosen, found, guess, largest, count)
        ties = count - _reaching(chosen, found, np.int32(last + np.int32(1)))
        _in_order((chosen, where, found), last, ties, marks, places[c])
    return -1


@njit(types.void(_PLACES_IN, _BYTES_OUT), **_COMPILE)
def _pack(places: Places, indices: Codes) -> None:
    """Two indices in three bytes, of each chunk; behind an odd number a zero."""
    count = places.shape[1]
    index_bytes = (count + 1) // 2 * 3
    for c in range(places.shape[0]):
        kept, q = places[c], indices[c * index_bytes : (c + 1) * index_bytes]
        for i in range((count + 1) // 2):
            second = kept[2 * i + 1] if 2 * i + 1 < count else np.int32(0)
            pair = np.int32(kept[2 * i] | np.int32(second << np.int32(12)))
            q[3 * i] = np.uint8(pair)
            q[3 * i + 1] = np.uint8(pair >> np.int32(8))
            q[3 * i + 2] = np.uint8(pair >> np.int32(16))


@njit(inline="always")
def _pair(q: Codes, i: int) -> Any:
    """Two indices, the first one in the lower twelve bits."""
    pair = np.int32(np.int32(q[3 * i]) | np.int32(np.int32(q[3 * i + 1]) << np.int32(8)))
    return np.int32(pair | np.int32(np.int32(q[3 * i + 2]) << np.int32(16)))


@njit(inline="always")
def _index(q: Codes, e: int) -> Any:
    """The index of entry `e`."""
    pair = _pair(q, e // 2)
    return np.int32(pair >> np.int32(12)) if e % 2 else np.int32(pair & np.int32(4095))


@njit(types.void(_BYTES_IN, _PLACES_OUT), **_COMPILE)
def _unpack(indices: Codes, places: Places) -> None:
    count = places.shape[1]
    index_bytes = (count + 1) // 2 * 3
    for c in range(places.shape[0]):
        q, kept = indices[c * index_bytes : (c + 1) * index_bytes], places[c]
        for i in range(count // 2):
            pair = _pair(q, i)
            kept[2 * i] = np.int32(pair & np.int32(4095))
            kept[2 * i + 1] = np.int32(pair >> np.int32(12))
        if count % 2 == 1:
            kept[count - 1] = _index(q, count - 1)


@njit(types.boolean(_BYTES_IN, types.int64, types.int64), **_COMPILE)
def _rise(indices: Codes, chunk: int, count: int) -> bool:
    """Whether the indices of each chunk rise within it, with a zero behind an odd number of them."""
    index_bytes = (count + 1) // 2 * 3
    for c in range(indices.size // index_bytes):
        q = indices[c * index_bytes : (c + 1) * index_bytes]
        before = np.int32(-1)
        for e in range(count):
            index = _index(q, e)
            if index <= before or index >= chunk:
                return False
            before = index
        if count % 2 == 1 and _index(q, count) != np.int32(0):
            return False
    return True


def choose(values: Float32, added: Float32, where: Codes, places: Places) -> int:
    """See `PlaceKernels.choose`."""
    refused: int = _choose(values, added, places)
    _pack(places if refused < 0 else places[:refused], where)
    return refused


def read(where: Codes, chunk: int, places: Places) -> None:
    """See `PlaceKernels.read`."""
    del chunk
    _unpack(where, places)


TOP_K = SparseKernels(PlaceKernels(choose, read, _rise), SENT)
