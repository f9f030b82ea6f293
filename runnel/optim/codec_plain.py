"""Codecs that treat each value by itself: fp16, bf16 and fp32. Formats are described in `codecs`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt

from runnel.errors import PeerError
from runnel.kernels import (
    Float32,
    HalfKernels,
    first_non_finite,
    implementation,
    norm,
    require_vector,
    sum_of_squares,
)
from runnel.optim.parts import PART, parts_of
from runnel.optim.payloads import (
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


class HalfCodec:
    """16 bits for each value: IEEE's half precision, or the upper half of a float32."""

    def __init__(self, name: Literal["fp16", "bf16"] = "fp16", *, by: str | None = None) -> None:
        """`by` forces an implementation of the arithmetic, see `runnel.kernels.implementation`."""
        self.name = name
        self._by = by

    def seeded(self, seed: int) -> Self:
        """See `Codec.seeded`."""
        del seed
        return self

    def max_bytes(self, numel: int) -> int:
        """The exact size of a payload of `numel` values."""
        return 2 * numel

    def encode(self, values: Float32, residual: Float32 | None = None) -> bytes:
        """See `Codec.encode`. `residual` is exact, but for fp16 rounded beyond +-65504.

        Raises:
            ValueError: a value is NaN or infinite, or an array is not a float32 vector.
        """
        require_encodable(values, residual)
        require_finite(values, self._by)
        buffer, payload = blank_payload(self.max_bytes(values.size))
        rest = np.empty_like(values) if residual is None else residual
        self._kernels.encode(values, rest, payload.view(np.uint16))
        return buffer.getvalue()

    def encode_parts(self, parts: Iterable[Part], numel: int, out: memoryview) -> memoryview:
        """See `Codec.encode_parts`.

        Raises:
            ValueError: a value is NaN or infinite, or a part is not a writable float32 vector.
        """
        room, payload = room_in(out, self.max_bytes(numel))
        halves = payload.view(np.uint16)
        for place, part in summed_parts(parts, numel):
            require_finite(part, self._by, place=place)
            into = halves[place : place + part.size]
            self._kernels.encode(part, part, into)
        return room

    def decode_parts(self, payload: Buffer, numel: int) -> Iterator[Float32]:
        """See `Codec.decode_parts`.

        Raises:
            PeerError: not `numel` finite halves.
        """
        halves, held = self._parse(payload, numel), np.empty(min(PART, numel), np.float32)
        for part in parts_of(0, numel):
            out = held[: part.stop - part.start]
            self._kernels.decode(halves[part], out)
            yield out

    def decode(self, payload: Buffer, out: Float32) -> None:
        """See `Codec.decode`. A refused payload leaves `out` as it was.

        Raises:
            PeerError: not ``out.size`` finite halves.
            ValueError: `out` is not a writable float32 vector.
        """
        require_vector(out, "out", write=True)
        self._kernels.decode(self._parse(payload, out.size), out)

    def accumulate(self, payload: Buffer, scale: float, out: Float32) -> None:
        """See `Codec.accumulate`. A refused payload leaves `out` as it was.

        Raises:
            PeerError: not ``out.size`` finite halves.
            ValueError: `scale` is not finite, or `out` is not a writable float32 vector.
        """
        require_vector(out, "out", write=True)
        factor, halves = factor_of(scale), self._parse(payload, out.size)
        self._kernels.accumulate(halves, factor, out)

    def norm(self, payload: Buffer, numel: int) -> float:
        """See `Codec.norm`. Decodes part after part.

        Raises:
            PeerError: not `numel` finite halves.
        """
        parts = self.decode_parts(payload, numel)
        return math.sqrt(sum(sum_of_squares(part, by=self._by) for part in parts))

    @property
    def _kernels(self) -> HalfKernels:
        return implementation(self._by).halves[self.name]

    def _parse(self, payload: Buffer, numel: int) -> npt.NDArray[np.uint16]:
        raw = bytes_of(payload, self.max_bytes(numel), f"{self.name}, {numel} values")
        halves = np.require(raw.view(np.uint16), requirements="A")
        if not self._kernels.canonical(halves):
            raise PeerError(
                "malformed", f"{self.name}: a value that no encoder writes, such as NaN or infinity"
            )
        return halves


class FloatCodec:
    """The values as they are."""

    name = "fp32"

    def __init__(self, *, by: str | None = None) -> None:
        """`by` forces an implementation of the arithmetic, see `runnel.kernels.implementation`."""
        self._by = by

    def seeded(self, seed: int) -> Self:
        """See `Codec.seeded`."""
        del seed
        return self

    def max_bytes(self, numel: int) -> int:
        """The exact size of a payload of `numel` values."""
        return 4 * numel

    def encode(self, values: Float32, residual: Float32 | None = None) -> bytes:
        """See `Codec.encode`; `residual` becomes zero.

        Raises:
            ValueError: a value is NaN or infinite, or an array is not a float32 vector.
        """
        require_encodable(values, residual)
        require_finite(values, self._by)
        payload = values.tobytes()
        if residual is not None:
            residual.fill(0)
        return payload

    def encode_parts(self, parts: Iterable[Part], numel: int, out: memoryview) -> memoryview:
        """See `Codec.encode_parts`.

        Raises:
            ValueError: a value is NaN or infinite, or a part is not a writable float32 vector.
        """
        room, payload = room_in(out, self.max_bytes(numel))
        values = payload.view(np.float32)
        for place, part in summed_parts(parts, numel):
            require_finite(part, self._by, place=place)
            values[place : place + part.size] = part
            part.fill(0)
        return room

    def decode_parts(self, payload: Buffer, numel: int) -> Iterator[Float32]:
        """See `Codec.decode_parts`.

        Raises:
            PeerError: not `numel` finite values.
        """
        values = self._parse(payload, numel)
        for part in parts_of(0, numel):
            yield values[part]

    def decode(self, payload: Buffer, out: Float32) -> None:
        """See `Codec.decode`. A refused payload leaves `out` as it was.

        Raises:
            PeerError: not ``out.size`` finite values.
            ValueError: `out` is not a writable float32 vector.
        """
        require_vector(out, "out", write=True)
        out[:] = self._parse(payload, out.size)

    def accumulate(self, payload: Buffer, scale: float, out: Float32) -> None:
        """See `Codec.accumulate`. A refused payload leaves `out` as it was.

        Raises:
            PeerError: not ``out.size`` finite values.
            ValueError: `scale` is not finite, or `out` is not a writable float32 vector.
        """
        require_vector(out, "out", write=True)
        factor, values = factor_of(scale), self._parse(payload, out.size)
        implementation(self._by).elements.float_accumulate(values, factor, out)

    def norm(self, payload: Buffer, numel: int) -> float:
        """See `Codec.norm`.

        Raises:
            PeerError: not `numel` finite values.
        """
        return norm(self._parse(payload, numel), by=self._by)

    def _parse(self, payload: Buffer, numel: int) -> Float32:
        raw = bytes_of(payload, self.max_bytes(numel), f"fp32, {numel} values")
        values = np.require(raw.view(np.float32), requirements="A")
        index = first_non_finite(values, by=self._by)
        if index >= 0:
            raise PeerError("malformed", f"fp32: value {index} is {values[index]}")
        return values
