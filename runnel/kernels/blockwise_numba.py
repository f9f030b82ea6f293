"""Compiled arithmetic of the absmax codecs, int8 and int4; `blockwise_reference` says in numpy what it does.

Serial, `nogil`, compiled for pinned types when the module is imported, cached on disk. Never
`fastmath` or `prange`: the first changes bits, the second aborts when two Python threads enter.
Inlined functions live in the file that uses them, because numba's cache watches only the caller's
file. Every integer operation is wrapped in ``np.int32``, or numba would widen it to 64 bits. Each
block passes through a small buffer, so that `residual` may be `values`: the loops that write would
otherwise fail the compiler's overlap check and run one value at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from runnel.kernels.prefetch import ask_for
from runnel.kernels.signatures import BlockKernels, Codes, Float32, Scales

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]
_INT8_IN = types.Array(types.int8, 1, "C", readonly=True)
_UINT8_IN = types.Array(types.uint8, 1, "C", readonly=True)
_SCALES_IN = types.Array(types.uint16, 1, "C", readonly=True)
_SCALES_OUT = types.uint16[::1]

_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = np.int32(0x7F800000)
_SMALLEST_SCALE = np.uint32(0x08000000)  # 2^-111: codes times scale stay normal numbers
_INT8_LARGEST_SCALE = np.uint32(0x7C010000)  # the largest bf16 that 127 times is finite
_INT4_LARGEST_SCALE = np.uint32(0x7E120000)  # the largest bf16 that 7 times is finite
_ROUNDER = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer, half to even
_ROUNDER_BITS = np.int32(0x4B400000)


@njit(inline="always")
def _hold(x: Float32, more: Float32, held: Float32) -> Any:
    """Adds up a block in a buffer and returns the bits of its largest magnitude."""
    largest = np.int32(0)
    for i in range(held.size):
        v = np.float32(x[i] + more[i])
        held[i] = v
        largest = max(largest, np.int32(v.view(np.int32) & _MAGNITUDE))
    return largest


@njit(inline="always")
def _scale_bits(largest: Any, steps: Any, limit: Any) -> Any:
    """The smallest bf16 at or above largest / steps within the allowed scales, as float32 bits."""
    step = np.float32(np.int32(largest).view(np.float32) / np.float32(steps))
    bits = np.uint32(np.uint32(step.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000))
    return np.uint32(min(max(bits, _SMALLEST_SCALE), np.uint32(limit)))


@njit(inline="always")
def _widen(scale: Any) -> Any:
    return np.uint32(np.uint32(scale) << np.uint32(16)).view(np.float32)


@njit(inline="always")
def _quantize(v: Any, inverse: Any, scale: Any) -> Any:
    """The code of `v` and what the code leaves of it."""
    t = np.float32(np.float32(v * inverse) + _ROUNDER)
    code = np.int32(t.view(np.int32) - _ROUNDER_BITS)
    return code, np.float32(v - np.float32(np.float32(t - _ROUNDER) * scale))


@njit(inline="always")
def _signed_integer(nibble: Any) -> Any:
    """Two's complement of four bits."""
    return np.int32(np.int32(nibble ^ np.int32(8)) - np.int32(8))


@njit(inline="always")
def _signed(nibble: Any) -> Any:
    """Two's complement of four bits, as a float."""
    return np.float32(_signed_integer(nibble))


@njit(
    types.int64(_FLOATS_IN, _FLOATS_IN, _FLOATS_OUT, types.int8[::1], _SCALES_OUT, types.int64),
    **_COMPILE,
)
def int8_encode(
    values: Float32, added: Float32, residual: Float32, codes: Codes, scales: Scales, block: int
) -> int:
    """See `BlockKernels.encode`."""
    held = np.empty(block, np.float32)
    stride = block if residual.size == values.size else 0
    step = block if added.size == values.size else 0
    for b in range(scales.size):
        more = added[b * step : b * step + block]
        ask_for(values, (b + 2) * block, block)
        ask_for(added, (b + 2) * step, block)
        largest = _hold(values[b * block : (b + 1) * block], more, held)
        if largest >= _INFINITE:
            return b
        bits = _scale_bits(largest, 127, _INT8_LARGEST_SCALE)
        scales[b] = np.uint16(bits >> np.uint32(16))
        scale = np.uint32(bits).view(np.float32)
        inverse = np.float32(np.float32(1) / scale)
        rest = residual[b * stride : b * stride + block]
        q = codes[b * block : (b + 1) * block]
        for i in range(block):
            code, left = _quantize(held[i], inverse, scale)
            q[i] = np.int8(code)
            rest[i] = left
    return -1


@njit(types.void(_INT8_IN, _SCALES_IN, _FLOATS_OUT, types.int64), **_COMPILE)
def int8_decode(codes: Codes, scales: Scales, out: Float32, block: int) -> None:
    """See `BlockKernels.decode`."""
    for b in range(scales.size):
        q = codes[b * block : (b + 1) * block]
        y = out[b * block : (b + 1) * block]
        scale = _widen(scales[b])
        for i in range(block):
            y[i] = np.float32(np.int32(q[i])) * scale


@njit(types.void(_INT8_IN, _SCALES_IN, types.float32, _FLOATS_OUT, types.int64), **_COMPILE)
def int8_accumulate(
    codes: Codes, scales: Scales, factor: np.float32, out: Float32, block: int
) -> None:
    """See `BlockKernels.accumulate`."""
    for b in range(scales.size):
        q = codes[b * block : (b + 1) * block]
        y = out[b * block : (b + 1) * block]
        scale = _widen(scales[b])
        for i in range(block):
            value = np.float32(np.float32(np.int32(q[i])) * scale)
            y[i] += np.float32(factor * value)


@njit(types.boolean(_INT8_IN), **_COMPILE)
def int8_canonical(codes: Codes) -> bool:
    """See `BlockKernels.canonical`: -128 is never sent."""
    smallest = np.int8(0)
    for i in range(codes.size):
        smallest = min(smallest, codes[i])
    return bool(smallest > np.int8(-128))


@njit(types.float64(_INT8_IN, _SCALES_IN, types.int64), **_COMPILE)
def int8_sum_of_squares(codes: Codes, scales: Scales, block: int) -> float:
    """See `BlockKernels.sum_of_squares`."""
    total = 0.0
    for b in range(scales.size):
        q = codes[b * block : (b + 1) * block]
        squares = np.int32(0)
        for i in range(block):
            squares = np.int32(squares + np.int32(np.int32(q[i]) * np.int32(q[i])))
        scale = np.float64(_widen(scales[b]))
        total += np.float64(squares) * (scale * scale)
    return total


@njit(
    types.int64(_FLOATS_IN, _FLOATS_IN, _FLOATS_OUT, types.uint8[::1], _SCALES_OUT, types.int64),
    **_COMPILE,
)
def int4_encode(
    values: Float32, added: Float32, residual: Float32, codes: Codes, scales: Scales, block: int
) -> int:
    """See `BlockKernels.encode`."""
    half = block // 2
    held = np.empty(block, np.float32)
    low_codes = np.empty(half, np.int32)
    second = held[half:]
    stride = block if residual.size == values.size else 0
    step = block if added.size == values.size else 0
    for b in range(scales.size):
        more = added[b * step : b * step + block]
        ask_for(values, (b + 2) * block, block)
        ask_for(added, (b + 2) * step, block)
        largest = _hold(values[b * block : (b + 1) * block], more, held)
        if largest >= _INFINITE:
            return b
        bits = _scale_bits(largest, 7, _INT4_LARGEST_SCALE)
        scales[b] = np.uint16(bits >> np.uint32(16))
        scale = np.uint32(bits).view(np.float32)
        inverse = np.float32(np.float32(1) / scale)
        rest = residual[b * stride : b * stride + half]
        for i in range(half):
            code, left = _quantize(held[i], inverse, scale)
            low_codes[i] = np.int32(code & np.int32(15))
            rest[i] = left
        rest = residual[b * stride + half : b * stride + block]
        q = codes[b * half : (b + 1) * half]
        for i in range(half):
            code, left = _quantize(second[i], inverse, scale)
            q[i] = np.uint8(np.int32(low_codes[i] | np.int32(code << np.int32(4))))
            rest[i] = left
    return -1


@njit(types.void(_UINT8_IN, _SCALES_IN, _FLOATS_OUT, types.int64), **_COMPILE)
def int4_decode(codes: Codes, scales: Scales, out: Float32, block: int) -> None:
    """See `BlockKernels.decode`."""
    half = block // 2
    for b in range(scales.size):
        q = codes[b * half : (b + 1) * half]
        first = out[b * block : b * block + half]
        second = out[b * block + half : (b + 1) * block]
        scale = _widen(scales[b])
        for i in range(half):
            first[i] = _signed(np.int32(np.int32(q[i]) & np.int32(15))) * scale
        for i in range(half):
            second[i] = _signed(np.int32(np.int32(q[i]) >> np.int32(4))) * scale


@njit(types.void(_UINT8_IN, _SCALES_IN, types.float32, _FLOATS_OUT, types.int64), **_COMPILE)
def int4_accumulate(
    codes: Codes, scales: Scales, factor: np.float32, out: Float32, block: int
) -> None:
    """See `BlockKernels.accumulate`."""
    half = block // 2
    for b in range(scales.size):
        q = codes[b * half : (b + 1) * half]
        first = out[b * block : b * block + half]
        second = out[b * block + half : (b + 1) * block]
        scale = _widen(scales[b])
        for i in range(half):
            value = np.float32(_signed(np.int32(np.int32(q[i]) & np.int32(15))) * scale)
            first[i] += np.float32(factor * value)
        for i in range(half):
            value = np.float32(_signed(np.int32(np.int32(q[i]) >> np.int32(4))) * scale)
            second[i] += np.float32(factor * value)


@njit(types.float64(_UINT8_IN, _SCALES_IN, types.int64), **_COMPILE)
def int4_sum_of_squares(codes: Codes, scales: Scales, block: int) -> float:
    """See `BlockKernels.sum_of_squares`."""
    half = block // 2
    total = 0.0
    for b in range(scales.size):
        q = codes[b * half : (b + 1) * half]
        squares = np.int32(0)
        for i in range(half):
            low = _signed_integer(np.int32(np.int32(q[i]) & np.int32(15)))
            high = _signed_integer(np.int32(np.int32(q[i]) >> np.int32(4)))
            both = np.int32(np.int32(low * low) + np.int32(high * high))
            squares = np.int32(squares + both)
        scale = np.float64(_widen(scales[b]))
        total += np.float64(squares) * (scale * scale)
    return total


@njit(types.boolean(_UINT8_IN), **_COMPILE)
def nibbles_canonical(codes: Codes) -> bool:
    """See `BlockKernels.canonical`: the nibble 8 (-8 in int4, -0 in E3M0) is never sent."""
    found = np.uint8(0)
    for i in range(codes.size):
        q = codes[i]
        low = np.uint8(q & np.uint8(0x0F)) == np.uint8(0x08)
        high = np.uint8(q & np.uint8(0xF0)) == np.uint8(0x80)
        found = np.uint8(found | (np.uint8(1) if low or high else np.uint8(0)))
    return bool(found == np.uint8(0))


INT8 = BlockKernels(int8_encode, int8_decode, int8_accumulate, int8_canonical, int8_sum_of_squares)
INT4 = BlockKernels(
    int4_encode, int4_decode, int4_accumulate, nibbles_canonical, int4_sum_of_squares
)
