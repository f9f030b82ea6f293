"""What codecs have in common that make other numbers of values, from a seed, and encode those by blocks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

import numpy as np

from runnel.kernels import Float32, implementation, require_vector, sum_of_squares
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

    from runnel.optim.codec_blockwise import BlockwiseCodec
    from runnel.protocols import Part

CHUNK = 4096
"""Values that are transformed together; the last ones may be fewer."""

_SEED_BYTES = 8


class TransformedCodec(ABC):
    """A seed of 8 bytes, if there is any value, and what a block codec makes of the transformed values.

    The payload names its seed, so that it can be read alone. Subclasses say what a part becomes and back.
    """

    def __init__(self, inner: BlockwiseCodec, *, seed: int = 0, by: str | None = None) -> None:
        """`inner` encodes; `by` forces an implementation of the arithmetic; of `seed` the lower 64 bits count."""
        self._inner = inner
        self._seed, self._by = seed & (2**64 - 1), by

    @property
    @abstractmethod
    def name(self) -> str:
        """The name under which manifests choose it."""

    @abstractmethod
    def seeded(self, seed: int) -> Self:
        """See `Codec.seeded`."""

    @abstractmethod
    def _size(self, numel: int) -> int:
        """Numbers that `numel` values become."""

    @abstractmethod
    def _forward(self, values: Float32, place: int) -> Float32:
        """What a part that begins at `place` becomes, by this codec's seed; an array of its own."""

    @abstractmethod
    def _backward(self, held: Float32, seed: int, place: int, size: int) -> Float32:
        """The `size` values that are read of such numbers; may be in their place."""

    def max_bytes(self, numel: int) -> int:
        """The exact size of a payload of `numel` values."""
        return (_SEED_BYTES if numel else 0) + self._inner.max_bytes(self._size(numel))

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
        raw = bytes_of(payload, self.max_bytes(numel), f"{self.name}, {numel} values")
        seed = int.from_bytes(raw[:_SEED_BYTES].tobytes(), "little")
        inside, total = raw[_SEED_BYTES:], self._size(numel)
        self._inner.require(inside.data, total)
        for part in parts_of(0, numel):
            low, high = self._size(part.start), self._size(part.stop)
            held = np.empty(high - low, np.float32)
            self._inner.read(inside, total, low, held)
            yield self._backward(held, seed, part.start, part.stop - part.start)

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

    def _begin(self, payload: Bytes) -> None:
        if payload.size:
            payload[:_SEED_BYTES].view("<u8")[0] = self._seed

    def _sent(self, values: Float32, payload: Bytes, place: int, numel: int) -> Float32:
        """Encodes a part into its place; what of it arrives."""
        held = self._forward(values, place)
        self._inner.fill(payload[_SEED_BYTES:], self._size(numel), self._size(place), held)
        return self._backward(held, self._seed, place, values.size)
