"""Compiled arithmetic of the random-k codec; `random_k_reference` says in numpy what it does.

The rules of `blockwise_numba` for compiled code hold here too; what is inlined is as in `top_k_numba`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

from runnel.kernels.draws import Words
from runnel.kernels.random_k_reference import canonical
from runnel.kernels.signatures import Codes, Float32, Scales, SparseKernels

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]
_BYTES_IN = types.Array(types.uint8, 1, "C", readonly=True)
_BYTES_OUT = types.uint8[::1]
_SCALES_IN = types.Array(types.uint16, 1, "C", readonly=True)
_SCALES_OUT = types.uint16[::1]
_WORDS_IN = types.Array(types.uint64, 1, "C", readonly=True)

_MAGNITUDE = np.int32(0x7FFFFFFF)
_SIGN = np.int32(-0x80000000)
_INFINITE = np.int32(0x7F800000)
_NEGLIGIBLE = np.int32(0x07000000)  # 2^-113
_SHRINK = np.float32(2.0**-13)
_GROW = np.float32(2.0**13)
_SMALLEST_SCALE = np.uint32(0x08000000)
_LARGEST_SCALE = np.uint32(0x7F7F0000)
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


@njit(
    types.int64(_FLOATS_OUT, _FLOATS_IN, _SCALES_OUT, _BYTES_OUT, _WORDS_IN, types.int64),
    **_COMPILE,
)
def encode(
    values: Float32, added: Float32, scales: Scales, codes: Codes, words: Words, count: int
) -> int:
    """See `SparseKernels.encode`."""
    chunk = values.size // max(words.size, 1)
    code_bytes = (count + 3) // 4
    kept = np.empty(count + 1, np.int32)
    step = chunk if added.size == values.size else 0
    for c in range(words.size):
        x = values[c * chunk : (c + 1) * chunk]
        if _add(x, added[c * step : c * step + chunk]) >= _INFINITE:
            return c
        _draw(words[c], chunk, count, kept)
        small, large = _centroids(x, kept, count)
        scales[2 * c] = np.uint16(np.uint32(small) >> np.uint32(16))
        scales[2 * c + 1] = np.uint16(np.uint32(large) >> np.uint32(16))
        _write(x, kept, count, (small, large), codes[c * code_bytes : (c + 1) * code_bytes])
    return -1


@njit(
    types.void(_SCALES_IN, _BYTES_IN, _WORDS_IN, types.float32, _FLOATS_OUT, types.int64),
    **_COMPILE,
)
def accumulate(
    scales: Scales, codes: Codes, words: Words, factor: np.float32, out: Float32, count: int
) -> None:
    """See `SparseKernels.accumulate`."""
    chunk = out.size // max(words.size, 1)
    code_bytes = (count + 3) // 4
    kept = np.empty(count + 1, np.int32)
    for c in range(words.size):
        q = codes[c * code_bytes : (c + 1) * code_bytes]
        y = out[c * chunk : (c + 1) * chunk]
        _draw(words[c], chunk, count, kept)
        small = np.float32(factor * np.int32(_widen(scales[2 * c])).view(np.float32))
        large = np.float32(factor * np.int32(_widen(scales[2 * c + 1])).view(np.float32))
        for e in range(count):
            code = np.int32(np.int32(q[e % code_bytes]) >> np.int32(e // code_bytes * 2))
            level = large if np.int32(code & np.int32(1)) != np.int32(0) else small
            level = -level if np.int32(code & np.int32(2)) != np.int32(0) else level
            y[kept[e]] += level


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


RANDOM_K = SparseKernels(encode, accumulate, canonical, sum_of_squares)
