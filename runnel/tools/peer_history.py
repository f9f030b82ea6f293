"""One peer's part of a run's history: its lives, where its trainer was, its bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runnel.node.events import RoundDecided, StateFetched, TrafficCounted


def data_parallel_bytes(parameters: int, peers: int, steps: int) -> float:
    """Bytes that one peer of data parallel sends: a ring all-reduce of bf16 gradients in each step.

    ``2 (n - 1) / n`` passes over 2 bytes per parameter; Patarasu and Yuan 2009, section 3.
    """
    if peers < 2:
        return 0.0
    return 2 * (peers - 1) / peers * 2 * parameters * steps


_MAX_POINTS = 4096


@dataclass(slots=True)
class Life:
    """A peer between one start and its end; times in seconds since 1970, None for not yet.

    `how` is "stopped" for an orderly end, "ended" at the run's end, "killed" for one without a word.
    """

    started_s: float
    ready_s: float | None = None
    last_s: float = 0.0
    ended_s: float | None = None
    how: str = ""
    reason: str = ""
    step_offset: int | None = None
    fetched: StateFetched | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """Where a trainer was: steps count from the run's beginning, also for those who came later."""

    unix_s: float
    step: int
    loss: float
    tokens: int


@dataclass(slots=True)
class TrafficHistory:
    """A peer's bytes. They add up over its lives, though each life's ledger begins at zero."""

    sent: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    over_time: list[tuple[float, int]] = field(default_factory=list)
    _sent_before: Counter[str] = field(default_factory=Counter)
    _received_before: Counter[str] = field(default_factory=Counter)
    _round_bytes: int = 0

    @property
    def sent_bytes(self) -> int:
        """Bytes sent so far, by the ledger or else by the rounds' own figures."""
        return self.sent.total() or self._round_bytes

    def sent_at(self, unix_s: float) -> int:
        """Bytes sent until then, as last reported."""
        index = bisect_right(self.over_time, (unix_s, 1 << 62))
        return self.over_time[index - 1][1] if index else 0

    def begin_life(self) -> None:
        """The next ledger begins at zero."""
        self._sent_before, self._received_before = Counter(self.sent), Counter(self.received)

    def count_round(self, event: RoundDecided) -> None:
        """Takes up a decided round's bytes, for journals without a ledger."""
        self._round_bytes += event.sent_bytes
        if not self.sent:
            self.over_time.append((event.unix_s, self._round_bytes))

    def count(self, event: TrafficCounted) -> None:
        """Takes up the ledger of the present life."""
        if not self.sent:
            self.over_time.clear()  # from here on the ledger speaks, which counts everything
        self.sent = self._sent_before + Counter(event.sent)
        self.received = self._received_before + Counter(event.received)
        self.over_time.append((event.unix_s, self.sent.total()))


@dataclass(slots=True)
class PeerHistory:
    """What one peer's events say."""

    name: str
    peer: str = ""
    lives: list[Life] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    tokens: int = 0
    tokens_per_s: float = 0.0
    next_round: int = 0
    late: int = 0
    traffic: TrafficHistory = field(default_factory=TrafficHistory)

    @property
    def step(self) -> int:
        """Inner steps from the run's beginning."""
        return self.points[-1].step if self.points else 0

    @property
    def sent_bytes(self) -> int:
        """Bytes sent so far."""
        return self.traffic.sent_bytes

    @property
    def state(self) -> str:
        """One word or two: starting, catching up, training, or how it ended."""
        if not self.lives:
            return "starting"
        life = self.lives[-1]
        if life.ended_s is not None:
            return {"stopped": "left", "ended": "finished"}.get(life.how, life.how)
        return "training" if life.ready_s is not None else "catching up"

    def alive_at(self, unix_s: float) -> bool:
        """Whether it trained at that time."""
        return any(
            life.ready_s is not None
            and life.ready_s <= unix_s <= (life.last_s if life.ended_s is None else life.ended_s)
            for life in self.lives
        )

    def add_point(self, point: Point, tokens_per_s: float) -> None:
        """Takes up a report of the trainer; of very many, every second one is kept."""
        self.points.append(point)
        self.tokens += point.tokens
        self.tokens_per_s = tokens_per_s
        if len(self.points) > _MAX_POINTS:
            del self.points[1:-1:2]

    def count_round(self, event: RoundDecided) -> None:
        """Takes up a decided round's figures."""
        self.next_round = event.round + 1
        self.traffic.count_round(event)

    def begin_life(self, unix_s: float) -> None:
        """A start; a life before that did not end in order was killed."""
        if self.lives and self.lives[-1].ended_s is None:
            self.end_life(self.lives[-1].last_s, "killed")
        self.lives.append(Life(started_s=unix_s, last_s=unix_s))
        self.traffic.begin_life()

    def end_life(self, unix_s: float, how: str, reason: str = "") -> None:
        """The present life ends, unless it has ended."""
        if self.lives and self.lives[-1].ended_s is None:
            life = self.lives[-1]
            life.ended_s, life.how, life.reason = unix_s, how, reason
