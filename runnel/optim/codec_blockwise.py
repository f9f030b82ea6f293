"""Codecs with one scale for each block of values: int8, int4, E3M0. Formats are described in `codecs`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from runnel.errors import PeerError
from runnel.kernels import BlockKernels, Float32, implementation, require_vector
from runnel.optim.parts import PART, parts_of
from runnel.optim.payloads import (
    Bytes,
    blank_payload,
    bytes_of,
    factor_of,
    placed,
    require_encodable,
    require_finite,
    room_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

Scales = npt.NDArray[Any]
Codes = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFormat:
    """The layout of a codec with one scale for each block; the arithmetic is found by its name."""

    name: str
    block: int
    """Values per scale; even."""
    packed: bool
    """Whether two codes share a byte."""
    scale_bytes: int
    smallest_scale: int
    largest_scale: int

    def count_scales(self, numel: int) -> int:
        """Scales of `numel` values."""
        return -(-numel // self.block)

    def code_bytes(self, numel: int) -> int:
        """Bytes of the codes of `numel` values."""
        whole, rest = divmod(numel, self.block)
        return whole * self.block // 2 + (rest + 1) // 2 if self.packed else numel

    def split(self, payload: Bytes, numel: int) -> tuple[Scales, Codes]:
        """Views of a payload's scales and codes."""
        border = self.count_scales(numel) * self.scale_bytes
        scales = payload[:border].view(np.uint16 if self.scale_bytes == 2 else np.uint8)
        return scales, payload[border:].view(np.uint8 if self.packed else np.int8)

    def range(self, scales: Scales, codes: Codes, place: int, numel: int) -> tuple[Scales, Codes]:
        """Views of the scales and codes of `numel` values from `place`, which begins a block."""
        first, border = self.count_scales(place), self.code_bytes(place)
        return (
            scales[first : first + self.count_scales(numel)],
            codes[border : border + self.code_bytes(numel)],
        )

    def padded(self, values: Float32) -> Float32:
        """A copy of the last, short block, with a zero behind it where two codes share a byte."""
        size = values.size + (values.size % 2 if self.packed else 0)
        held = np.zeros(size, np.float32)
        held[: values.size] = values
        return held


class BlockwiseCodec:
    """A codec with one scale for each block of values."""

    def __init__(self, layout: BlockFormat, *, by: str | None = None) -> None:
        """`by` forces an implementation of the arithmetic, see `runnel.kernels.implementation`."""
        self._layout = layout
        self._by = by

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return self._layout.name

    def max_bytes(self, numel: int) -> int:
        """The exact size of a payload of `numel` values."""
        layout = self._layout
        return layout.count_scales(numel) * layout.scale_bytes + layout.code_bytes(numel)

    def encode(self, values: Float32, residual: Float32 | None = None) -> bytes:
        """See `Codec.encode`. One pass; `residual` is exact: ``residual + decode(payload) == values``.

        `residual` may be `values`, but must not overlap it in part. A refused call then leaves
        `values` as they were, up to the sign of zeros.

        Raises:
            ValueError: a value is NaN or infinite, or an array is not a float32 vector.
        """
        require_encodable(values, residual)
        buffer, payload = blank_payload(self.max_bytes(values.size))
        self._encode(values, residual, *self._layout.split(payload, values.size))
        return buffer.getvalue()

    def encode_parts(self, parts: Iterable[Float32], numel: int, out: memoryview) -> memoryview:
        """See `Codec.encode_parts`.

        Raises:
            ValueError: a value is NaN or infinite, or a part is not a writable float32 vector.
        """
        layout = self._layout
        room, payload = room_in(out, self.max_bytes(numel))
        scales, codes = layout.split(payload, numel)
        for place, part in placed(parts, numel):
            self._encode(part, part, *layout.range(scales, codes, place, part.size), place=place)
        return room

    def _encode(
        self,
        values: Float32,
        residual: Float32 | None,
        scales: Scales,
        codes: Codes,
        *,
        place: int = 0,
    ) -> None:
        layout, kernels = self._layout, self._kernels
        whole = values.size // layout.block
        body, codes_body = whole * layout.block, layout.code_bytes(whole * layout.block)
        scratch = np.empty(layout.block, np.float32)
        left = scratch if residual is None else residual[:body]
        refused = kernels.encode(
            values[:body], left, codes[:codes_body], scales[:whole], layout.block
        )
        if refused < 0 and body < values.size:
            held = layout.padded(values[body:])
            left = scratch[: held.size]
            refused = kernels.encode(held, left, codes[codes_body:], scales[whole:], held.size)
            if refused < 0 and residual is not None:
                residual[body:] = left[: values.size - body]
            refused += whole if refused >= 0 else 0
        if refused >= 0:
            if residual is not None:
                self._give_back(residual, refused, scales, codes)
            require_finite(values, self._by, place=place)

    def decode_parts(self, payload: Buffer, numel: int) -> Iterator[Float32]:
        """See `Codec.decode_parts`.

        Raises:
            PeerError: not one encoding of `numel` values.
        """
        scales, codes = self._checked(payload, numel)
        held = np.empty(min(PART, numel), np.float32)
        for part in parts_of(0, numel):
            out = held[: part.stop - part.start]
            self._decode(*self._layout.range(scales, codes, part.start, out.size), out)
            yield out

    def decode(self, payload: Buffer, out: Float32) -> None:
        """See `Codec.decode`. A refused payload leaves `out` as it was.

        Raises:
            PeerError: not one encoding of ``out.size`` values.
            ValueError: `out` is not a writable float32 vector.
        """
        require_vector(out, "out", write=True)
        self._decode(*self._checked(payload, out.size), out)

    def _decode(self, scales: Scales, codes: Codes, out: Float32) -> None:
        for some_codes, some_scales, values, block in self._blocks(scales, codes, out):
            self._kernels.decode(some_codes, some_scales, values, block)

    def accumulate(self, payload: Buffer, scale: float, out: Float32) -> None:
        """See `Codec.accumulate`; `scale` is rounded to float32. A refused payload leaves `out` as it was.

        The sums may leave float32's range if the values do; check the final vector once.

        Raises:
            PeerError: not one encoding of ``out.size`` values.
            ValueError: `scale` is not finite, or `out` is not a writable float32 vector.
        """
        require_vector(out, "out", write=True)
        factor = factor_of(scale)
        for codes, scales, values, block in self._blocks(*self._checked(payload, out.size), out):
            self._kernels.accumulate(codes, scales, factor, values, block)

    def norm(self, payload: Buffer, numel: int) -> float:
        """See `Codec.norm`. One pass over the payload; nothing is decoded.

        Raises:
            PeerError: not one encoding of `numel` values.
        """
        scales, codes = self._checked(payload, numel)
        layout, sum_of_squares = self._layout, self._kernels.sum_of_squares
        whole = numel // layout.block
        body = layout.code_bytes(whole * layout.block)
        total = sum_of_squares(codes[:body], scales[:whole], layout.block)
        rest = numel - whole * layout.block
        if rest:
            total += sum_of_squares(
                codes[body:], scales[whole:], rest + (rest % 2 if layout.packed else 0)
            )
        return math.sqrt(total)

    @property
    def _kernels(self) -> BlockKernels:
        return implementation(self._by).blocks[self._layout.name]

    def _blocks(
        self, scales: Scales, codes: Codes, out: Float32
    ) -> Iterator[tuple[Codes, Scales, Float32, int]]:
        """The whole blocks and the short one: codes, scales, where the values go, block."""
        layout = self._layout
        whole = out.size // layout.block
        body, codes_body = whole * layout.block, layout.code_bytes(whole * layout.block)
        yield codes[:codes_body], scales[:whole], out[:body], layout.block
        if body < out.size:
            held = layout.padded(out[body:])
            yield codes[codes_body:], scales[whole:], held, held.size
            out[body:] = held[: out.size - body]

    def _checked(self, payload: Buffer, numel: int) -> tuple[Scales, Codes]:
        layout = self._layout
        raw = bytes_of(payload, self.max_bytes(numel), f"{self.name}, {numel} values")
        scales, codes = layout.split(raw, numel)
        scales = np.require(scales, requirements="A")
        if numel == 0:
            return scales, codes
        low, high = int(scales.min()), int(scales.max())
        if low < layout.smallest_scale or high > layout.largest_scale:
            raise PeerError(
                "malformed",
                f"{self.name}: scales {low:#x} to {high:#x}, "
                f"expected {layout.smallest_scale:#x} to {layout.largest_scale:#x}",
            )
        half_used = layout.packed and numel % 2 == 1
        if not self._kernels.canonical(codes) or (half_used and int(codes[-1]) > 15):
            raise PeerError("malformed", f"{self.name}: a code that no encoder writes")
        return scales, codes

    def _give_back(self, residual: Float32, blocks: int, scales: Scales, codes: Codes) -> None:
        """Adds what was encoded back to the residual: what a refused call took from `values`."""
        layout = self._layout
        taken = codes[: layout.code_bytes(blocks * layout.block)]
        out = residual[: blocks * layout.block]
        self._kernels.accumulate(taken, scales[:blocks], np.float32(1), out, layout.block)
