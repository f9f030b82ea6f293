"""What happens to a trainer's values in public windows beside its steps, noted so that commitments can name it.

The trainer notes, the codec thread hashes: a window's beginning is the end of the one before, so its names
are those of what was handed over then. Windows that nobody could compute again have no names: a trainer's
first one, one of a fragment that sat out, and one in which rounds were given up or taken up at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from runnel.hashing import digest
from runnel.node.window_facts import MAX_MOVES, Move, WindowFacts
from runnel.optim.exchange import Array, raw
from runnel.optim.inner_state import InnerState
from runnel.types import Digest


@dataclass(frozen=True, slots=True)
class WindowEnd:
    """What a share says of the window that it ends, for one fragment.

    Attributes:
        serial: the window's number, of this trainer's.
        inner: what its inner optimizer began the next window with; None if that cannot be copied.
        moves: those of the window; None where it cannot be computed again.
        late: those that came between the reading of the share and its hand-over.
        progress: of the run as the window began, in millionths.
        values: name of what was read, where something came between.
    """

    serial: int
    inner: InnerState | None
    moves: tuple[Move, ...] | None
    progress: int
    late: tuple[Move, ...] = ()
    values: Digest | None = None

    def moved(self, snapshot: Array, move: Move | None) -> WindowEnd:
        """With one more late move, None for one that nobody can repeat; `snapshot` is what it is added to."""
        values = digest(raw(snapshot)) if self.values is None else self.values
        if move is None:
            return replace(self, moves=None, values=values)
        return replace(self, late=(*self.late, move), values=values)


@dataclass(slots=True)
class WindowTrace:
    """The window under way, in the trainer's thread.

    Attributes:
        progress: share of the run that was done at the newest record that was merged, in millionths.
        began_with: the same before it.
        began_at: inner steps of the trainer before it.
        serial: its number.
        moves: by fragment.
        lost: fragments whose values were moved as nobody could move them again.
    """

    progress: int = 0
    began_with: int = 0
    began_at: int = 0
    serial: int = 0
    moves: dict[int, tuple[Move, ...]] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)

    def note(self, fragment: int, move: Move | None) -> None:
        """The trainer's values were moved; None for what nobody can repeat."""
        if move is None:
            self.lost.add(fragment)
        else:
            self.moves[fragment] = (*self.moves.get(fragment, ()), move)

    def end(
        self, at_step: int, inner: InnerState | None, fragments: Iterable[int]
    ) -> list[WindowEnd]:
        """The window is over; what to say of these fragments, whose values were read."""
        known = {f: None if f in self.lost else self.moves.get(f, ()) for f in fragments}
        ends = [WindowEnd(self.serial, inner, moves, self.began_with) for moves in known.values()]
        self.began_at, self.began_with, self.serial = at_step, self.progress, self.serial + 1
        self.moves, self.lost = {}, set()
        return ends


class WindowNames:
    """Names of where windows began, in the codec thread."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[int, Digest]] = {}
        self._inner: dict[int, Digest | None] = {}

    def of(
        self, fragment: int, end: WindowEnd | None, snapshot: Array, residual: Iterable[Array]
    ) -> WindowFacts | None:
        """What a share's commitment names; None where its window cannot be computed again.

        Args:
            fragment: of the share.
            end: what it says of its window; None for nothing.
            snapshot: the values that are handed over.
            residual: what the store counts beside them, in order.
        """
        before = self._values.pop(fragment, None)
        if end is None:
            return None
        self._values[fragment] = (end.serial, end.values or digest(raw(snapshot)))
        if end.serial not in self._inner:
            newest = {s: name for s, name in self._inner.items() if s == end.serial - 1}
            self._inner = {**newest, end.serial: end.inner.name if end.inner else None}
        inner, next_inner = self._inner.get(end.serial - 1), self._inner[end.serial]
        if before is None or before[0] != end.serial - 1 or inner is None or next_inner is None:
            return None
        if end.moves is None or max(len(end.moves), len(end.late)) > MAX_MOVES:
            return None
        return WindowFacts(
            values=before[1],
            inner=inner,
            next_inner=next_inner,
            residual=digest(*map(raw, residual)),
            progress=end.progress,
            moves=end.moves,
            late=end.late,
        )
