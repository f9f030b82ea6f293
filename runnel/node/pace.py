"""How much of its shares a peer sends: all of them, or as many slices as its link carries in time. Pure.

A share that comes too late is not lost, but it was sent for nothing, and others waited for it. So a
peer whose link is slow sends a few slices of each share, another few of the next one, and says in its
commitments which: every slice has its turn, the link is used to its limit, and nobody waits.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

_ENOUGH_BYTES = 1 << 16
"""Less than this in a burst says more about the way than about the link."""
_BURSTS = 3
_LONGEST_BURST_S = 30.0
MARGIN = 0.8
"""Part of the time there is that is planned with."""
_APART = 0.618
"""Fragments begin with different credits, multiples of this, so that their turns are spread over the rounds."""


class LinkMeter:
    """Measures what this peer's link carries while it sends: bytes over time, burst by burst."""

    def __init__(self) -> None:
        self._under_way = 0
        self._began = 0.0
        self._done_bytes = 0
        self._best: float | None = None
        self._bursts: deque[float] = deque(maxlen=_BURSTS)

    def begin(self, now: float) -> None:
        """A transfer begins."""
        if not self._under_way:
            self._began, self._done_bytes, self._best = now, 0, None
        self._under_way += 1

    def end(self, num_bytes: int, now: float) -> None:
        """A transfer ends that has moved `num_bytes`, or would have moved that many at best."""
        self._under_way -= 1
        self._done_bytes += num_bytes
        elapsed_s = now - self._began
        if num_bytes and elapsed_s > 0:
            rate = 8 * self._done_bytes / elapsed_s
            # little says nothing but that the link is not slower: enough to see that it has recovered
            if self._done_bytes >= _ENOUGH_BYTES or rate > self.bits_s():
                self._best = max(self._best or 0.0, rate)
        if not self._under_way or elapsed_s > _LONGEST_BURST_S:
            if self._best is not None:
                self._bursts.append(self._best)
            self._began, self._done_bytes, self._best = now, 0, None

    def bits_s(self) -> float:
        """The median of recent bursts; infinite until there was one."""
        return median(self._bursts) if self._bursts else math.inf


@dataclass(slots=True)
class Pace:
    """Which slices of its next share a peer sends.

    `cap_bits_s` is what it may send, `meter` what its link was seen to carry.
    """

    cap_bits_s: float = math.inf
    meter: LinkMeter = field(default_factory=LinkMeter)
    _credit: dict[int, float] = field(default_factory=dict)
    _turns: dict[int, int] = field(default_factory=dict)

    def bits_s(self) -> float:
        """What is planned with; infinite while nothing is known."""
        return min(self.meter.bits_s(), self.cap_bits_s)

    def withheld(
        self, fragment: int, slices: int, slice_bytes: int, *, time_s: float, every_s: float = 0.0
    ) -> tuple[int, ...]:
        """The slices of a share that are not sent; none where the link carries all of them in time.

        Each call is one share: what a slow link could not use of its time counts for the fragment's next
        one, so that also a slice that takes longer than one round's time has its turn. Slices of a
        fragment follow each other in a circle.

        Args:
            fragment: whose share.
            slices: in the share.
            slice_bytes: the size of one.
            time_s: how long after the decision on the set slices are waited for.
            every_s: from one round to the next; 0 if that is not known.
        """
        others = max(1, slices - 1)  # as a rule a peer reduces one slice itself
        carried = self.bits_s() * MARGIN * time_s / (8 * slice_bytes)
        if every_s and not math.isinf(self.cap_bits_s):
            # What is left of a cap when the others have this peer's result, which all wait for, too. A
            # measured rate needs no such rule: it was measured beside all else.
            carried = min(carried, self.cap_bits_s * MARGIN * every_s / (8 * slice_bytes) - others)
            carried = max(carried, 0.0)
        if carried >= others:
            self._credit.clear()
            return ()
        # by fragment, or one credit for all might always be full at the same fragments
        credit = carried + self._credit.get(fragment, fragment * _APART % 1)
        count = min(int(credit), max(1, int(carried)))
        self._credit[fragment] = min(credit - count, 1.0)
        first = self._turns.get(fragment, 0) % slices
        self._turns[fragment] = first + count
        sent = {(first + i) % slices for i in range(count)}
        return tuple(index for index in range(slices) if index not in sent)
