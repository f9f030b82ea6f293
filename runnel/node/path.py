"""Paths of a chain: names of records from genesis to a head, of which old ones are shared by all paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from runnel.types import Digest

NAME_BYTES = 32


class Names:
    """Names in rows of equal length, as bytes: a long run has too many for an object each.

    Rows are only ever added, so that paths may share them; whoever takes some back makes a new one.
    """

    def __init__(self, row: int, rows: Sequence[bytes] = ()) -> None:
        """`rows` hold `row` names each."""
        self.row = row
        self.rows = list(rows)

    def __len__(self) -> int:
        return self.row * len(self.rows)

    def __getitem__(self, index: int) -> Digest:
        """The name at `index`, which is not negative."""
        place = index % self.row * NAME_BYTES
        return Digest(self.rows[index // self.row][place : place + NAME_BYTES])

    def find(self, name: Digest) -> int:
        """Where `name` is, or -1. Looks through all of them: some milliseconds for a million."""
        for number in range(len(self.rows) - 1, -1, -1):
            row, place = self.rows[number], -1
            while (place := row.find(name, place + 1)) >= 0:
                if place % NAME_BYTES == 0:
                    return number * self.row + place // NAME_BYTES
        return -1


class Path(Sequence[Digest]):
    """Names from genesis to a head; what is after record `number` has the index ``number + 1``.

    Immutable. The first `shared` names are those of `names`, the others are in `tail`. As a record
    names its parent, paths are equal whose last names are.
    """

    __slots__ = ("_names", "_shared", "tail")

    def __init__(self, names: Names, shared: int, tail: Sequence[Digest] = ()) -> None:
        self._names, self._shared, self.tail = names, shared, tuple(tail)

    def __len__(self) -> int:
        return self._shared + len(self.tail)

    @overload
    def __getitem__(self, index: int) -> Digest: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Digest]: ...

    def __getitem__(self, index: int | slice) -> Digest | Sequence[Digest]:
        """One name, or some: those from the beginning are a path again."""
        if isinstance(index, slice):
            start, stop, stride = index.indices(len(self))
            if start == 0 and stride == 1:
                return self.upto(stop)
            if start >= self._shared and stride == 1:
                return self.tail[start - self._shared : max(stop - self._shared, 0)]
            return tuple(self[place] for place in range(start, stop, stride))
        place = index + len(self) if index < 0 else index
        if place >= self._shared:
            return self.tail[place - self._shared]
        if place < 0:
            raise IndexError(f"{index} is before the beginning of a path of {len(self)}")
        return self._names[place]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and (not other or self[-1] == other[-1])

    def __hash__(self) -> int:
        return hash(self[-1] if len(self) else None)

    def __repr__(self) -> str:
        return f"Path({len(self)} to {self[-1].hex()[:8] if len(self) else 'nothing'})"

    def upto(self, count: int) -> Path:
        """The first `count` names."""
        kept = max(count - self._shared, 0)
        return Path(self._names, min(count, self._shared), self.tail[:kept])

    def then(self, *names: Digest) -> Path:
        """With more names at its end."""
        return Path(self._names, self._shared, (*self.tail, *names))
