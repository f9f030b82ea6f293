"""Compiled arithmetic of the E3M0 codec; `blockwise_reference` says in numpy what it does.

Integer operations on the bits of float32 numbers: adding half a binade to the bits rounds a
magnitude to a power of two. The rules of `blockwise_numba` for compiled code hold here too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from runnel.kernels.blockwise_numba import nibbles_canonical
from runnel.kernels.prefetch import ask_for
from runnel.kernels.signatures import BlockKernels, Codes, Float32, Scales

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]
_BYTES_IN = types.Array(types.uint8, 1, "C", readonly=True)
_BYTES_OUT = types.uint8[::1]

_MAGNITUDE = np.int32(0x7FFFFFFF)
_SIGN = np.int32(-0x80000000)
_INFINITE = np.int32(0x7F800000)
_LARGEST = np.int32(0x7F7FFFFF)
_HALF_BINADE = np.int32(0x00400000)
_SMALLEST_EXPONENT = np.int32(
    8
)  # the lowest of a block's seven powers is then 2^-125, still normal


@njit(inline="always")
def _rounded(magnitude: Any) -> Any:
    """Bits whose exponent is that of the nearest power of two, ties up, none above 2^127."""
    return np.int32(min(np.int32(magnitude + _HALF_BINADE), _LARGEST))


@njit(inline="always")
def _quantize(v: Any, exponent: Any) -> Any:
    """The nibble of `v` and what it leaves of it; `exponent` is that of the block's highest power."""
    u = np.float32(v).view(np.int32)
    r = _rounded(np.int32(u & _MAGNITUDE))
    kept = r >= np.int32(np.int32(exponent - np.int32(6)) << np.int32(23))
    power = np.int32(np.int32(r & _INFINITE) | np.int32(u & _SIGN))
    power = power if kept else np.int32(0)
    steps = np.int32(np.int32(r >> np.int32(23)) + np.int32(np.int32(7) - exponent))
    code = np.int32(steps | np.int32(np.int32(u >> np.int32(31)) & np.int32(8)))
    code = code if kept else np.int32(0)
    return code, np.float32(v - np.int32(power).view(np.float32))


@njit(inline="always")
def _value(nibble: Any, base: Any) -> Any:
    """The float of one nibble: its sign, and the power of two with exponent ``base + code``, or zero."""
    code = np.int32(nibble & np.int32(7))
    sign = np.int32(np.int32(nibble >> np.int32(3)) << np.int32(31))
    bits = np.int32(np.int32(np.int32(code + base) << np.int32(23)) | sign)
    bits = bits if code > np.int32(0) else np.int32(0)
    return np.int32(bits).view(np.float32)


@njit(
    types.int64(_FLOATS_IN, _FLOATS_IN, _FLOATS_OUT, _BYTES_OUT, _BYTES_OUT, types.int64),
    **_COMPILE,
)
def e3m0_encode(
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
        x = values[b * block : (b + 1) * block]
        more = added[b * step : b * step + block]
        ask_for(values, (b + 4) * block, block)
        ask_for(added, (b + 4) * step, block)
        largest = np.int32(0)
        for i in range(block):
            v = np.float32(x[i] + more[i])
            held[i] = v
            largest = max(largest, np.int32(v.view(np.int32) & _MAGNITUDE))
        if largest >= _INFINITE:
            return b
        exponent = np.int32(max(_rounded(largest) >> np.int32(23), _SMALLEST_EXPONENT))
        scales[b] = np.uint8(exponent)
        rest = residual[b * stride : b * stride + half]
        for i in range(half):
            code, left = _quantize(held[i], exponent)
            low_codes[i] = code
            rest[i] = left
        rest = residual[b * stride + half : b * stride + block]
        q = codes[b * half : (b + 1) * half]
        for i in range(half):
            code, left = _quantize(second[i], exponent)
            q[i] = np.uint8(np.int32(low_codes[i] | np.int32(code << np.int32(4))))
            rest[i] = left
    return -1


@njit(types.void(_BYTES_IN, _BYTES_IN, _FLOATS_OUT, types.int64), **_COMPILE)
def e3m0_decode(codes: Codes, scales: Scales, out: Float32, block: int) -> None:
    """See `BlockKernels.decode`."""
    half = block // 2
    for b in range(scales.size):
        q = codes[b * half : (b + 1) * half]
        first = out[b * block : b * block + half]
        second = out[b * block + half : (b + 1) * block]
        base = np.int32(np.int32(scales[b]) - np.int32(7))
        for i in range(half):
            first[i] = _value(np.int32(np.int32(q[i]) & np.int32(15)), base)
        for i in range(half):
            second[i] = _value(np.int32(np.int32(q[i]) >> np.int32(4)), base)


@njit(types.void(_BYTES_IN, _BYTES_IN, types.float32, _FLOATS_OUT, types.int64), **_COMPILE)
def e3m0_accumulate(
    codes: Codes, scales: Scales, factor: np.float32, out: Float32, block: int
) -> None:
    """See `BlockKernels.accumulate`."""
    half = block // 2
    for b in range(scales.size):
        q = codes[b * half : (b + 1) * half]
        first = out[b * block : b * block + half]
        second = out[b * block + half : (b + 1) * block]
        base = np.int32(np.int32(scales[b]) - np.int32(7))
        for i in range(half):
            first[i] += np.float32(factor * _value(np.int32(np.int32(q[i]) & np.int32(15)), base))
        for i in range(half):
            second[i] += np.float32(factor * _value(np.int32(np.int32(q[i]) >> np.int32(4)), base))


@njit(types.float64(_BYTES_IN, _BYTES_IN, types.int64), **_COMPILE)
def e3m0_sum_of_squares(codes: Codes, scales: Scales, block: int) -> float:
    """See `BlockKernels.sum_of_squares`."""
    half = block // 2
    total = 0.0
    for b in range(scales.size):
        q = codes[b * half : (b + 1) * half]
        squares = np.int32(0)
        for i in range(half):
            low = np.int32(np.int32(q[i]) & np.int32(7))
            high = np.int32(np.int32(np.int32(q[i]) >> np.int32(4)) & np.int32(7))
            # 4^code, and nothing for code 0: the shift gives 1 there, which the mask takes away
            first = np.int32(np.int32(np.int32(1) << np.int32(low + low)) & np.int32(-2))
            second = np.int32(np.int32(np.int32(1) << np.int32(high + high)) & np.int32(-2))
            squares = np.int32(squares + np.int32(first + second))
        lowest = np.int32(np.int32(scales[b]) - np.int32(7 + 127))  # of code 0, were it a power
        total += np.float64(squares) * 4.0 ** np.float64(lowest)
    return total


E3M0 = BlockKernels(
    e3m0_encode, e3m0_decode, e3m0_accumulate, nibbles_canonical, e3m0_sum_of_squares
)
