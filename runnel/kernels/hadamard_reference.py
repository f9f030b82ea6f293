"""What the Hadamard rotation computes, in plain numpy: the definition, and the fallback without numba.

A block of n = 2^m values is multiplied by signs that its word draws and by the Hadamard matrix
H[i, j] = (-1)^(number of ones in i & j). H H = n I, so the way there divides by n beforehand and the way
back does not: powers of two, which round nothing. What is below 2^-88 becomes +0 first; all that follows
is then a multiple of 2^-123, so that processes which flush subnormal numbers find the same bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runnel.kernels.draws import STEP, Words, mixed
from runnel.kernels.signatures import Float32, RotationKernels

_NEGLIGIBLE = np.float32(2.0**-88)
_LARGEST = np.finfo(np.float32).max


def sign_bits(words: Words, size: int) -> npt.NDArray[np.uint32]:
    """2^31 where the sign is -1, else 0, [words, size].

    Value i of a block has bit ``i % 64`` of ``mixed(word + (i // 64 + 1) * STEP)``, modulo 2^64.
    """
    steps = np.arange(1, -(-size // 64) + 1, dtype=np.uint64) * np.uint64(STEP)
    each = mixed(words[:, None] + steps)[:, :, None] >> np.arange(64, dtype=np.uint64)
    drawn = (each & np.uint64(1)).astype(np.uint32) << np.uint32(31)
    return drawn.reshape(words.size, -1)[:, :size]


def forward(values: Float32, words: Words, out: Float32) -> None:
    """See `RotationKernels.forward`."""
    if words.size:
        x = _scaled(values.reshape(words.size, -1))
        flipped = (x.view(np.uint32) ^ sign_bits(words, x.shape[1])).view(np.float32)
        out[:] = _transformed(flipped).ravel()


def backward(values: Float32, words: Words, out: Float32) -> None:
    """See `RotationKernels.backward`."""
    if words.size:
        size = values.size // words.size
        x = _transformed(_scaled(values.reshape(words.size, size)))
        limit = np.float32(_LARGEST / size)
        x = np.clip(x, -limit, limit) * np.float32(size)
        out[:] = (x.view(np.uint32) ^ sign_bits(words, size)).view(np.float32).ravel()


def _scaled(x: Float32) -> Float32:
    """Rows divided by their length, which is a power of two."""
    kept = np.where(np.abs(x) < _NEGLIGIBLE, np.float32(0), x)
    return kept * np.float32(1 / x.shape[1])


def _transformed(x: Float32) -> Float32:
    """The Hadamard transform of each row: so many times over, sums of pairs and then their differences."""
    for _ in range(x.shape[1].bit_length() - 1):
        even, odd = x[:, ::2], x[:, 1::2]
        x = np.concatenate([even + odd, even - odd], axis=1)
    return x


HADAMARD = RotationKernels(forward, backward)
