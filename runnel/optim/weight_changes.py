"""What happened lately to integers that somebody else holds a copy of: that copy takes it over, or is made anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from runnel.optim.seed_updates import Entries

_KEPT = 8
_KEPT_DIRECTIONS = 1 << 11
"""More of them take a GPU about as long as all integers take to get there (by counting, not measured)."""


class _Addition(NamedTuple):
    """From one turn to another one nothing happened but these entries."""

    before: int
    after: int
    entries: Entries


class Changes:
    """A count of changes and the newest additions. One thread changes integers at a time, any may look.

    Attributes:
        turn: grows when a change begins and when it ends: who read integers and finds the turn of before
            has read what belongs together.
    """

    def __init__(self) -> None:
        self.turn = 0
        self._newest: tuple[_Addition, ...] = ()

    @contextmanager
    def adding(self, entries: Entries) -> Iterator[None]:
        """Inside the block the integers take these entries, and nothing else."""
        before = self.turn
        with self.overwriting():
            yield
        newest = (*self._newest[1 - _KEPT :], _Addition(before, self.turn, entries))
        while sum(one.entries.slots.size for one in newest) > _KEPT_DIRECTIONS:
            newest = newest[1:]
        self._newest = newest

    @contextmanager
    def overwriting(self) -> Iterator[None]:
        """Inside the block the integers get other values, which no entries say."""
        self.turn += 1
        try:
            yield
        finally:
            self.turn += 1

    def between(self, before: int, after: int) -> list[Entries] | None:
        """What was added from one turn to another one; None if that is not known, or not all there was."""
        found = []
        for addition in self._newest:
            if addition.before == before:
                found.append(addition.entries)
                before = addition.after
        return found if before == after else None
