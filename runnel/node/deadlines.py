"""Deadlines from arrivals, not from constants: median + k * MAD of what was seen lately."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from statistics import median

from runnel.node.pace import Pace
from runnel.types import PeerId

_SPREAD_FACTOR = 6.0
_WINDOW = 64
_ENOUGH = 4
_REMEMBERED_ROUNDS = 16
_HURRY_SHARE = 0.2
BEHIND_SHARE = 0.5
_RECENT_ROUNDS = 8


class ArrivalWindow:
    """Recent delays of one kind of arrival, in seconds.

    Late arrivals must be recorded too, however late: a window that only sees those who made it
    shrinks until nobody does.
    """

    def __init__(self, *, floor_s: float, ceiling_s: float, enough: int = _ENOUGH) -> None:
        """`enough` arrivals are evidence."""
        self._floor_s, self._ceiling_s, self._enough = floor_s, ceiling_s, enough
        self._delays: deque[float] = deque(maxlen=_WINDOW)
        self._deadline_s = max(floor_s, ceiling_s / 2)
        self._changed = False

    def arrived(self, delay_s: float) -> None:
        """Takes in one arrival; a delay beyond the ceiling counts as the ceiling."""
        self._delays.append(min(max(delay_s, 0.0), self._ceiling_s))
        self._changed = True

    def deadline_s(self) -> float:
        """How long to wait, within floor and ceiling; the ceiling's half until there is evidence."""
        if self._changed and len(self._delays) >= self._enough:
            middle = median(self._delays)
            spread = median(abs(delay - middle) for delay in self._delays)
            wanted_s = 2 * middle + _SPREAD_FACTOR * spread
            self._deadline_s = min(max(wanted_s, self._floor_s), self._ceiling_s)
            self._changed = False
        return self._deadline_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds of all deadlines, from the manifest; seconds. `together`: rounds that are due at one step."""

    floor_s: float = 0.5
    ceiling_s: float = 30.0
    stall_s: float = 30.0
    together: int = 1


class Deadlines:
    """The waits of a round: for commitments after the half, for data, for votes, and for all of its work.

    `pace` is what this peer's own link carries meanwhile.
    """

    def __init__(self, limits: Limits, pace: Pace | None = None) -> None:
        self.limits = limits
        self.pace = pace or Pace()
        self.commits = ArrivalWindow(floor_s=limits.floor_s, ceiling_s=limits.ceiling_s)
        self.data = ArrivalWindow(floor_s=limits.floor_s, ceiling_s=limits.ceiling_s)
        self.votes = ArrivalWindow(floor_s=limits.floor_s, ceiling_s=limits.ceiling_s / 2)
        self.finish = ArrivalWindow(floor_s=limits.floor_s, ceiling_s=limits.ceiling_s, enough=1)
        self._intervals: deque[float] = deque(maxlen=_RECENT_ROUNDS + limits.together - 1)
        self._sets: OrderedDict[Hashable, float] = OrderedDict()
        self._halves: OrderedDict[Hashable, tuple[float, set[PeerId]]] = OrderedDict()

    def half_committed(self, key: Hashable, now: float) -> None:
        """Half of a round's members have committed: from here on commitments are timed."""
        self._halves[key] = (now, set())
        while len(self._halves) > _REMEMBERED_ROUNDS:
            self._halves.popitem(last=False)

    def too_late(self, key: Hashable, peer: PeerId, now: float) -> None:
        """A commitment to a round that is over here already counts, too; its repetitions do not."""
        half_at, seen = self._halves.get(key, (now, {peer}))
        if peer not in seen:
            seen.add(peer)
            self.commits.arrived(now - half_at)

    def set_decided(self, key: Hashable, now: float) -> None:
        """A round's set is decided: from here on its exchange and arithmetic are timed."""
        self._sets[key] = now
        while len(self._sets) > _REMEMBERED_ROUNDS:
            self._sets.popitem(last=False)

    def finished(self, key: Hashable, now: float) -> None:
        """The state after a round's results is there, however late."""
        at = self._sets.pop(key, None)
        if at is not None:
            self.finish.arrived(now - at)

    def moved(self, interval_s: float) -> None:
        """A round was decided, so long after the one before."""
        self._intervals.append(interval_s)

    @property
    def interval_s(self) -> float:
        """The usual time between two rounds; 0 until some were seen.

        Of rounds that are due together the mean: what lies between them is how long exchanges take, and a
        slow link that was given a share of that would be given less and less.
        """
        span, seen = self.limits.together, list(self._intervals)
        if len(seen) < max(_ENOUGH, span):
            return 0.0
        return median(sum(seen[i : i + span]) for i in range(len(seen) - span + 1)) / span

    @property
    def data_s(self) -> float:
        """How long slices that are on their way are waited for.

        Half of the time between two rounds holds nobody up, as their exchange runs behind the training:
        so much is left to slow links, whatever most arrivals take.
        """
        return max(self.data.deadline_s(), self.sure_s)

    @property
    def sure_s(self) -> float:
        """How long all others wait for slices at least, whatever arrivals they have seen."""
        behind_s = min(BEHIND_SHARE * self.interval_s, self.limits.ceiling_s)
        return max(behind_s, self.limits.floor_s)

    @property
    def patience_s(self) -> float:
        """The longest wait for one part of a round, a commitment or data, before going on without it."""
        return max(self.commits.deadline_s(), self.data.deadline_s())

    @property
    def hurry_s(self) -> float:
        """How long after the half the trainer is asked for what it has.

        What is hurried arrives this much later and is timed too. The share is small enough that the
        deadline cannot feed on itself: at most four times it comes back (see `ArrivalWindow`).
        """
        return _HURRY_SHARE * self.commits.deadline_s()

    @property
    def abort_s(self) -> float:
        """How long after its set was decided a round may be given up.

        Waiting for data is not all of it: aggregating and computing the new state may take longer.
        """
        return 3 * max(self.data_s, self.finish.deadline_s())
