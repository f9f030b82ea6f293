"""Adam's outer step, compiled; `adam_reference` says in numpy what it does.

The rules of `blockwise_numba` for compiled code hold here too. Square roots and quotients are those of
IEEE 754, rounded correctly, as sums and products are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from runnel.kernels.signatures import AdamState, Float32

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]

_CHUNK = 1024
_NEGLIGIBLE = np.float32(2.0**-100)
_LARGEST = np.float32(np.finfo(np.float32).max)


@njit(
    types.void(
        types.UniTuple(_FLOATS_IN, 3),
        _FLOATS_IN,
        _FLOATS_IN,
        types.UniTuple(_FLOATS_OUT, 3),
    ),
    **_COMPILE,
)
def adam_step(
    before: AdamState, pseudo_gradient: Float32, factors: Float32, after: AdamState
) -> None:
    """See `signatures.AdamStep`."""
    lr, keep_mean, take_mean = factors[0], factors[1], factors[2]
    keep_square, take_square, epsilon = factors[3], factors[4], factors[5]
    moved, means = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32)
    squares = np.empty(_CHUNK, np.float32)
    for start in range(0, pseudo_gradient.size, _CHUNK):
        x, m = before[0][start : start + _CHUNK], before[1][start : start + _CHUNK]
        v, g = before[2][start : start + _CHUNK], pseudo_gradient[start : start + _CHUNK]
        for i in range(x.size):
            d = g[i]
            a = np.float32(np.float32(keep_mean * m[i]) + np.float32(take_mean * d))
            a = np.float32(0) if abs(a) < _NEGLIGIBLE else a
            squared = np.float32(d * d) if take_square > 0 else np.float32(0)
            b = np.float32(np.float32(keep_square * v[i]) + np.float32(take_square * squared))
            b = np.float32(0) if b < _NEGLIGIBLE else b
            b = np.float32(min(b, _LARGEST))
            size = np.float32(np.float32(np.sqrt(b)) + epsilon)
            p = np.float32(x[i] - np.float32(lr * np.float32(a / size)))
            means[i], squares[i] = a, b
            moved[i] = np.float32(0) if abs(p) < _NEGLIGIBLE else p
        new_x, new_m = after[0][start : start + _CHUNK], after[1][start : start + _CHUNK]
        new_v = after[2][start : start + _CHUNK]
        for i in range(x.size):
            new_x[i] = moved[i]
        for i in range(x.size):
            new_m[i] = means[i]
        for i in range(x.size):
            new_v[i] = squares[i]
