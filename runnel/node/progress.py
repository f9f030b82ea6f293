"""How much of a run is done: agreed through commitments, so that schedules and the end are the chain's."""

from __future__ import annotations

from runnel.clock import Clock
from runnel.node.chain import Chain
from runnel.node.manifest import RunSpec
from runnel.node.records import FULL_PROGRESS


class Progress:
    """What this peer says of the run's progress; a record takes the median of its set.

    Runs that end by rounds or tokens give every member the same answer; runs that end by minutes are
    measured by each member's own clock, and the median outvotes a wrong one.
    """

    def __init__(self, spec: RunSpec, created_unix_s: float, clock: Clock) -> None:
        self._end, self._clock, self._created_unix_s = spec.end, clock, created_unix_s
        # the rounds after the one that says "done": those already open, and a final one per fragment
        self._fragments = spec.num_fragments
        self._tail_rounds = spec.open_rounds + self._fragments

    def at(self, number: int, chain: Chain) -> int:
        """Share of the run done, in millionths, as of round `number`."""
        shares = [0.0]
        if self._end.rounds:
            shares.append((number + 1) / max(1, self._end.rounds - self._tail_rounds + 1))
        if self._end.tokens:
            # a record counts the tokens behind one fragment; each token is behind all fragments in turn
            shares.append(chain.head.tokens / (self._fragments * self._end.tokens))
        if self._end.minutes:
            shares.append((self._clock.unix_s() - self._created_unix_s) / 60 / self._end.minutes)
        return max(0, min(FULL_PROGRESS, int(max(shares) * FULL_PROGRESS)))
