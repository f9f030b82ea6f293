"""Compiled arithmetic of the codecs of one and two bits; `few_bits_reference` says in numpy what it does.

The rules of `blockwise_numba` for compiled code hold here too. A block passes through a buffer whose
size is a multiple of 64, with zeros behind a short block, so that sums go lane by lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from runnel.kernels.signatures import BlockKernels, Codes, Float32, Scales

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
_SPREAD = np.float32(1.5)
_LANES = 64


@njit(inline="always")
def _shrunk(v: Any) -> Any:
    """The magnitude as it is added up."""
    u = np.int32(np.float32(v).view(np.int32) & _MAGNITUDE)
    u = u if u >= _NEGLIGIBLE else np.int32(0)
    return np.float32(np.int32(u).view(np.float32) * _SHRINK)


@njit(inline="always")
def _fold(lanes: Float32) -> Any:
    """Adds the upper half of the lanes to the lower one until one is left."""
    for j in range(32):
        lanes[j] += lanes[j + 32]
    for j in range(16):
        lanes[j] += lanes[j + 16]
    for j in range(8):
        lanes[j] += lanes[j + 8]
    for j in range(4):
        lanes[j] += lanes[j + 4]
    return np.float32(np.float32(lanes[0] + lanes[2]) + np.float32(lanes[1] + lanes[3]))


@njit(inline="always")
def _hold(x: Float32, more: Float32, held: Float32, lanes: Float32) -> Any:
    """Adds up a block in a buffer, and its magnitudes in `lanes`; the bits of the largest one."""
    largest = np.int32(0)
    for j in range(_LANES):
        lanes[j] = np.float32(0)
    whole = x.size - x.size % _LANES
    for start in range(0, whole, _LANES):
        y, z = x[start : start + _LANES], more[start : start + _LANES]
        h = held[start : start + _LANES]
        for j in range(_LANES):
            v = np.float32(y[j] + z[j])
            h[j] = v
            largest = max(largest, np.int32(v.view(np.int32) & _MAGNITUDE))
            lanes[j] += _shrunk(v)
    for j in range(x.size - whole):
        v = np.float32(x[whole + j] + more[whole + j])
        held[whole + j] = v
        largest = max(largest, np.int32(v.view(np.int32) & _MAGNITUDE))
        lanes[j] += _shrunk(v)
    return largest


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
def _centroids(held: Float32, block: int, threshold: Any, lows: Float32, highs: Float32) -> Any:
    """The bits of the two mean magnitudes of a block; `lows` and `highs` are scratch."""
    for j in range(_LANES):
        lows[j] = np.float32(0)
        highs[j] = np.float32(0)
    count = np.int32(0)
    for start in range(0, held.size, _LANES):
        y = held[start : start + _LANES]
        for j in range(_LANES):
            s = _shrunk(y[j])
            above = s > threshold
            highs[j] += s if above else np.float32(0)
            lows[j] += np.float32(0) if above else s
            count = np.int32(count + (np.int32(1) if above else np.int32(0)))
    rest = np.int32(max(np.int32(np.int32(block) - count), np.int32(1)))
    low = _scale_bits(np.float32(_fold(lows) / np.float32(rest)))
    high = _scale_bits(np.float32(_fold(highs) / np.float32(max(count, np.int32(1)))))
    return np.int32(low), np.int32(max(low, high))


@njit(
    types.int64(_FLOATS_IN, _FLOATS_IN, _FLOATS_OUT, _BYTES_OUT, _SCALES_OUT, types.int64),
    **_COMPILE,
)
def two_bit_encode(
    values: Float32, added: Float32, residual: Float32, codes: Codes, scales: Scales, block: int
) -> int:
    """See `BlockKernels.encode`."""
    quarter = (block + 3) // 4
    held = np.zeros((block + _LANES - 1) // _LANES * _LANES, np.float32)
    lanes, other = np.empty(_LANES, np.float32), np.empty(_LANES, np.float32)
    packed = np.empty(quarter, np.int32)
    stride = block if residual.size == values.size else 0
    step = block if added.size == values.size else 0
    for b in range(scales.size // 2):
        more = added[b * step : b * step + block]
        if _hold(values[b * block : (b + 1) * block], more, held, lanes) >= _INFINITE:
            return b
        threshold = np.float32(_SPREAD * np.float32(_fold(lanes) / np.float32(block)))
        low, high = _centroids(held, block, threshold, lanes, other)
        scales[2 * b] = np.uint16(np.uint32(low) >> np.uint32(16))
        scales[2 * b + 1] = np.uint16(np.uint32(high) >> np.uint32(16))
        middle = np.float32(
            np.float32(np.int32(low).view(np.float32) * np.float32(0.5))
            + np.float32(np.int32(high).view(np.float32) * np.float32(0.5))
        ).view(np.int32)
        for i in range(quarter):
            packed[i] = np.int32(0)
        for j in range(4):
            first, last = j * quarter, min((j + 1) * quarter, block)
            y = held[first:last]
            rest = residual[b * stride + first : b * stride + last]
            bit, sign = np.int32(1 << (2 * j)), np.int32(2 << (2 * j))
            for i in range(last - first):
                v = y[i]
                u = np.float32(v).view(np.int32)
                large = np.int32(u & _MAGNITUDE) > middle
                level = np.int32((high if large else low) | np.int32(u & _SIGN))
                rest[i] = v - np.int32(level).view(np.float32)
                code = np.int32(
                    (bit if large else np.int32(0)) | (sign if u < np.int32(0) else np.int32(0))
                )
                packed[i] = np.int32(packed[i] | code)
        q = codes[b * quarter : (b + 1) * quarter]
        for i in range(quarter):
            q[i] = np.uint8(packed[i])
    return -1


@njit(types.void(_BYTES_IN, _SCALES_IN, _FLOATS_OUT, types.int64), **_COMPILE)
def two_bit_decode(codes: Codes, scales: Scales, out: Float32, block: int) -> None:
    """See `BlockKernels.decode`."""
    quarter = (block + 3) // 4
    for b in range(scales.size // 2):
        q = codes[b * quarter : (b + 1) * quarter]
        low, high = _widen(scales[2 * b]), _widen(scales[2 * b + 1])
        for j in range(4):
            first, last = j * quarter, min((j + 1) * quarter, block)
            y = out[b * block + first : b * block + last]
            bit, up = np.int32(1 << (2 * j)), np.int32(30 - 2 * j)
            for i in range(last - first):
                c = np.int32(q[i])
                level = high if np.int32(c & bit) != np.int32(0) else low
                y[i] = np.int32(level | np.int32(np.int32(c << up) & _SIGN)).view(np.float32)


@njit(types.void(_BYTES_IN, _SCALES_IN, types.float32, _FLOATS_OUT, types.int64), **_COMPILE)
def two_bit_accumulate(
    codes: Codes, scales: Scales, factor: np.float32, out: Float32, block: int
) -> None:
    """See `BlockKernels.accumulate`; a product with a sign is the product of the magnitude with that sign."""
    quarter = (block + 3) // 4
    for b in range(scales.size // 2):
        q = codes[b * quarter : (b + 1) * quarter]
        low = np.float32(factor * np.int32(_widen(scales[2 * b])).view(np.float32)).view(np.int32)
        high = np.float32(factor * np.int32(_widen(scales[2 * b + 1])).view(np.float32)).view(
            np.int32
        )
        for j in range(4):
            first, last = j * quarter, min((j + 1) * quarter, block)
            y = out[b * block + first : b * block + last]
            bit, up = np.int32(1 << (2 * j)), np.int32(30 - 2 * j)
            for i in range(last - first):
                c = np.int32(q[i])
                level = high if np.int32(c & bit) != np.int32(0) else low
                y[i] += np.int32(level ^ np.int32(np.int32(c << up) & _SIGN)).view(np.float32)


@njit(types.float64(_BYTES_IN, _SCALES_IN, types.int64), **_COMPILE)
def two_bit_sum_of_squares(codes: Codes, scales: Scales, block: int) -> float:
    """See `BlockKernels.sum_of_squares`."""
    quarter = (block + 3) // 4
    total = 0.0
    for b in range(scales.size // 2):
        q = codes[b * quarter : (b + 1) * quarter]
        large = np.int32(0)
        for i in range(quarter):
            c = np.int32(np.int32(q[i]) & np.int32(0x55))
            c = np.int32(np.int32(c & np.int32(0x11)) + np.int32(np.int32(c >> 2) & np.int32(0x11)))
            large = np.int32(large + np.int32(np.int32(c & np.int32(15)) + np.int32(c >> 4)))
        low = np.float64(np.int32(_widen(scales[2 * b])).view(np.float32))
        high = np.float64(np.int32(_widen(scales[2 * b + 1])).view(np.float32))
        few, many = np.float64(large), np.float64(np.int32(block) - large)
        total += many * (low * low) + few * (high * high)
    return total


@njit(
    types.int64(_FLOATS_IN, _FLOATS_IN, _FLOATS_OUT, _BYTES_OUT, _SCALES_OUT, types.int64),
    **_COMPILE,
)
def sign_encode(
    values: Float32, added: Float32, residual: Float32, codes: Codes, scales: Scales, block: int
) -> int:
    """See `BlockKernels.encode`."""
    eighth = (block + 7) // 8
    held = np.zeros((block + _LANES - 1) // _LANES * _LANES, np.float32)
    lanes = np.empty(_LANES, np.float32)
    packed = np.empty(eighth, np.int32)
    stride = block if residual.size == values.size else 0
    step = block if added.size == values.size else 0
    for b in range(scales.size):
        more = added[b * step : b * step + block]
        if _hold(values[b * block : (b + 1) * block], more, held, lanes) >= _INFINITE:
            return b
        scale = np.int32(_scale_bits(np.float32(_fold(lanes) / np.float32(block))))
        scales[b] = np.uint16(np.uint32(scale) >> np.uint32(16))
        for i in range(eighth):
            packed[i] = np.int32(0)
        for j in range(8):
            first, last = j * eighth, min((j + 1) * eighth, block)
            y = held[first:last]
            rest = residual[b * stride + first : b * stride + last]
            bit = np.int32(1 << j)
            for i in range(last - first):
                v = y[i]
                u = np.float32(v).view(np.int32)
                level = np.int32(scale | np.int32(u & _SIGN))
                rest[i] = v - np.int32(level).view(np.float32)
                code = bit if u < np.int32(0) else np.int32(0)
                packed[i] = np.int32(packed[i] | code)
        q = codes[b * eighth : (b + 1) * eighth]
        for i in range(eighth):
            q[i] = np.uint8(packed[i])
    return -1


@njit(types.void(_BYTES_IN, _SCALES_IN, _FLOATS_OUT, types.int64), **_COMPILE)
def sign_decode(codes: Codes, scales: Scales, out: Float32, block: int) -> None:
    """See `BlockKernels.decode`."""
    eighth = (block + 7) // 8
    for b in range(scales.size):
        q = codes[b * eighth : (b + 1) * eighth]
        scale = _widen(scales[b])
        for j in range(8):
            first, last = j * eighth, min((j + 1) * eighth, block)
            y = out[b * block + first : b * block + last]
            up = np.int32(31 - j)
            for i in range(last - first):
                sign = np.int32(np.int32(np.int32(q[i]) << up) & _SIGN)
                y[i] = np.int32(scale | sign).view(np.float32)


@njit(types.void(_BYTES_IN, _SCALES_IN, types.float32, _FLOATS_OUT, types.int64), **_COMPILE)
def sign_accumulate(
    codes: Codes, scales: Scales, factor: np.float32, out: Float32, block: int
) -> None:
    """See `BlockKernels.accumulate`."""
    eighth = (block + 7) // 8
    for b in range(scales.size):
        q = codes[b * eighth : (b + 1) * eighth]
        scale = np.float32(factor * np.int32(_widen(scales[b])).view(np.float32)).view(np.int32)
        for j in range(8):
            first, last = j * eighth, min((j + 1) * eighth, block)
            y = out[b * block + first : b * block + last]
            up = np.int32(31 - j)
            for i in range(last - first):
                sign = np.int32(np.int32(np.int32(q[i]) << up) & _SIGN)
                y[i] += np.int32(scale ^ sign).view(np.float32)


@njit(types.float64(_BYTES_IN, _SCALES_IN, types.int64), **_COMPILE)
def sign_sum_of_squares(codes: Codes, scales: Scales, block: int) -> float:  # noqa: ARG001
    """See `BlockKernels.sum_of_squares`."""
    total = 0.0
    for b in range(scales.size):
        scale = np.float64(np.int32(_widen(scales[b])).view(np.float32))
        total += np.float64(block) * (scale * scale)
    return total


@njit(types.boolean(_BYTES_IN), **_COMPILE)
def every_code(codes: Codes) -> bool:  # noqa: ARG001
    """See `BlockKernels.canonical`: all codes are used."""
    return True


TWO_BIT = BlockKernels(
    two_bit_encode, two_bit_decode, two_bit_accumulate, every_code, two_bit_sum_of_squares
)
SIGN = BlockKernels(sign_encode, sign_decode, sign_accumulate, every_code, sign_sum_of_squares)
