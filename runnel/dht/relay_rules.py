"""For whom a peer carries bytes, and how much: bounds that a stranger cannot pass. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from runnel.dht.rates import Buckets, Rate
from runnel.types import PeerId

MAX_CIRCUITS = 64
"""Circuits that a peer carries at a time, in all."""

MAX_CIRCUITS_PER_PEER = 16
"""Circuits that begin or end at one peer; two peers need one."""

MAX_STRANGER_CIRCUITS = 4
"""Circuits at a time, in all, of which one end is not known."""

STRANGER_BYTES = 32 << 20
"""What such a circuit carries, both directions together, before it ends."""

STRANGER_RATE = Rate(per_s=1 / 20, burst=8)
"""New ones of all strangers together: in the long run they get 1.6 MiB/s out of a relay, at most."""

_ALL = PeerId(b"")

Knows = Callable[[PeerId], bool]


@dataclass(frozen=True, slots=True)
class Grant:
    """A circuit that may be carried; `max_bytes` is None for as many as come."""

    source: PeerId
    target: PeerId
    max_bytes: int | None


class RelayRules:
    """Who may use a relay: peers that it knows, and strangers who want to talk to one of them.

    `knows` says who belongs to the run; until it is set nobody does, and nothing is carried.
    """

    def __init__(self) -> None:
        self.knows: Knows = lambda _: False
        self._open: list[Grant] = []
        self._strangers = Buckets(STRANGER_RATE)

    @property
    def num_open(self) -> int:
        """Circuits carried now."""
        return len(self._open)

    def ask(self, source: PeerId, target: PeerId, now: float) -> Grant | str:
        """A grant, to be given back by `end`, or why not."""
        known = self.knows(source) + self.knows(target)
        if source == target or not known:
            return "neither end is a peer of this run"
        if len(self._open) >= MAX_CIRCUITS:
            return f"{MAX_CIRCUITS} circuits are open"
        ends = Counter(end for grant in self._open for end in (grant.source, grant.target))
        if max(ends[source], ends[target]) >= MAX_CIRCUITS_PER_PEER:
            return f"{MAX_CIRCUITS_PER_PEER} circuits of one peer are open"
        if known < 2:
            if sum(grant.max_bytes is not None for grant in self._open) >= MAX_STRANGER_CIRCUITS:
                return f"{MAX_STRANGER_CIRCUITS} circuits of strangers are open"
            if not self._strangers.take(_ALL, now):
                return "strangers have opened many circuits lately"
        grant = Grant(source, target, STRANGER_BYTES if known < 2 else None)
        self._open.append(grant)
        return grant

    def end(self, grant: Grant) -> None:
        """Gives a grant back."""
        self._open.remove(grant)
