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

from runnel.kernels.signatures import Codes, Float32, Scales, SparseKernels

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]
_BYTES_IN = types.Array(types.uint8, 1, "C", readonly=True)
_BYTES_OUT = types.uint8[::1]
_SCALES_IN = types.Array(types.uint16, 1, "C", readonly=True)
_SCALES_OUT = types.uint16[::1]

_MAGNITUDE = np.int32(0x7FFFFFFF)
_SIGN = np.int32(-0x80000000)
_INFINITE = np.int32(0x7F800000)
_NEGLIGIBLE = np.int32(0x07000000)  # 2^-113
_SHRINK = np.float32(2.0**-13)
_GROW = np.float32(2.0**13)
_SMALLEST_SCALE = np.uint32(0x08000000)
_LARGEST_SCALE = np.uint32(0x7F7F0000)
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


@njit(inline="always")
def _shrunk(v: Any) -> Any:
    """The magnitude as it is added up."""
    u = np.int32(np.float32(v).view(np.int32) & _MAGNITUDE)
    u = u if u >= _NEGLIGIBLE else np.int32(0)
    return np.float32(np.int32(u).view(np.float32) * _SHRINK)


@njit(inline="always")
def _scale_bits(mean: Any) -> Any:
    """A mean of shrunk magnitudes as bf16, to nearest even, within the allowed scales; as float32 bits."""
    bits = np.uint32(np.float32(mean * _GROW).view(np.uint32))
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    bits = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd)
    bits = np.uint32(bits & np.uint32(0xFFFF0000))
    return np.uint32(min(max(bits, _SMALLEST_SCALE), _LARGEST_SCALE))


@njit(inline="always")
def _widen(scale: Any) -> Any:
    """The bits of a float32 from those of a bf16."""
    return np.int32(np.uint32(np.uint32(scale) << np.uint32(16)))


@njit(inline="always")
def _centroids(x: Float32, kept: _Bits, count: int) -> Any:
    """The bits of the mean magnitudes of the values up to their mean, and of those above it."""
    total = np.float32(0)
    for e in range(count):
        total = np.float32(total + _shrunk(x[kept[e]]))
    threshold = np.float32(total / np.float32(count))
    low, high, above = np.float32(0), np.float32(0), 0
    for e in range(count):
        s = _shrunk(x[kept[e]])
        if s > threshold:
            high = np.float32(high + s)
            above += 1
        else:
            low = np.float32(low + s)
    small = _scale_bits(np.float32(low / np.float32(max(count - above, 1))))
    large = _scale_bits(np.float32(high / np.float32(max(above, 1))))
    return np.int32(small), np.int32(max(small, large))


@njit(inline="always")
def _write(x: Float32, kept: _Bits, count: int, centroids: Any, q: Codes) -> None:
    """Codes of the values that are sent, which become what they lose."""
    small, large = centroids
    middle = np.float32(
        np.float32(np.int32(small).view(np.float32) * np.float32(0.5))
        + np.float32(np.int32(large).view(np.float32) * np.float32(0.5))
    ).view(np.int32)
    for i in range(q.size):
        q[i] = np.uint8(0)
    row, e = 0, 0
    while e < count:
        for i in range(min(q.size, count - e)):
            v = x[kept[e + i]]
            u = np.float32(v).view(np.int32)
            code = np.int32(2) if u < np.int32(0) else np.int32(0)
            level = small
            if np.int32(u & _MAGNITUDE) > middle:
                level = large
                code = np.int32(code | np.int32(1))
            x[kept[e + i]] = v - np.int32(level | np.int32(u & _SIGN)).view(np.float32)
            q[i] = np.uint8(np.int32(q[i]) | np.int32(code << np.int32(2 * row)))
        e += q.size
        row += 1


@njit(inline="always")
def _write_indices(kept: _Bits, count: int, q: Codes) -> None:
    """Two indices in three bytes; `kept` holds a zero behind an odd number of them."""
    for i in range((count + 1) // 2):
        pair = np.int32(kept[2 * i] | np.int32(kept[2 * i + 1] << np.int32(12)))
        q[3 * i] = np.uint8(pair)
        q[3 * i + 1] = np.uint8(pair >> np.int32(8))
        q[3 * i + 2] = np.uint8(pair >> np.int32(16))


@njit(inline="always")
def _index(q: Codes, e: int) -> Any:
    """The index of entry `e`."""
    at = e // 2 * 3
    pair = np.int32(np.int32(q[at]) | np.int32(np.int32(q[at + 1]) << np.int32(8)))
    pair = np.int32(pair | np.int32(np.int32(q[at + 2]) << np.int32(16)))
    return np.int32(pair >> np.int32(12)) if e % 2 else np.int32(pair & np.int32(4095))


@njit(
    types.int64(_FLOATS_OUT, _FLOATS_IN, _SCALES_OUT, _BYTES_OUT, _BYTES_OUT, types.int64),
    **_COMPILE,
)
def encode(
    values: Float32, added: Float32, scales: Scales, codes: Codes, indices: Codes, count: int
) -> int:
    """See `SparseKernels.encode`."""
    chunks = scales.size // 2
    chunk = values.size // max(chunks, 1)
    code_bytes, index_bytes = (count + 3) // 4, (count + 1) // 2 * 3
    bits, tops = np.empty(chunk, np.int32), np.empty((chunk + _ROWS - 1) // _ROWS, np.int32)
    chosen, places = np.empty(chunk + 1, np.int32), np.empty(chunk + 1, np.int32)
    marks = np.zeros((chunk + 7) // 8 * 8, np.uint8)
    kept = np.zeros(count + 2, np.int32)
    step = chunk if added.size == values.size else 0
    guess = np.int32(0)
    for c in range(chunks):
        x = values[c * chunk : (c + 1) * chunk]
        largest = _survey(x, added[c * step : c * step + chunk], bits, tops)
        if largest >= _INFINITE:
            return c
        guess = _bound(tops, count, largest, guess)
        found = _collect(bits, tops, guess, chosen, places)
        last = _last_kept(chosen, found, guess, largest, count)
        ties = count - _reaching(chosen, found, np.int32(last + np.int32(1)))
        _in_order((chosen, places, found), last, ties, marks, kept)
        small, large = _centroids(x, kept, count)
        scales[2 * c] = np.uint16(np.uint32(small) >> np.uint32(16))
        scales[2 * c + 1] = np.uint16(np.uint32(large) >> np.uint32(16))
        _write(x, kept, count, (small, large), codes[c * code_bytes : (c + 1) * code_bytes])
        _write_indices(kept, count, indices[c * index_bytes : (c + 1) * index_bytes])
    return -1


@njit(
    types.void(_SCALES_IN, _BYTES_IN, _BYTES_IN, types.float32, _FLOATS_OUT, types.int64),
    **_COMPILE,
)
def accumulate(
    scales: Scales, codes: Codes, indices: Codes, factor: np.float32, out: Float32, count: int
) -> None:
    """See `SparseKernels.accumulate`."""
    chunks = scales.size // 2
    chunk = out.size // max(chunks, 1)
    code_bytes, index_bytes = (count + 3) // 4, (count + 1) // 2 * 3
    for c in range(chunks):
        q = codes[c * code_bytes : (c + 1) * code_bytes]
        where = indices[c * index_bytes : (c + 1) * index_bytes]
        y = out[c * chunk : (c + 1) * chunk]
        small = np.float32(factor * np.int32(_widen(scales[2 * c])).view(np.float32))
        large = np.float32(factor * np.int32(_widen(scales[2 * c + 1])).view(np.float32))
        for e in range(count):
            code = np.int32(np.int32(q[e % code_bytes]) >> np.int32(e // code_bytes * 2))
            level = large if np.int32(code & np.int32(1)) != np.int32(0) else small
            level = -level if np.int32(code & np.int32(2)) != np.int32(0) else level
            y[_index(where, e)] += level


@njit(types.boolean(_SCALES_IN, _BYTES_IN, _BYTES_IN, types.int64, types.int64), **_COMPILE)
def canonical(scales: Scales, codes: Codes, indices: Codes, chunk: int, count: int) -> bool:
    """See `SparseKernels.canonical`."""
    code_bytes, index_bytes = (count + 3) // 4, (count + 1) // 2 * 3
    for c in range(scales.size // 2):
        where = indices[c * index_bytes : (c + 1) * index_bytes]
        before = np.int32(-1)
        for e in range(count):
            index = _index(where, e)
            if index <= before or index >= chunk:
                return False
            before = index
        if count % 2 == 1 and _index(where, count) != np.int32(0):
            return False
        q = codes[c * code_bytes : (c + 1) * code_bytes]
        for e in range(count, 4 * code_bytes):
            if np.int32(np.int32(q[e % code_bytes]) >> np.int32(e // code_bytes * 2)) & np.int32(3):
                return False
    return True


@njit(types.float64(_SCALES_IN, _BYTES_IN, types.int64), **_COMPILE)
def sum_of_squares(scales: Scales, codes: Codes, count: int) -> float:
    """See `SparseKernels.sum_of_squares`."""
    code_bytes = (count + 3) // 4
    total = 0.0
    for c in range(scales.size // 2):
        large = 0
        for i in range(c * code_bytes, (c + 1) * code_bytes):
            for up in range(0, 8, 2):
                large += int(np.int32(np.int32(codes[i]) >> np.int32(up)) & np.int32(1))
        low = np.float64(np.int32(_widen(scales[2 * c])).view(np.float32))
        high = np.float64(np.int32(_widen(scales[2 * c + 1])).view(np.float32))
        total += np.float64(count - large) * (low * low) + np.float64(large) * (high * high)
    return total


TOP_K = SparseKernels(encode, accumulate, canonical, sum_of_squares)
