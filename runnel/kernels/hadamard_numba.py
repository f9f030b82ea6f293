"""Compiled Hadamard rotation; `hadamard_reference` says in numpy what it does.

The rules of `blockwise_numba` for compiled code hold here too. A block goes back and forth between two
buffers, so that what is written may be what is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from runnel.kernels.draws import Words
from runnel.kernels.draws_numba import STEP, mixed
from runnel.kernels.signatures import Float32, RotationKernels

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]
_WORDS_IN = types.Array(types.uint64, 1, "C", readonly=True)

_NEGLIGIBLE = np.float32(2.0**-88)
_LARGEST = np.float32(np.finfo(np.float32).max)


@njit(inline="always")
def _flip(x: Float32, word: Any) -> None:
    """Multiplies a block by the signs that its word draws."""
    drawn = np.uint64(word)
    for start in range(0, x.size, 64):
        drawn = np.uint64(drawn + STEP)
        signs = mixed(drawn)
        y = x[start : start + 64]
        for i in range(y.size):
            bit = np.uint32(np.uint64(np.uint64(signs >> np.uint64(i)) & np.uint64(1)))
            u = np.uint32(np.float32(y[i]).view(np.uint32) ^ np.uint32(bit << np.uint32(31)))
            y[i] = np.uint32(u).view(np.float32)


@njit(inline="always")
def _scale(x: Float32, held: Float32) -> None:
    """A block divided by its length."""
    factor = np.float32(np.float32(1) / np.float32(x.size))
    for i in range(x.size):
        v = x[i]
        held[i] = np.float32(0) if abs(v) < _NEGLIGIBLE else np.float32(v * factor)


@njit(inline="always")
def _transform(a: Float32, b: Float32) -> Any:
    """The Hadamard transform of `a`, in one of the two."""
    half, width = a.size // 2, 1
    while width < a.size:
        for j in range(half):
            even, odd = a[2 * j], a[2 * j + 1]
            b[j] = even + odd
            b[half + j] = even - odd
        a, b = b, a
        width *= 2
    return a


@njit(types.void(_FLOATS_IN, _WORDS_IN, _FLOATS_OUT), **_COMPILE)
def forward(values: Float32, words: Words, out: Float32) -> None:
    """See `RotationKernels.forward`."""
    size = values.size // max(words.size, 1)
    first, second = np.empty(size, np.float32), np.empty(size, np.float32)
    for block in range(words.size):
        _scale(values[block * size : (block + 1) * size], first)
        _flip(first, words[block])
        found = _transform(first, second)
        y = out[block * size : (block + 1) * size]
        for i in range(size):
            y[i] = found[i]


@njit(types.void(_FLOATS_IN, _WORDS_IN, _FLOATS_OUT), **_COMPILE)
def backward(values: Float32, words: Words, out: Float32) -> None:
    """See `RotationKernels.backward`."""
    size = values.size // max(words.size, 1)
    first, second = np.empty(size, np.float32), np.empty(size, np.float32)
    grow = np.float32(size)
    limit = np.float32(_LARGEST / grow)
    for block in range(words.size):
        _scale(values[block * size : (block + 1) * size], first)
        found = _transform(first, second)
        y = out[block * size : (block + 1) * size]
        for i in range(size):
            y[i] = np.float32(min(max(found[i], -limit), limit) * grow)
        _flip(y, words[block])


HADAMARD = RotationKernels(forward, backward)
