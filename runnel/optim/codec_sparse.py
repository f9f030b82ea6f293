"""What codecs have in common that send some values of each chunk of 4096 only, with two bits each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from runnel.errors import ConfigError, PeerError
from runnel.kernels import Float32, SparseKernels, implementation, require_vector
from runnel.optim.parts import PART, parts_of
from runnel.optim.payloads import (
    Bytes,
    Scales,
    blank_payload,
    bytes_of,
    factor_of,
    placed,
    require_encodable,
    require_finite,
    require_scales,
    room_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

    from runnel.protocols import Part

CHUNK = 4096
"""Values of which some are sent: an index takes twelve bits."""

SCALES = (0x0800, 0x7F7F)
"""The least and the largest bits of a scale."""

_ONE = np.float32(1)


@dataclass(frozen=True, slots=True)
class Entries:
    """What is sent of some chunks: views of a payload's sections, where it belongs, and entries of a chunk."""

    scales: Scales
    codes: Bytes
    where: npt.NDArray[Any]
    count: int

    def places(self) -> npt.NDArray[np.int32]:
        """Room for the places of all entries, [chunks, count]."""
        return np.empty((self.scales.size // 2, self.count), np.int32)

    def has_stray_bits(self) -> bool:
        """Whether a bit is set behind the codes of a chunk; entry e is in byte e modulo their bytes."""
        size = -(-self.count // 4)
        unused = np.zeros(size, np.uint8)
        for entry in range(self.count, 4 * size):
            unused[entry % size] |= 3 << 2 * (entry // size)
        return bool((self.codes.reshape(-1, size) & unused).any())


class SparseCodec(ABC):
    """Sends so many of each chunk of 4096 values; those behind it say which, and how that is written."""

    kind: str
    """The name without a number."""

    usual_count: int
    """How many are sent if the name has no number."""

    def __init__(self, count: int | None = None, *, by: str | None = None) -> None:
        """`count` values of a whole chunk are sent; of a short one the same part, rounded up.

        `by` forces an implementation of the arithmetic, see `runnel.kernels.implementation`.

        Raises:
            ConfigError: `count` is not between 1 and 4096.
        """
        self._count = self.usual_count if count is None else count
        if not 1 <= self._count <= CHUNK:
            raise ConfigError(
                f"{self.kind}: {self._count} values of {CHUNK}, expected 1 to {CHUNK}"
            )
        self._by = by

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return self.kind if self._count == self.usual_count else f"{self.kind}:{self._count}"

    @abstractmethod
    def max_bytes(self, numel: int) -> int:
        """The exact size of a payload of `numel` values."""

    @abstractmethod
    def _begin(self, payload: Bytes) -> None:
        """Writes what stands before everything else."""

    @abstractmethod
    def _entries(
        self, raw: Bytes, place: int, size: int, numel: int
    ) -> Iterator[tuple[Entries, slice]]:
        """What is sent of `size` values from `place`: the whole chunks, and the short one; where they are."""

    def encode(self, values: Float32, residual: Float32 | None = None) -> bytes:
        """See `Codec.encode`. `residual` is exact but for the values that are sent, where it is rounded.

        A refused call leaves `residual` as it was. Two passes, and a copy if `residual` is not `values`.

        Raises:
            ValueError: a value is NaN or infinite, or an array is not a float32 vector.
        """
        require_encodable(values, residual)
        require_finite(values, self._by)
        left = np.empty_like(values) if residual is None else residual
        np.copyto(left, values)
        buffer, payload = blank_payload(self.max_bytes(values.size))
        self._begin(payload)
        self._encode((left, None), payload, 0, values.size)
        return buffer.getvalue()

    def encode_parts(self, parts: Iterable[Part], numel: int, out: memoryview) -> memoryview:
        """See `Codec.encode_parts`.

        Raises:
            ValueError: a value is NaN or infinite, or a part is not a writable float32 vector.
        """
        room, payload = room_in(out, self.max_bytes(numel))
        self._begin(payload)
        for place, part, added in placed(parts, numel):
            if not self._encode((part, added), payload, place, numel):
                require_finite(part, self._by, place=place)
        return room

    def decode_parts(self, payload: Buffer, numel: int) -> Iterator[Float32]:
        """See `Codec.decode_parts`.

        Raises:
            PeerError: not one encoding of `numel` values.
        """
        raw, held = self._checked(payload, numel), np.empty(min(PART, numel), np.float32)
        for part in parts_of(0, numel):
            out = held[: part.stop - part.start]
            out.fill(0)
            self._add(raw, part.start, numel, _ONE, out)
            yield out

    def decode(self, payload: Buffer, out: Float32) -> None:
        """See `Codec.decode`. A refused payload leaves `out` as it was.

        Raises:
            PeerError: not one encoding of ``out.size`` values.
            ValueError: `out` is not a writable float32 vector.
        """
        require_vector(out, "out", write=True)
        raw = self._checked(payload, out.size)
        out.fill(0)
        self._add(raw, 0, out.size, _ONE, out)

    def accumulate(self, payload: Buffer, scale: float, out: Float32) -> None:
        """See `Codec.accumulate`; touches the values that were sent only. A refused payload leaves `out` as it was.

        Raises:
            PeerError: not one encoding of ``out.size`` values.
            ValueError: `scale` is not finite, or `out` is not a writable float32 vector.
        """
        require_vector(out, "out", write=True)
        factor = factor_of(scale)
        self._add(self._checked(payload, out.size), 0, out.size, factor, out)

    def norm(self, payload: Buffer, numel: int) -> float:
        """See `Codec.norm`. One pass over the payload.

        Raises:
            PeerError: not one encoding of `numel` values.
        """
        raw = self._checked(payload, numel)
        total = 0.0
        for some, _ in self._entries(raw, 0, numel, numel):
            total += self._kernels.sent.sum_of_squares(some.scales, some.codes, some.count)
        return math.sqrt(total)

    @property
    def _kernels(self) -> SparseKernels:
        return implementation(self._by).sparse[self.kind]

    def _count_of(self, chunk: int) -> int:
        """Entries of a chunk of so many values."""
        return -(-self._count * chunk // CHUNK)

    def _bytes_of_scales(self, numel: int) -> int:
        return 4 * -(-numel // CHUNK)

    def _bytes_of_codes(self, numel: int) -> int:
        chunks, rest = divmod(numel, CHUNK)
        return chunks * -(-self._count // 4) - (-self._count_of(rest) // 4)

    def _encode(
        self, summands: tuple[Float32, Float32 | None], payload: Bytes, place: int, numel: int
    ) -> bool:
        """Encodes the sum of two vectors in the first one's place; whether it is finite."""
        values, added = summands
        for some, span in self._entries(payload, place, values.size, numel):
            x, places = values[span], some.places()
            more = np.full(min(CHUNK, x.size), -0.0, np.float32) if added is None else added[span]
            if self._kernels.places.choose(x, more, some.where, places) >= 0:
                return False
            self._kernels.sent.send(x, places, some.scales, some.codes)
        return True

    def _add(self, raw: Bytes, place: int, numel: int, factor: np.float32, out: Float32) -> None:
        for some, span in self._entries(raw, place, out.size, numel):
            y, places = out[span], some.places()
            self._kernels.places.read(some.where, min(CHUNK, y.size), places)
            self._kernels.sent.add(some.scales, some.codes, places, factor, y)

    def _checked(self, payload: Buffer, numel: int) -> Bytes:
        """The payload's bytes, if it is one encoding of `numel` values.

        Raises:
            PeerError: it is not.
        """
        raw = bytes_of(payload, self.max_bytes(numel), f"{self.name}, {numel} values")
        for some, span in self._entries(raw, 0, numel, numel):
            require_scales(some.scales, SCALES, self.name, pairs=True)
            chunk = min(CHUNK, span.stop - span.start)
            if not self._kernels.places.canonical(some.where, chunk, some.count):
                raise PeerError(
                    "malformed",
                    f"{self.name}: indices that do not rise within a chunk, or stray bits",
                )
            if some.has_stray_bits():
                raise PeerError("malformed", f"{self.name}: stray bits behind the codes of a chunk")
        return raw
