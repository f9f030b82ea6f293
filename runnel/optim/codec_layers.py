"""A codec that gives each layer bits of its own: cells of values, each by one of several codecs with blocks.

The format is described in `codecs`, how cells get their codecs in `layer_bits`.
"""

from __future__ import annotations

import math
import struct
from copy import copy
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Self

import numpy as np

from runnel.errors import BugError, PeerError
from runnel.kernels import Float32, require_vector
from runnel.optim.codec_blockwise import BlockFormat, BlockwiseCodec
from runnel.optim.parts import PART, parts_of
from runnel.optim.payloads import (
    Bytes,
    factor_of,
    require_encodable,
    require_finite,
    room_in,
    summed_parts,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from runnel.protocols import Part

LEAST = 512
"""Values of a cell at least, or all that are left of a part: so a payload has few cells, however long."""

_HEAD = struct.Struct("<BH")


@dataclass(frozen=True, slots=True)
class Cell:
    """Values that are encoded alike: the place of their codec in the ladder, and how many they are."""

    choice: int
    numel: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a cell's values are, and its payload."""

    codec: BlockwiseCodec
    values: slice
    payload: memoryview


class LayersCodec:
    """Cells of values, each with the codec that was chosen for it; a payload says which.

    A codec that was cut (`cut`) encodes so; one that was not takes its reference for everything. Any of
    them reads all payloads: who encodes needs nobody's consent to a choice.

    Source: *L-GreCo: Layerwise-Adaptive Gradient Compression for Efficient and Accurate Deep Learning*
    (Alimohammadi et al. 2022), whose workers share one choice; a reducer here decodes before it adds up.
    """

    def __init__(
        self,
        reference: BlockFormat,
        ladder: Sequence[BlockFormat],
        *,
        by: str | None = None,
    ) -> None:
        """`ladder`: what is chosen from, by rising bits; `reference` is one of them.

        `by` forces an implementation of the arithmetic, see `runnel.kernels.implementation`.
        """
        self.ladder = tuple(BlockwiseCodec(layout, by=by) for layout in ladder)
        self.reference = list(ladder).index(reference)
        self._cells: tuple[Cell, ...] | None = None
        self._by = by

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return f"l-greco+{self.ladder[self.reference].name}"

    def seeded(self, seed: int) -> Self:
        """See `Codec.seeded`."""
        del seed
        return self

    def cut(self, cells: Iterable[Cell]) -> Self:
        """This codec for one payload with these cells, none of which crosses a multiple of `PART`."""
        chosen = copy(self)
        chosen._cells = tuple(cells)
        return chosen

    def max_bytes(self, numel: int) -> int:
        """The size of a payload of `numel` values at most: all cells short, and of the most bits."""
        cells = numel // LEAST + -(-numel // PART)
        return self.ladder[-1].max_bytes(numel) + (_HEAD.size + 2) * cells

    def uniform_bytes(self, numel: int) -> int:
        """The size of a payload of `numel` values that has the reference for everything."""
        return self.size_of(self._uniform(numel))

    def size_of(self, cells: Iterable[Cell]) -> int:
        """The exact size of a payload with these cells."""
        return sum(_HEAD.size + self.ladder[c.choice].max_bytes(c.numel) for c in cells)

    def cells_in(self, payload: Buffer, numel: int) -> tuple[Cell, ...]:
        """What a payload of `numel` values says of its cells.

        Raises:
            PeerError: it does not say that of just so many values, or is not as long as it says.
        """
        raw, cells, place = _bytes_in(payload), list[Cell](), 0
        most = min(raw.nbytes, self.max_bytes(numel)) // _HEAD.size
        while place < numel and len(cells) < most:
            choice, last = _HEAD.unpack_from(raw, len(cells) * _HEAD.size)
            left = min(PART - place % PART, numel - place)
            if choice >= len(self.ladder) or not min(LEAST, left) <= last + 1 <= left:
                break
            cells.append(Cell(choice, last + 1))
            place += last + 1
        if place != numel or raw.nbytes != self.size_of(cells):
            raise PeerError(
                "malformed",
                f"payload of {raw.nbytes} bytes, expected cells of {numel} values ({self.name})",
            )
        return tuple(cells)

    def encode(self, values: Float32, residual: Float32 | None = None) -> bytes:
        """See `Codec.encode`. `residual` is exact where a cell's codec has 4 bits and more.

        A refused call leaves `residual` as it was. Two passes, and a copy if `residual` is not `values`.

        Raises:
            ValueError: a value is NaN or infinite, or an array is not a float32 vector.
        """
        require_encodable(values, residual)
        require_finite(values, self._by)
        left = np.empty_like(values) if residual is None else residual
        np.copyto(left, values)
        room = np.empty(self.max_bytes(values.size), np.uint8).data
        parts = (left[part] for part in parts_of(0, values.size))
        return bytes(self.encode_parts(parts, values.size, room))

    def encode_parts(self, parts: Iterable[Part], numel: int, out: memoryview) -> memoryview:
        """See `Codec.encode_parts`.

        Raises:
            ValueError: a value is NaN or infinite, or a part is not a writable float32 vector.
        """
        cells = self._uniform(numel) if self._cells is None else self._cells
        if sum(cell.numel for cell in cells) != numel:
            raise BugError(f"a codec cut for other than {numel} values")
        room, payload = room_in(out, self.max_bytes(numel))
        head = b"".join(_HEAD.pack(cell.choice, cell.numel - 1) for cell in cells)
        payload[: len(head)] = np.frombuffer(head, np.uint8)
        waiting, end = iter(cells), len(head)
        for place, part in summed_parts(parts, numel):
            require_finite(part, self._by, place=place)
            done = 0
            while done < part.size:
                cell = next(waiting)
                sent = self._sent(cell, part[done : done + cell.numel])
                payload[end : end + sent.size] = sent
                done, end = done + cell.numel, end + sent.size
        return room[:end]

    def decode_parts(self, payload: Buffer, numel: int) -> Iterator[Float32]:
        """See `Codec.decode_parts`.

        Raises:
            PeerError: not one encoding of `numel` values.
        """
        places = iter(self._places(payload, numel))
        held = np.empty(min(PART, numel), np.float32)
        for part in parts_of(0, numel):
            done, size = 0, part.stop - part.start
            while done < size:
                place = next(places)
                end = done + place.values.stop - place.values.start
                place.codec.decode(place.payload, held[done:end])
                done = end
            yield held[:size]

    def decode(self, payload: Buffer, out: Float32) -> None:
        """See `Codec.decode`. A refused payload leaves `out` as it was.

        Raises:
            PeerError: not one encoding of ``out.size`` values.
            ValueError: `out` is not a writable float32 vector.
        """
        require_vector(out, "out", write=True)
        for place in self._places(payload, out.size):
            place.codec.decode(place.payload, out[place.values])

    def accumulate(self, payload: Buffer, scale: float, out: Float32) -> None:
        """See `Codec.accumulate`. A refused payload leaves `out` as it was.

        Raises:
            PeerError: not one encoding of ``out.size`` values.
            ValueError: `scale` is not finite, or `out` is not a writable float32 vector.
        """
        require_vector(out, "out", write=True)
        factor_of(scale)
        for place in self._places(payload, out.size):
            place.codec.accumulate(place.payload, scale, out[place.values])

    def norm(self, payload: Buffer, numel: int) -> float:
        """See `Codec.norm`. One pass over the payload.

        Raises:
            PeerError: not one encoding of `numel` values.
        """
        total = 0.0
        for place in self._places(payload, numel):
            part = place.codec.norm(place.payload, place.values.stop - place.values.start)
            total += part * part
        return math.sqrt(total)

    def _uniform(self, numel: int) -> tuple[Cell, ...]:
        return tuple(Cell(self.reference, p.stop - p.start) for p in parts_of(0, numel))

    def _sent(self, cell: Cell, values: Float32) -> Bytes:
        """A cell's payload; `values` become what it lost. Made apart, as cells end at odd addresses."""
        codec = self.ladder[cell.choice]
        payload = np.empty(codec.max_bytes(cell.numel), np.uint8)
        codec.encode_parts([values], cell.numel, payload.data)
        return payload

    def _places(self, payload: Buffer, numel: int) -> list[_Place]:
        """The cells of a payload, each checked: nothing is written before all are.

        Raises:
            PeerError: not one encoding of `numel` values.
        """
        cells, raw = self.cells_in(payload, numel), _bytes_in(payload)
        codecs = [self.ladder[cell.choice] for cell in cells]
        sizes = [codec.max_bytes(c.numel) for codec, c in zip(codecs, cells, strict=True)]
        stops = accumulate(cell.numel for cell in cells)
        ends = accumulate(sizes, initial=_HEAD.size * len(cells))
        next(ends)
        places = [
            _Place(codec, slice(stop - cell.numel, stop), raw[end - size : end])
            for codec, cell, size, stop, end in zip(codecs, cells, sizes, stops, ends, strict=True)
        ]
        for place in places:
            place.codec.require(place.payload, place.values.stop - place.values.start)
        return places


def _bytes_in(payload: Buffer) -> memoryview:
    view = memoryview(payload)
    if not view.c_contiguous:
        raise PeerError("malformed", "a payload with gaps")
    return view.cast("B")
