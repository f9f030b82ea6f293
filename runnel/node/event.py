"""What all events have in common."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A fact with its time, in seconds since 1970 on this machine's clock."""

    unix_s: float

    def diary(self) -> str | None:
        """The line a person reads, or None for facts that only machines want."""
        return None
