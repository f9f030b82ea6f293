"""When peers start and who is killed, as data: pure, so that the whole course can be tested.

All but one peer start as soon as there is an invite. One that has shown that it takes part is
killed, and a little later the last one joins.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

KILL_SHARE, JOIN_SHARE = 0.4, 0.5
"""Parts of the run's time after which the one is killed and the other starts."""

_GIVE_UP_SHARE = 0.85
"""A peer that nobody has heard by then is not killed: the rest is too short to show anything."""


@dataclass(frozen=True, slots=True)
class Start:
    """Peer `index` joins now."""

    index: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Peer `index` is killed now, without a warning."""

    index: int


Step = Start | Kill


class DemoPlan:
    """Says what is due.

    Args:
        peers: all of them; number 0 launches the run and is none of this plan's business.
        lasts_s: from the run's beginning to its end.
        faults: without them everybody joins at once and nobody is killed.
    """

    def __init__(self, peers: int, lasts_s: float, *, faults: bool) -> None:
        self._lasts_s = lasts_s
        self.latecomer = peers - 1 if faults else None
        self.victim = peers - 2 if faults else None
        self._at_once = [index for index in range(1, peers) if index != self.latecomer]
        self._killed = self._joined = False

    def due(self, elapsed_s: float, contributed: Set[int]) -> list[Step]:
        """What is to be done now; each step comes up once.

        Args:
            elapsed_s: since the run's beginning.
            contributed: who has a part in a decided round.
        """
        steps: list[Step] = [Start(index) for index in self._at_once]
        self._at_once = []
        share = elapsed_s / self._lasts_s
        if self._may_kill(share, contributed):
            assert self.victim is not None
            self._killed = True
            steps.append(Kill(self.victim))
        if self.latecomer is not None and not self._joined and share >= JOIN_SHARE:
            self._joined = True
            steps.append(Start(self.latecomer))
        return steps

    def _may_kill(self, share: float, contributed: Set[int]) -> bool:
        if self.victim is None or self._killed:
            return False
        return KILL_SHARE <= share < _GIVE_UP_SHARE and self.victim in contributed
