"""What the events of several peers say together: the one source of the live view and the report.

Fed event by event, in any interleaving of peers; each peer's own events in order. Knows nothing of
screens, files or clocks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runnel.node.events import (
    Branched,
    Evaluated,
    Event,
    InnerProgress,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    PeerReady,
    PeerStarted,
    PeerStopped,
    RoundDecided,
    RoundLate,
    RunEnded,
    StateFetched,
    TrafficCounted,
    diary,
)
from runnel.tools.peer_history import PeerHistory, Point

if TYPE_CHECKING:
    from runnel.tools.peer_history import Life

_SAID_BY_ALL = (
    RoundDecided,
    Branched,
    Evaluated,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    RunEnded,
)


_APART_STEPS = 30


@dataclass(slots=True)
class RoundHistory:
    """A round's outcome, as the peers report it."""

    number: int
    kind: str
    fragment: int
    contributors: tuple[str, ...]
    decided_s: float
    seconds: float
    roots: dict[str, str] = field(default_factory=dict)

    @property
    def agreed(self) -> bool:
        """Whether all who reported it hold the same bits."""
        return len(set(self.roots.values())) <= 1


class SwarmHistory:
    """All peers' histories, and what they have in common.

    Args:
        last_lines: how many diary lines to keep.
    """

    def __init__(self, *, last_lines: int = 200) -> None:
        self.peers: dict[str, PeerHistory] = {}
        self.rounds: dict[int, RoundHistory] = {}
        self.evaluations: list[Evaluated] = []
        self.final_roots: dict[str, tuple[int, str]] = {}
        self.lines: deque[tuple[float, str]] = deque(maxlen=last_lines)
        self.members = 0
        self.first_s: float | None = None
        self.last_s = 0.0
        self._said: set[tuple[object, ...]] = set()

    @property
    def step(self) -> int:
        """The furthest trainer's steps."""
        return max((peer.step for peer in self.peers.values()), default=0)

    @property
    def next_round(self) -> int:
        """The first round not decided yet."""
        return max(self.rounds, default=-1) + 1

    def included(self, peer: str) -> int:
        """Rounds that took in the contribution of the peer with this short id."""
        return sum(
            peer in past.contributors for past in self.rounds.values() if past.kind == "record"
        )

    def apply(self, name: str, event: Event) -> str | None:
        """Takes up one event of the peer called `name`; returns its diary line if it says something new."""
        peer = self.peers.setdefault(name, PeerHistory(name))
        self.first_s = event.unix_s if self.first_s is None else min(self.first_s, event.unix_s)
        self.last_s = max(self.last_s, event.unix_s)
        if isinstance(event, PeerStarted):
            peer.peer = event.peer
            peer.begin_life(event.unix_s)
        elif not peer.lives:
            peer.begin_life(event.unix_s)  # the journal's beginning was rotated away
        self._apply_to_peer(peer, event)
        self._apply_to_swarm(name, event)
        if peer.lives[-1].ended_s is None:
            peer.lives[-1].last_s = event.unix_s
        return self._say(name, event)

    def mark_killed(self, name: str, unix_s: float) -> str:
        """Somebody outside knows that this peer was killed then; returns the diary line."""
        peer = self.peers.setdefault(name, PeerHistory(name))
        for life in peer.lives:
            if life.started_s <= unix_s and life.how in {"", "killed"}:
                later = [
                    other for other in peer.lives if life.started_s < other.started_s <= unix_s
                ]
                if not later:
                    life.ended_s, life.how = unix_s, "killed"
        self.last_s = max(self.last_s, unix_s)
        line = f"{name}: killed"
        self.lines.append((unix_s, line))
        return line

    def close(self, *, silence_s: float = 10.0) -> None:
        """No more events will come: who fell silent that long before the end was killed."""
        for peer in self.peers.values():
            if peer.lives and peer.lives[-1].last_s < self.last_s - silence_s:
                peer.end_life(peer.lives[-1].last_s, "killed")

    def mean_loss(self, bins: int = 60) -> list[tuple[float, float, float]]:
        """Mean step and loss of all peers' points in each of `bins` ranges of steps.

        The third value is the most bytes that a single peer had sent by then.
        """
        width = max(1.0, self.step / bins)
        groups: dict[int, list[tuple[float, float, float]]] = {}
        for peer in self.peers.values():
            for point in peer.points:
                if point.loss == point.loss:  # not NaN
                    sample = (
                        float(point.step),
                        point.loss,
                        float(peer.traffic.sent_at(point.unix_s)),
                    )
                    groups.setdefault(int(point.step / width), []).append(sample)
        curve, most = [], 0.0
        for _, samples in sorted(groups.items()):
            steps, losses, sent = zip(*samples, strict=True)
            most = max(most, *sent)
            curve.append((sum(steps) / len(steps), sum(losses) / len(losses), most))
        return curve

    def _apply_to_peer(self, peer: PeerHistory, event: Event) -> None:
        life = peer.lives[-1]
        match event:
            case PeerReady():
                life.ready_s = event.unix_s
                peer.next_round = event.round
            case StateFetched():
                life.fetched = event
            case InnerProgress():
                self._add_point(peer, life, event)
            case RoundDecided():
                peer.count_round(event)
            case RoundLate():
                peer.late += 1
            case TrafficCounted():
                peer.traffic.count(event)
            case RunEnded():
                peer.end_life(event.unix_s, "ended", event.reason)
            case PeerStopped():
                peer.end_life(event.unix_s, "stopped", event.reason)
            case _:
                pass

    def _add_point(self, peer: PeerHistory, life: Life, event: InnerProgress) -> None:
        life.ready_s = event.unix_s if life.ready_s is None else life.ready_s
        if life.step_offset is None:
            # Those who start together differ by a report or two; a latecomer by far more.
            ahead = self.step - event.step
            life.step_offset = ahead if ahead > max(_APART_STEPS, 3 * event.step) else 0
        step = event.step + life.step_offset
        peer.add_point(Point(event.unix_s, step, event.loss, event.tokens), event.tokens_per_s)

    def _apply_to_swarm(self, name: str, event: Event) -> None:
        match event:
            case PeerReady():
                self.members = max(self.members, event.members)
            case RoundDecided():
                self._decide(name, event)
            case Evaluated():
                self.evaluations.append(event)
            case RunEnded():
                self.final_roots[name] = (event.round, event.state_root)
            case _:
                pass

    def _decide(self, name: str, event: RoundDecided) -> None:
        self.members = event.members
        past = self.rounds.get(event.round)
        roots = {} if past is None else past.roots
        roots[name] = event.state_root
        first_s = event.unix_s if past is None else min(past.decided_s, event.unix_s)
        self.rounds[event.round] = RoundHistory(
            event.round,
            event.kind,
            event.fragment,
            event.contributors,
            first_s,
            event.seconds if past is None else past.seconds,
            roots,
        )

    def _say(self, name: str, event: Event) -> str | None:
        line = diary(event)
        if line is None:
            return None
        if isinstance(event, _SAID_BY_ALL):
            key = (type(event), getattr(event, "round", None), getattr(event, "peer", None))
            if key in self._said:
                return None
            self._said.add(key)
        else:
            line = f"{name}: {line}" if name else line
        self.lines.append((event.unix_s, line))
        return line
