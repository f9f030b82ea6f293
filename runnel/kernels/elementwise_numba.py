"""Compiled arithmetic on single values and sums; `elementwise_reference` says in numpy what it does.

The rules of `blockwise_numba` for compiled code hold here too, also that of the small buffers: what is
written may be what is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from runnel.kernels.signatures import ElementwiseKernels, Float32, Halves

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]
_HALVES_IN = types.Array(types.uint16, 1, "C", readonly=True)
_HALVES_OUT = types.uint16[::1]

_MAGNITUDE = np.int32(0x7FFFFFFF)
_SIGN = np.int32(-0x80000000)
_INFINITE = np.int32(0x7F800000)
_CHUNK = 1024
_LANES = 64
_NEGLIGIBLE = np.float32(2.0**-100)

_LARGEST_HALF = np.int32(0x477FE000)  # 65504
_SMALLEST_NORMAL_HALF = np.int32(0x38800000)  # 2^-14
_SMALLEST_NORMAL = np.float32(2.0**-14)
_SUBNORMAL_ROUNDER = np.float32(
    0.5
)  # its unit in the last place is 2^-24, that of subnormal halves
_SUBNORMAL_ROUNDER_BITS = np.int32(0x3F000000)
_REBIAS = np.int32(112 << 23)


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
def half_encode(values: Float32, residual: Float32, halves: Halves) -> None:
    """See `ElementwiseKernels.half_encode`."""
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
def half_decode(halves: Halves, out: Float32) -> None:
    """See `ElementwiseKernels.half_decode`."""
    for i in range(halves.size):
        out[i] = _from_half(np.int32(halves[i]))


@njit(types.void(_HALVES_IN, types.float32, _FLOATS_OUT), **_COMPILE)
def half_accumulate(halves: Halves, factor: np.float32, out: Float32) -> None:
    """See `ElementwiseKernels.half_accumulate`."""
    for i in range(halves.size):
        out[i] += np.float32(factor * _from_half(np.int32(halves[i])))


@njit(types.boolean(_HALVES_IN), **_COMPILE)
def half_finite(halves: Halves) -> bool:
    """See `ElementwiseKernels.half_finite`."""
    largest = np.uint16(0)
    for i in range(halves.size):
        largest = max(largest, np.uint16(halves[i] & np.uint16(0x7FFF)))
    return bool(largest < np.uint16(0x7C00))


@njit(types.void(_FLOATS_IN, types.float32, _FLOATS_OUT), **_COMPILE)
def float_accumulate(values: Float32, factor: np.float32, out: Float32) -> None:
    """See `ElementwiseKernels.float_accumulate`."""
    for i in range(values.size):
        out[i] += np.float32(factor * values[i])


@njit(types.int64(_FLOATS_IN), **_COMPILE)
def first_non_finite(values: Float32) -> int:
    """See `ElementwiseKernels.first_non_finite`."""
    for start in range(0, values.size, _CHUNK):
        x = values[start : start + _CHUNK]
        largest = np.int32(0)
        for i in range(x.size):
            largest = max(largest, np.int32(np.float32(x[i]).view(np.int32) & _MAGNITUDE))
        if largest >= _INFINITE:
            for i in range(x.size):
                if np.int32(np.float32(x[i]).view(np.int32) & _MAGNITUDE) >= _INFINITE:
                    return start + i
    return -1


@njit(types.float64(_FLOATS_IN), **_COMPILE)
def sum_of_squares(values: Float32) -> float:
    """See `ElementwiseKernels.sum_of_squares`."""
    lanes = np.zeros(_LANES, np.float64)
    whole = values.size - values.size % _LANES
    for start in range(0, whole, _LANES):
        x = values[start : start + _LANES]
        for j in range(_LANES):
            lanes[j] += np.float64(x[j]) * np.float64(x[j])
    for j in range(values.size - whole):
        lanes[j] += np.float64(values[whole + j]) * np.float64(values[whole + j])
    total = 0.0
    for j in range(_LANES):
        total += lanes[j]
    return total


@njit(
    types.void(
        _FLOATS_IN,
        _FLOATS_IN,
        _FLOATS_IN,
        _FLOATS_IN,
        _FLOATS_OUT,
        _FLOATS_OUT,
    ),
    **_COMPILE,
)
def momentum_step(
    parameters: Float32,
    momentum: Float32,
    pseudo_gradient: Float32,
    factors: Float32,
    new_parameters: Float32,
    new_momentum: Float32,
) -> None:
    """See `ElementwiseKernels.momentum_step`."""
    lr, mu, own, gathered = factors[0], factors[1], factors[2], factors[3]
    moved = np.empty(_CHUNK, np.float32)
    pushed = np.empty(_CHUNK, np.float32)
    for start in range(0, parameters.size, _CHUNK):
        x = parameters[start : start + _CHUNK]
        v = momentum[start : start + _CHUNK]
        g = pseudo_gradient[start : start + _CHUNK]
        for i in range(x.size):
            d = g[i]
            b = np.float32(np.float32(mu * v[i]) + d)
            b = np.float32(0) if abs(b) < _NEGLIGIBLE else b
            pushed[i] = b
            ahead = np.float32(np.float32(own * d) + np.float32(gathered * b))
            p = np.float32(x[i] - np.float32(lr * ahead))
            moved[i] = np.float32(0) if abs(p) < _NEGLIGIBLE else p
        new_x = new_parameters[start : start + _CHUNK]
        new_v = new_momentum[start : start + _CHUNK]
        for i in range(x.size):
            new_x[i] = moved[i]
        for i in range(x.size):
            new_v[i] = pushed[i]


@njit(types.void(_FLOATS_IN, _FLOATS_IN, types.float32, _FLOATS_OUT), **_COMPILE)
def plain_step(
    parameters: Float32, pseudo_gradient: Float32, lr: np.float32, new_parameters: Float32
) -> None:
    """See `ElementwiseKernels.plain_step`."""
    moved = np.empty(_CHUNK, np.float32)
    for start in range(0, parameters.size, _CHUNK):
        x = parameters[start : start + _CHUNK]
        g = pseudo_gradient[start : start + _CHUNK]
        for i in range(x.size):
            p = np.float32(x[i] - np.float32(lr * g[i]))
            moved[i] = np.float32(0) if abs(p) < _NEGLIGIBLE else p
        new_x = new_parameters[start : start + _CHUNK]
        for i in range(x.size):
            new_x[i] = moved[i]


ELEMENTS = ElementwiseKernels(
    half_encode=half_encode,
    half_decode=half_decode,
    half_accumulate=half_accumulate,
    half_finite=half_finite,
    float_accumulate=float_accumulate,
    first_non_finite=first_non_finite,
    sum_of_squares=sum_of_squares,
    momentum_step=momentum_step,
    plain_step=plain_step,
)
