"""Codecs with scales for each block of values: int8 to one bit. Formats are described in `codecs`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from runnel.errors import PeerError
from runnel.kernels import BlockKernels, Float32, implementation, require_vector
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
    sum_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

    from runnel.protocols import Part

Codes = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFormat:
    """The layout of a codec with scales for each block; the arithmetic is found by its name."""

    name: str
    block: int
    """Values that share scales; even."""
    bits: int
    """Of a code: 8, 4, 2 or 1; those of a byte belong to values that lie far from each other."""
    scale_bytes: int
    smallest_scale: int
    largest_scale: int
    scales: int = 1
    """Scales of a block, in rising order."""
    exact_residual: bool = True
    """Whether ``residual + decode(payload)`` is what was encoded, or that rounded once more."""

    def count_scales(self, numel: int) -> int:
        """Scales of `numel` values."""
        return -(-numel // self.block) * self.scales

    def code_bytes(self, numel: int) -> int:
        """Bytes of the codes of `numel` values."""
        whole, rest = divmod(numel, self.block)
        return whole * (self.block * self.bits // 8) - (-rest * self.bits // 8)

    def split(self, payload: Bytes, numel: int) -> tuple[Scales, Codes]:
        """Views of a payload's scales and codes."""
        border = self.count_scales(numel) * self.scale_bytes
        scales = payload[:border].view(np.uint16 if self.scale_bytes == 2 else np.uint8)
        return scales, payload[border:].view(np.int8 if self.bits == 8 else np.uint8)

    def range(self, scales: Scales, codes: Codes, place: int, numel: int) -> tuple[Scales, Codes]:
        """Views of the scales and codes of `numel` values from `place`, which begins a block."""
        first, border = self.count_scales(place), self.code_bytes(place)
        return (
            scales[first : first + self.count_scales(numel)],
            codes[border : border + self.code_bytes(numel)],
        )

    def whole(self, numel: int) -> int:
        """How many of `numel` values are in whole blocks."""
        return numel - numel % self.block

    def padded(self, values: Float32) -> Float32:
        """A copy of the last, short block, with a zero behind it where nibbles need one."""
        size = values.size + (values.size % 2 if self.bits == 4 else 0)
        held = np.zeros(size, np.float32)
        held[: values.size] = values
        return held

    def has_stray_bits(self, codes: Codes, numel: int) -> bool:
        """Whether a bit is set in the codes where the last, short block has no value."""
        rest = numel - self.whole(numel)
        slots = 8 // self.bits
        if rest % slots == 0:
            return False
        last = codes[self.code_bytes(numel - rest) :]
        shifts = np.arange(slots, dtype=np.uint8)[:, None] * np.uint8(self.bits)
        spread = (last >> shifts) & np.uint8((1 << self.bits) - 1)
        return bool(spread.ravel()[rest:].any())


class BlockwiseCodec:
    """A codec with scales for each block of values."""

    def __init__(self, layout: BlockFormat, *, by: str | None = None) -> None:
        """`by` forces an implementation of the arithmetic, see `runnel.kernels.implementation`."""
        self._layout = layout
        self._by = by

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return self._layout.name

    def seeded(self, seed: int) -> Self:
        """See `Codec.seeded`."""
        del seed
        return self

    def max_bytes(self, numel: int) -> int:
        """The exact size of a payload of `numel` values."""
        layout = self._layout
        return layout.count_scales(numel) * layout.scale_bytes + layout.code_bytes(numel)

    def encode(self, values: Float32, residual: Float32 | None = None) -> bytes:
        """See `Codec.encode`. `residual` is exact with 4 bits and more: ``residual + decode(payload) == values``.

        With fewer bits values may be much smaller than what they are decoded to, so that this sum is
        rounded. `residual` may be `values`, but must not overlap it in part. A refused call then leaves
        `values` as they were, up to the sign of zeros. One pass; with fewer bits one more of reading.

        Raises:
            ValueError: a value is NaN or infinite, or an array is not a float32 vector.
        """
        require_encodable(values, residual)
        if residual is not None and not self._layout.exact_residual:
            require_finite(values, self._by)  # nothing could be given back later
        buffer, payload = blank_payload(self.max_bytes(values.size))
        scales, codes = self._layout.split(payload, values.size)
        refused = self._encode((values, None), residual, scales, codes)
        if refused >= 0:
            if residual is not None and self._layout.exact_residual:
                self._give_back(residual, refused, scales, codes)
            require_finite(values, self._by)
        return buffer.getvalue()

    def encode_parts(self, parts: Iterable[Part], numel: int, out: memoryview) -> memoryview:
        """See `Codec.encode_parts`.

        Raises:
            ValueError: a value is NaN or infinite, or a part is not a writable float32 vector.
        """
        layout = self._layout
        room, payload = room_in(out, self.max_bytes(numel))
        scales, codes = layout.split(payload, numel)
        for place, part, added in placed(parts, numel):
            some = layout.range(scales, codes, place, part.size)
            refused = self._encode((part, added), part, *some)
            if refused >= 0:
                more = None if added is None else added[refused:]
                require_finite(sum_of(part[refused:], more), self._by, place=place + refused)
        return room

    def fill(self, payload: Bytes, numel: int, place: int, values: Float32) -> None:
        """Encodes finite `values` into a payload of `numel`, from `place` on; they become what is read back.

        `place` begins a block, and only the last values of a payload may end within one.
        """
        some = self._layout.range(*self._layout.split(payload, numel), place, values.size)
        self._encode((values, None), None, *some)
        self._decode(*some, values)

    def read(self, payload: Bytes, numel: int, place: int, out: Float32) -> None:
        """Decodes ``out.size`` values from `place` on, of a payload of `numel` that `require` has let pass.

        `place` begins a block, and only the last values of a payload may end within one.
        """
        scales, codes = self._layout.range(*self._layout.split(payload, numel), place, out.size)
        self._decode(np.require(scales, requirements="A"), codes, out)

    def _encode(
        self,
        summands: tuple[Float32, Float32 | None],
        residual: Float32 | None,
        scales: Scales,
        codes: Codes,
    ) -> int:
        """Encodes the sum of two vectors; the first value of the block that is refused, or -1."""
        layout, kernels = self._layout, self._kernels
        values, added = summands
        body = layout.whole(values.size)
        some_scales, some_codes = layout.range(scales, codes, 0, body)
        nothing, scratch = (
            np.full(layout.block, -0.0, np.float32),
            np.empty(layout.block, np.float32),
        )
        more = nothing if added is None else added[:body]
        left = scratch if residual is None else residual[:body]
        refused = kernels.encode(values[:body], more, left, some_codes, some_scales, layout.block)
        if refused >= 0:
            return refused * layout.block
        if body < values.size:
            held = layout.padded(values[body:])
            more = nothing[: held.size] if added is None else layout.padded(added[body:])
            left = scratch[: held.size]
            some_scales, some_codes = layout.range(scales, codes, body, values.size - body)
            refused = kernels.encode(held, more, left, some_codes, some_scales, held.size)
            if refused >= 0:
                return body
            if residual is not None:
                residual[body:] = left[: values.size - body]
        return -1

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
        body = layout.whole(numel)
        some_scales, some_codes = layout.range(scales, codes, 0, body)
        total = sum_of_squares(some_codes, some_scales, layout.block)
        if body < numel:
            some_scales, some_codes = layout.range(scales, codes, body, numel - body)
            rest = numel - body + (numel % 2 if layout.bits == 4 else 0)
            total += sum_of_squares(some_codes, some_scales, rest)
        return math.sqrt(total)

    def require(self, payload: Buffer, numel: int) -> None:
        """Refuses what cannot be decoded.

        Raises:
            PeerError: not one encoding of `numel` values.
        """
        self._checked(payload, numel)

    @property
    def _kernels(self) -> BlockKernels:
        return implementation(self._by).blocks[self._layout.name]

    def _blocks(
        self, scales: Scales, codes: Codes, out: Float32
    ) -> Iterator[tuple[Codes, Scales, Float32, int]]:
        """The whole blocks and the short one: codes, scales, where the values go, block."""
        layout = self._layout
        body = layout.whole(out.size)
        some_scales, some_codes = layout.range(scales, codes, 0, body)
        yield some_codes, some_scales, out[:body], layout.block
        if body < out.size:
            held = layout.padded(out[body:])
            some_scales, some_codes = layout.range(scales, codes, body, out.size - body)
            yield some_codes, some_scales, held, held.size
            out[body:] = held[: out.size - body]

    def _checked(self, payload: Buffer, numel: int) -> tuple[Scales, Codes]:
        layout = self._layout
        raw = bytes_of(payload, self.max_bytes(numel), f"{self.name}, {numel} values")
        scales, codes = layout.split(raw, numel)
        scales = np.require(scales, requirements="A")
        within = (layout.smallest_scale, layout.largest_scale)
        require_scales(scales, within, self.name, pairs=layout.scales == 2)
        if not self._kernels.canonical(codes) or layout.has_stray_bits(codes, numel):
            raise PeerError("malformed", f"{self.name}: a code that no encoder writes")
        return scales, codes

    def _give_back(self, residual: Float32, numel: int, scales: Scales, codes: Codes) -> None:
        """Adds what was encoded back to the residual: what a refused call took from `values`."""
        some_scales, some_codes = self._layout.range(scales, codes, 0, numel)
        block, one = self._layout.block, np.float32(1)
        self._kernels.accumulate(some_codes, some_scales, one, residual[:numel], block)
