"""Compiled arithmetic of what is sent of each chunk, whichever values those are; `sparse_reference` says what it does.

The rules of `blockwise_numba` for compiled code hold here too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

from runnel.kernels.signatures import Codes, Float32, Places, Scales, SentKernels

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_OUT = types.float32[::1]
_BYTES_IN = types.Array(types.uint8, 1, "C", readonly=True)
_BYTES_OUT = types.uint8[::1]
_SCALES_IN = types.Array(types.uint16, 1, "C", readonly=True)
_SCALES_OUT = types.uint16[::1]
_PLACES_IN = types.Array(types.int32, 2, "C", readonly=True)

_MAGNITUDE = np.int32(0x7FFFFFFF)
_SIGN = np.int32(-0x80000000)
_NEGLIGIBLE = np.int32(0x07000000)  # 2^-113
_SHRINK = np.float32(2.0**-13)
_GROW = np.float32(2.0**13)
_SMALLEST_SCALE = np.uint32(0x08000000)
_LARGEST_SCALE = np.uint32(0x7F7F0000)

_Bits = npt.NDArray[np.int32]


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


@njit(types.void(_FLOATS_OUT, _PLACES_IN, _SCALES_OUT, _BYTES_OUT), **_COMPILE)
def send(values: Float32, places: Places, scales: Scales, codes: Codes) -> None:
    """See `SentKernels.send`."""
    chunks, count = places.shape
    chunk, code_bytes = values.size // max(chunks, 1), (count + 3) // 4
    for c in range(chunks):
        x = values[c * chunk : (c + 1) * chunk]
        small, large = _centroids(x, places[c], count)
        scales[2 * c] = np.uint16(np.uint32(small) >> np.uint32(16))
        scales[2 * c + 1] = np.uint16(np.uint32(large) >> np.uint32(16))
        _write(x, places[c], count, (small, large), codes[c * code_bytes : (c + 1) * code_bytes])


@njit(types.void(_SCALES_IN, _BYTES_IN, _PLACES_IN, types.float32, _FLOATS_OUT), **_COMPILE)
def add(scales: Scales, codes: Codes, places: Places, factor: np.float32, out: Float32) -> None:
    """See `SentKernels.add`."""
    chunks, count = places.shape
    chunk, code_bytes = out.size // max(chunks, 1), (count + 3) // 4
    for c in range(chunks):
        q, kept = codes[c * code_bytes : (c + 1) * code_bytes], places[c]
        y = out[c * chunk : (c + 1) * chunk]
        small = np.float32(factor * np.int32(_widen(scales[2 * c])).view(np.float32))
        large = np.float32(factor * np.int32(_widen(scales[2 * c + 1])).view(np.float32))
        for e in range(count):
            code = np.int32(np.int32(q[e % code_bytes]) >> np.int32(e // code_bytes * 2))
            level = large if np.int32(code & np.int32(1)) != np.int32(0) else small
            level = -level if np.int32(code & np.int32(2)) != np.int32(0) else level
            y[kept[e]] += level


@njit(types.float64(_SCALES_IN, _BYTES_IN, types.int64), **_COMPILE)
def sum_of_squares(scales: Scales, codes: Codes, count: int) -> float:
    """See `SentKernels.sum_of_squares`."""
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


SENT = SentKernels(send, add, sum_of_squares)
