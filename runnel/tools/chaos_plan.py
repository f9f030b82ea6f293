"""What is done to whom and when in a chaos run, as data drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random


class Kind(StrEnum):
    """What can be done to a peer."""

    KILL = "kill"
    FREEZE = "freeze"
    SUSPEND = "suspend"
    CUT = "cut"
    DAEMON = "daemon"
    LEAVE = "leave"


WORDS = {
    Kind.KILL: "killed (SIGKILL)",
    Kind.FREEZE: "frozen (SIGSTOP)",
    Kind.SUSPEND: "suspended with its daemon",
    Kind.CUT: "cut off: its daemon frozen",
    Kind.DAEMON: "bereft of its daemon (SIGKILL)",
    Kind.LEAVE: "asked to leave",
}
"""What a kind does, for people."""

ENDS_PROCESS = frozenset({Kind.KILL, Kind.LEAVE})
"""Kinds after which the peer has to be started again."""

_FIRST_S = 2.0
_GAP_S = (3.0, 9.0)
_SHORTEST_S, _LONGEST_S = 1.5, 14.0
_RESTART_S, _WAKE_S = 15.0, 5.0
"""How long after a new start, or else after being let go on, a peer counts as struck."""


@dataclass(frozen=True, slots=True)
class Strike:
    """Something done to peer `peer` at `at_s`, for `lasts_s` seconds; times count from the swarm's start."""

    at_s: float
    kind: Kind
    peer: int
    lasts_s: float

    @property
    def over_s(self) -> float:
        """When the peer is let go on, or started again."""
        return self.at_s + self.lasts_s


def most_at_once(peers: int) -> int:
    """How many of `peers` may be struck while the others are a majority."""
    return (peers - 1) // 2


def draw(
    seed: int,
    *,
    peers: int,
    kinds: Sequence[Kind],
    lasts_s: float = float("inf"),
    count: int | None = None,
    longest_s: float = _LONGEST_S,
) -> tuple[Strike, ...]:
    """Strikes in the order of their times, the same ones for the same arguments.

    A majority is left alone at any time, so that the swarm must go on. Where peers take longer to
    come back than is planned for here, whoever carries it out must wait (`most_at_once`).

    Args:
        seed: of the draw.
        peers: how many there are, at least 3.
        kinds: which to draw from.
        lasts_s: all strikes are over by then.
        count: how many at most.
        longest_s: a strike lasts, at most.

    Raises:
        ValueError: too few peers, or neither a time nor a number that ends it.
    """
    at_once = most_at_once(peers)
    if at_once < 1 or not kinds or (count is None and lasts_s == float("inf")):
        raise ValueError("expected three peers, one kind, and an end")
    rng, now_s, strikes = Random(seed), _FIRST_S, list[Strike]()
    free_at = dict.fromkeys(range(peers), 0.0)
    while count is None or len(strikes) < count:
        ends = sorted(until for until in free_at.values() if until > now_s)
        if len(ends) >= at_once:
            now_s = ends[len(ends) - at_once]
        peer = rng.choice([index for index, until in free_at.items() if until <= now_s])
        strike = Strike(now_s, rng.choice(list(kinds)), peer, rng.uniform(_SHORTEST_S, longest_s))
        if strike.over_s > lasts_s:
            break
        strikes.append(strike)
        recovery_s = _RESTART_S if strike.kind in ENDS_PROCESS else _WAKE_S
        free_at[peer] = strike.over_s + recovery_s
        now_s += rng.uniform(*_GAP_S)
    return tuple(strikes)
