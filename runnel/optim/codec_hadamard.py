"""A rotation before a codec of few bits, so that no value of a block is much larger than the others.

The format is described in `codecs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.kernels import Float32, RotationKernels, Words, implementation, words_of
from runnel.optim.codec_blockwise import BlockFormat, BlockwiseCodec
from runnel.optim.codec_transformed import CHUNK, TransformedCodec

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = CHUNK
"""Values that are rotated together; of the last ones as many as a power of two needs, with zeros behind them."""


class HadamardCodec(TransformedCodec):
    """Blocks of 4096 values, multiplied by random signs and a Hadamard matrix, then by a codec with scales.

    A rotation spreads a large value over its whole block, so that scales fit all values; the price is a
    transform each way (two at the sender, which keeps what is lost) and up to twice the bytes for the
    last, short block. Signs follow from a seed in the payload, so that it can be read alone.

    Source: *Distributed Mean Estimation with Limited Communication* (Suresh et al. 2017), section 3;
    *DRIVE* (Vargaftik et al. 2021) for one bit.
    """

    def __init__(self, layout: BlockFormat, *, seed: int = 0, by: str | None = None) -> None:
        """`by` forces an implementation of the arithmetic; of `seed` the lower 64 bits count."""
        super().__init__(BlockwiseCodec(layout, by=by), seed=seed, by=by)
        self._layout = layout

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return f"hadamard+{self._inner.name}"

    def seeded(self, seed: int) -> HadamardCodec:
        """See `Codec.seeded`."""
        return HadamardCodec(self._layout, seed=seed, by=self._by)

    @property
    def _kernels(self) -> RotationKernels:
        return implementation(self._by).rotations["hadamard"]

    def _size(self, numel: int) -> int:
        """Values after padding the last block to a power of two."""
        rest = numel % BLOCK
        return numel - rest + (1 << (rest - 1).bit_length() if rest else 0)

    def _forward(self, values: Float32, place: int) -> Float32:
        held = np.zeros(self._size(values.size), np.float32)
        held[: values.size] = values
        for some, words in _blocks(held, self._seed, place, values.size):
            self._kernels.forward(some, words, some)
        return held

    def _backward(self, held: Float32, seed: int, place: int, size: int) -> Float32:
        for some, words in _blocks(held, seed, place, size):
            self._kernels.backward(some, words, some)
        return held[:size]


def _blocks(held: Float32, seed: int, place: int, size: int) -> Iterator[tuple[Float32, Words]]:
    """The whole blocks of a part of `size` values, and the short one; the words of each."""
    whole = size // BLOCK
    words = words_of(seed, place // BLOCK, whole + 1)
    if whole:
        yield held[: whole * BLOCK], words[:whole]
    if held.size > whole * BLOCK:
        yield held[whole * BLOCK :], words[whole:]
