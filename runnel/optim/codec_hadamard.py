"""A rotation before a codec of few bits, so that no value of a block is much larger than the others.

The format is described in `codecs`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from runnel.kernels import (
    Float32,
    RotationKernels,
    Words,
    implementation,
    require_vector,
    sum_of_squares,
    words_of,
)
from runnel.optim.codec_blockwise import BlockFormat, BlockwiseCodec
from runnel.optim.parts import parts_of
from runnel.optim.payloads import (
    Bytes,
    blank_payload,
    bytes_of,
    factor_of,
    require_encodable,
    require_finite,
    room_in,
    summed_parts,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

    from runnel.protocols import Part

BLOCK = 4096
"""Values that are rotated together; of the last ones as many as a power of two needs, with zeros behind them."""

_SEED_BYTES = 8


class HadamardCodec:
    """Blocks of 4096 values, multiplied by random signs and a Hadamard matrix, then by a codec with scales.

    A rotation spreads a large value over its whole block, so that scales fit all values; the price is a
    transform each way (two at the sender, which keeps what is lost) and up to twice the bytes for the
    last, short block. Signs follow from a seed in the payload, so that it can be read alone.

    Source: *Distributed Mean Estimation with Limited Communication* (Suresh et al. 2017), section 3;
    *DRIVE* (Vargaftik et al. 2021) for one bit.
    """

    def __init__(self, layout: BlockFormat, *, seed: int = 0, by: str | None = None) -> None:
        """`by` forces an implementation of the arithmetic; of `seed` the lower 64 bits count."""
        self._layout, self._inner = layout, BlockwiseCodec(layout, by=by)
        self._seed, self._by = seed & (2**64 - 1), by

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return f"hadamard+{self._inner.name}"

    def seeded(self, seed: int) -> HadamardCodec:
        """See `Codec.seeded`."""
        return HadamardCodec(self._layout, seed=seed, by=self._by)

    def max_bytes(self, numel: int) -> int:
        """The exact size of a payload of `numel` values."""
        return (_SEED_BYTES if numel else 0) + self._inner.max_bytes(_padded_size(numel))

    def encode(self, values: Float32, residual: Float32 | None = None) -> bytes:
        """See `Codec.encode`. `residual` is rounded, and may leave float32's range beyond 1e38.

        Raises:
            ValueError: a value is NaN or infinite, or an array is not a float32 vector.
        """
        require_encodable(values, residual)
        require_finite(values, self._by)
        buffer, payload = blank_payload(self.max_bytes(values.size))
        self._begin(payload)
        for part in parts_of(0, values.size):
            back = self._sent(values[part], payload, part.start, values.size)
            if residual is not None:
                np.subtract(values[part], back, out=residual[part])
        return buffer.getvalue()

    def encode_parts(self, parts: Iterable[Part], numel: int, out: memoryview) -> memoryview:
        """See `Codec.encode_parts`.

        Raises:
            ValueError: a value is NaN or infinite, or a part is not a writable float32 vector.
        """
        room, payload = room_in(out, self.max_bytes(numel))
        self._begin(payload)
        for place, part in summed_parts(parts, numel):
            require_finite(part, self._by, place=place)
            part -= self._sent(part, payload, place, numel)
        return room

    def decode_parts(self, payload: Buffer, numel: int) -> Iterator[Float32]:
        """See `Codec.decode_parts`.

        Raises:
            PeerError: not one encoding of `numel` values.
        """
        raw = self._checked(payload, numel)
        seed = int.from_bytes(raw[:_SEED_BYTES].tobytes(), "little")
        rotated = self._inner.decode_parts(raw.data[_SEED_BYTES:], _padded_size(numel))
        for part, held in zip(parts_of(0, numel), rotated, strict=True):
            yield self._turned_back(held, seed, part.start, part.stop - part.start)

    def decode(self, payload: Buffer, out: Float32) -> None:
        """See `Codec.decode`. A refused payload leaves `out` as it was.

        Raises:
            PeerError: not one encoding of ``out.size`` values.
            ValueError: `out` is not a writable float32 vector.
        """
        require_vector(out, "out", write=True)
        values = self.decode_parts(payload, out.size)
        for part, held in zip(parts_of(0, out.size), values, strict=True):
            out[part] = held

    def accumulate(self, payload: Buffer, scale: float, out: Float32) -> None:
        """See `Codec.accumulate`. A refused payload leaves `out` as it was.

        Raises:
            PeerError: not one encoding of ``out.size`` values.
            ValueError: `scale` is not finite, or `out` is not a writable float32 vector.
        """
        require_vector(out, "out", write=True)
        factor, add = factor_of(scale), implementation(self._by).elements.float_accumulate
        values = self.decode_parts(payload, out.size)
        for part, held in zip(parts_of(0, out.size), values, strict=True):
            add(held, factor, out[part])

    def norm(self, payload: Buffer, numel: int) -> float:
        """See `Codec.norm`. Decodes part after part.

        Raises:
            PeerError: not one encoding of `numel` values.
        """
        parts = self.decode_parts(payload, numel)
        return math.sqrt(sum(sum_of_squares(part, by=self._by) for part in parts))

    @property
    def _kernels(self) -> RotationKernels:
        return implementation(self._by).rotations["hadamard"]

    def _begin(self, payload: Bytes) -> None:
        if payload.size:
            payload[:_SEED_BYTES].view("<u8")[0] = self._seed

    def _sent(self, values: Float32, payload: Bytes, place: int, numel: int) -> Float32:
        """Encodes a part into its place; what of it arrives."""
        held = np.zeros(_padded_size(values.size), np.float32)
        held[: values.size] = values
        for some, words in _blocks(held, self._seed, place, values.size):
            self._kernels.forward(some, words, some)
        self._inner.fill(payload[_SEED_BYTES:], _padded_size(numel), place, held)
        return self._turned_back(held, self._seed, place, values.size)

    def _turned_back(self, held: Float32, seed: int, place: int, size: int) -> Float32:
        for some, words in _blocks(held, seed, place, size):
            self._kernels.backward(some, words, some)
        return held[:size]

    def _checked(self, payload: Buffer, numel: int) -> Bytes:
        return bytes_of(payload, self.max_bytes(numel), f"{self.name}, {numel} values")


def _padded_size(numel: int) -> int:
    """Values after padding the last block to a power of two."""
    rest = numel % BLOCK
    return numel - rest + (1 << (rest - 1).bit_length() if rest else 0)


def _blocks(held: Float32, seed: int, place: int, size: int) -> Iterator[tuple[Float32, Words]]:
    """The whole blocks of a part of `size` values, and the short one; the words of each."""
    whole = size // BLOCK
    words = words_of(seed, place // BLOCK, whole + 1)
    if whole:
        yield held[: whole * BLOCK], words[:whole]
    if held.size > whole * BLOCK:
        yield held[whole * BLOCK :], words[whole:]
