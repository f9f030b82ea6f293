"""What a commitment names of a public window, so that it can be computed again with what its peer is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runnel.errors import PeerError
from runnel.node.fields import digest_of, integer, items, row
from runnel.types import Digest

MAX_MOVES = 16
"""A window has two of a fragment where nothing is late."""

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Move:
    """Something that was added to a trainer's values of a fragment beside its own steps.

    Attributes:
        step: inner steps of the window before it.
        round: by which; of the same fragment.
        starts: the peer's own share of it moved the values to ``theta - q``; else its result was merged.
    """

    step: int
    round: int
    starts: bool

    def to_wire(self) -> list[Any]:
        """Fields in wire order."""
        return [self.step, self.round, int(self.starts)]

    @staticmethod
    def from_wire(fields: Any) -> Move:
        """Reads fields in wire order; PeerError for anything malformed."""
        step, number, starts = row(fields, 3)
        kind = integer(starts)
        if kind > 1:
            raise PeerError("malformed", f"expected 0 or 1, got {kind}")
        return Move(integer(step), integer(number), bool(kind))


@dataclass(frozen=True, slots=True)
class WindowFacts:
    """How a peer came from the beginning of a public window to its share of a fragment.

    Attributes:
        values: name of the trainer's values of the fragment at the beginning: the digest of float32,
            little-endian.
        inner: name of what the inner optimizer remembered there, see `InnerState.name`.
        next_inner: name of what it remembered as the next window began.
        residual: digest of the fragment's residual as the share was encoded, followed by how far the
            values were ahead of what it counts from, if they were.
        progress: share of the run that was done at the newest record merged before it, in millionths.
        moves: those until the values were read, in their order.
        late: those of the next window until they were encoded: they were added to what was read.
    """

    values: Digest
    inner: Digest
    next_inner: Digest
    residual: Digest
    progress: int
    moves: tuple[Move, ...]
    late: tuple[Move, ...] = ()

    def to_wire(self) -> list[Any]:
        """Fields in wire order."""
        return [
            _VERSION,
            self.values,
            self.inner,
            self.next_inner,
            self.residual,
            self.progress,
            [move.to_wire() for move in self.moves],
            [move.to_wire() for move in self.late],
        ]

    @staticmethod
    def from_wire(fields: Any) -> WindowFacts | None:
        """Reads fields in wire order; None for none of them.

        Raises:
            PeerError: a field is missing, of the wrong type or out of bounds, or of another version.
        """
        if fields == []:
            return None
        version, values, inner, next_inner, residual, progress, moves, late = row(fields, 8)
        if integer(version) != _VERSION:
            raise PeerError("version", f"a window's facts of version {version}, we read {_VERSION}")
        return WindowFacts(
            digest_of(values),
            digest_of(inner),
            digest_of(next_inner),
            digest_of(residual),
            integer(progress),
            tuple(Move.from_wire(move) for move in items(moves, MAX_MOVES)),
            tuple(Move.from_wire(move) for move in items(late, MAX_MOVES)),
        )
