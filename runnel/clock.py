"""The only reader of wall-clock time. Machines take `now` as an argument; loops have their own time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where seconds come from."""

    def monotonic_s(self) -> float:
        """Seconds that never jump; their zero means nothing."""
        ...

    def unix_s(self) -> float:
        """Seconds since 1970. For people, for records that expire, never for agreement."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic_s(self) -> float:
        """See `Clock.monotonic_s`."""
        return time.monotonic()

    def unix_s(self) -> float:
        """See `Clock.unix_s`."""
        return time.time()


class ManualClock:
    """A clock that stands still until told: for tests and simulations."""

    def __init__(self, *, monotonic_s: float = 0.0, unix_s: float = 1_700_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._unix_s = unix_s

    def monotonic_s(self) -> float:
        """See `Clock.monotonic_s`."""
        return self._monotonic_s

    def unix_s(self) -> float:
        """See `Clock.unix_s`."""
        return self._unix_s

    def advance(self, seconds: float) -> None:
        """Moves both readings forward."""
        self._monotonic_s += seconds
        self._unix_s += seconds
