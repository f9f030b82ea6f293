"""Compiled arithmetic of the codecs of 16 bits, fp16 and bf16; `halves_reference` says in numpy what it does.

The rules of `blockwise_numba` for compiled code hold here too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from runnel.kernels.signatures import Float32, HalfKernels, Halves

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]
_HALVES_IN = types.Array(types.uint16, 1, "C", readonly=True)
_HALVES_OUT = types.uint16[::1]

_MAGNITUDE = np.int32(0x7FFFFFFF)
_CHUNK = 1024

_LARGEST_HALF = np.int32(0x477FE000)  # 65504
_SMALLEST_NORMAL_HALF = np.int32(0x38800000)  # 2^-14
_SMALLEST_NORMAL = np.float32(2.0**-14)
_SUBNORMAL_ROUNDER = np.float32(
    0.5
)  # its unit in the last place is 2^-24, that of subnormal halves
_SUBNORMAL_ROUNDER_BITS = np.int32(0x3F000000)
_REBIAS = np.int32(112 << 23)

_LARGEST_BFLOAT = np.int32(0x7F7F)
_SMALLEST_BFLOAT = np.int32(0x0080)  # 2^-126: what is below may be flushed when it is read back


@njit(inline="always")
def _to_half(v: Any) -> Any:
    """Bits of the half nearest to `v`, ties to even, clamped. F. Giesen, float_to_half_fast3_rtne."""
    u = np.float32(v).view(np.int32)
    m = np.int32(min(np.int32(u & _MAGNITUDE), _LARGEST_HALF))
    shifted = np.float32(np.int32(m).view(np.float32) + _SUBNORMAL_ROUNDER)
    subnormal = np.int32(shifted.view(np.int32) - _SUBNORMAL_ROUNDER_BITS)
    odd = np.int32(np.int32(m >> np.int32(13)) & np.int32(1))
    normal = np.int32(np.int32(np.int32(m - _REBIAS) + np.int32(0xFFF)) + odd) >> np.int32(13)
    bits = subnormal if m < _SMALLEST_NORMAL_HALF else np.int32(normal)
    return np.int32(bits | np.int32(np.int32(u >> np.int32(16)) & np.int32(0x8000)))


@njit(inline="always")
def _from_half(bits: Any) -> Any:
    """The float of a finite half's bits."""
    m = np.int32(np.int32(bits & np.int32(0x7FFF)) << np.int32(13))
    normal = np.int32(m + _REBIAS)
    shifted = np.int32(normal + np.int32(1 << 23)).view(np.float32)
    subnormal = np.float32(shifted - _SMALLEST_NORMAL).view(np.int32)
    magnitude = subnormal if m < np.int32(1 << 23) else normal
    sign = np.int32(np.int32(bits & np.int32(0x8000)) << np.int32(16))
    return np.int32(magnitude | sign).view(np.float32)


@njit(types.void(_FLOATS_IN, _FLOATS_OUT, _HALVES_OUT), **_COMPILE)
def fp16_encode(values: Float32, residual: Float32, halves: Halves) -> None:
    """See `HalfKernels.encode`."""
    held = np.empty(_CHUNK, np.float32)
    for start in range(0, values.size, _CHUNK):
        x = values[start : start + _CHUNK]
        rest = residual[start : start + _CHUNK]
        h = halves[start : start + _CHUNK]
        for i in range(x.size):
            held[i] = x[i]
        for i in range(x.size):
            bits = _to_half(held[i])
            h[i] = np.uint16(bits)
            rest[i] = held[i] - _from_half(bits)


@njit(types.void(_HALVES_IN, _FLOATS_OUT), **_COMPILE)
def fp16_decode(halves: Halves, out: Float32) -> None:
    """See `HalfKernels.decode`."""
    for i in range(halves.size):
        out[i] = _from_half(np.int32(halves[i]))


@njit(types.void(_HALVES_IN, types.float32, _FLOATS_OUT), **_COMPILE)
def fp16_accumulate(halves: Halves, factor: np.float32, out: Float32) -> None:
    """See `HalfKernels.accumulate`."""
    for i in range(halves.size):
        out[i] += np.float32(factor * _from_half(np.int32(halves[i])))


@njit(types.boolean(_HALVES_IN), **_COMPILE)
def fp16_canonical(halves: Halves) -> bool:
    """See `HalfKernels.canonical`."""
    largest = np.uint16(0)
    for i in range(halves.size):
        largest = max(largest, np.uint16(halves[i] & np.uint16(0x7FFF)))
    return bool(largest < np.uint16(0x7C00))


@njit(inline="always")
def _to_bfloat(v: Any) -> Any:
    """Bits of the bfloat16 nearest to `v`, ties to even, clamped; +0 for what would be subnormal."""
    u = np.int32(np.float32(v).view(np.int32))
    m = np.int32(u & _MAGNITUDE)
    odd = np.int32(np.int32(m >> np.int32(16)) & np.int32(1))
    nearest = np.int32(np.int32(np.int32(m + np.int32(0x7FFF)) + odd) >> np.int32(16))
    nearest = np.int32(min(nearest, _LARGEST_BFLOAT))
    signed = np.int32(nearest | np.int32(np.int32(u >> np.int32(16)) & np.int32(0x8000)))
    return signed if nearest >= _SMALLEST_BFLOAT else np.int32(0)


@njit(inline="always")
def _from_bfloat(bits: Any) -> Any:
    """The float of a bfloat16's bits."""
    return np.int32(np.int32(bits) << np.int32(16)).view(np.float32)


@njit(types.void(_FLOATS_IN, _FLOATS_OUT, _HALVES_OUT), **_COMPILE)
def bf16_encode(values: Float32, residual: Float32, halves: Halves) -> None:
    """See `HalfKernels.encode`."""
    held = np.empty(_CHUNK, np.float32)
    for start in range(0, values.size, _CHUNK):
        x = values[start : start + _CHUNK]
        rest = residual[start : start + _CHUNK]
        h = halves[start : start + _CHUNK]
        for i in range(x.size):
            held[i] = x[i]
        for i in range(x.size):
            bits = _to_bfloat(held[i])
            h[i] = np.uint16(bits)
            rest[i] = held[i] - _from_bfloat(bits)


@njit(types.void(_HALVES_IN, _FLOATS_OUT), **_COMPILE)
def bf16_decode(halves: Halves, out: Float32) -> None:
    """See `HalfKernels.decode`."""
    for i in range(halves.size):
        out[i] = _from_bfloat(np.int32(halves[i]))


@njit(types.void(_HALVES_IN, types.float32, _FLOATS_OUT), **_COMPILE)
def bf16_accumulate(halves: Halves, factor: np.float32, out: Float32) -> None:
    """See `HalfKernels.accumulate`."""
    for i in range(halves.size):
        out[i] += np.float32(factor * _from_bfloat(np.int32(halves[i])))


@njit(types.boolean(_HALVES_IN), **_COMPILE)
def bf16_canonical(halves: Halves) -> bool:
    """See `HalfKernels.canonical`."""
    wrong = np.int32(0)
    for i in range(halves.size):
        m = np.int32(np.int32(halves[i]) & np.int32(0x7FFF))
        below = m < _SMALLEST_BFLOAT and halves[i] != np.uint16(0)
        wrong = np.int32(wrong | (np.int32(1) if below or m > _LARGEST_BFLOAT else np.int32(0)))
    return bool(wrong == np.int32(0))


FP16 = HalfKernels(fp16_encode, fp16_decode, fp16_accumulate, fp16_canonical)
BF16 = HalfKernels(bf16_encode, bf16_decode, bf16_accumulate, bf16_canonical)
