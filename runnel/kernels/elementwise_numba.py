"""Compiled arithmetic on single values and sums; `elementwise_reference` says in numpy what it does.

The rules of `blockwise_numba` for compiled code hold here too, also that of the small buffers: what is
written may be what is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from runnel.kernels.signatures import ElementwiseKernels, Float32

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]

_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = np.int32(0x7F800000)
_CHUNK = 1024
_LANES = 64
_NEGLIGIBLE = np.float32(2.0**-100)


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
    float_accumulate=float_accumulate,
    first_non_finite=first_non_finite,
    sum_of_squares=sum_of_squares,
    momentum_step=momentum_step,
    plain_step=plain_step,
)
