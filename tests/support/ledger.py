"""A store with its trainer in integers, and a record of everything that ever happened to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from runnel.optim.exchange import Payload
from runnel.optim.store import Outcome, OuterStore
from tests.support.integers import IntegerCodec, drift_of, integer_parts

BOUNDS = ((0, 1), (1, 2))
NOTHING = (None, None)

Pair = tuple[int, int]
Flags = tuple[bool, bool]


def array(values: Any) -> Any:
    return np.array(values, dtype=np.int64)


def fresh(*, fragments: int = 1, public: bool = False) -> OuterStore:
    return OuterStore([array([0, 0]) for _ in range(fragments)], integer_parts(public=public))


def encoded(values: Any) -> list[bytes]:
    return [IntegerCodec().encode(array([v])) for v in values]


def decoded(payloads: tuple[Payload, ...]) -> Any:
    return np.concatenate([np.frombuffer(p, "<i8") for p in payloads])


@dataclass
class Ledger:
    """A peer's store and trainer, and a record of everything that ever happened to them.

    Where windows are `public`, the trainer's values may be read (`end_window`) before they are handed over.
    """

    public: bool = False
    store: OuterStore = field(default_factory=fresh)
    w: Any = field(default_factory=lambda: array([0, 0]))
    merges: list[Any] = field(default_factory=list)
    learned: Any = field(default_factory=lambda: array([0, 0]))
    on_chain: Any = field(default_factory=lambda: array([0, 0]))
    lost: Any = field(default_factory=lambda: array([0, 0]))
    unsent: Any = field(default_factory=lambda: array([0, 0]))
    in_w: Any = field(default_factory=lambda: array([0, 0]))
    payloads: dict[int, tuple[Payload, ...]] = field(default_factory=dict)
    records: list[tuple[Outcome, Any, Any]] = field(default_factory=list)
    rounds: int = 0
    held: Any = None
    since: Any = field(default_factory=lambda: array([0, 0]))

    def __post_init__(self) -> None:
        if self.public:
            self.store = fresh(public=True)

    @property
    def open(self) -> list[int]:
        return [key for key in self.payloads if self.store.handed(key) is not None]

    def owed(self) -> Any:
        w = self.w + sum(self.merges, start=array([0, 0]))
        ahead = self.store._fragments[0].ahead
        counted = w if ahead is None else w - ahead
        return self.store.residual(0) + self.store.parameters(0) - counted

    def check(self) -> None:
        assert (self.learned - self.lost == self.on_chain + self.owed()).all()

    # -- what can happen

    def train(self, step: Pair) -> None:
        self.w = self.w - array(step)
        self.learned = self.learned + array(step)
        self.unsent = self.unsent + array(step)
        self.since = self.since + array(step)

    def merge(self) -> None:
        moved = sum(self.merges, start=array([0, 0]))
        self.w = self.w + moved
        if self.held is not None:
            self.held = self.held + moved
        self.merges = []

    def end_window(self) -> None:
        """Reads what is handed over later."""
        self.held, self.since = self.w.copy(), array([0, 0])

    def hand_over(self) -> None:
        version = self.store.version(0) - len(self.merges)
        self.rounds += 1
        unsent: list[Any] = []
        given = self.store.encode(
            self.rounds,
            0,
            self.w.copy() if self.held is None else self.held,
            version=version,
            bounds=BOUNDS,
            keep=lambda part: unsent.append(part.copy()),
        )
        assert (given is None) == bool(self.merges)
        if given is not None:
            self.payloads[self.rounds] = given.payloads
            self.in_w = drift_of(given, unsent)
            self.unsent = array([0, 0]) if self.held is None else self.since
            self.held = None
            start = self.store.start(self.rounds, BOUNDS)
            assert (start is not None) == self.public
            if start is not None:
                self._take(start.delta)

    def settle(self) -> None:
        """All that was learned is handed over, included and merged: the trainer holds the outer parameters."""
        self.held = None
        self.merge()
        self.hand_over()
        self.decide(len(self.open) - 1, (True, True), (0, 0), (False, False))
        self.merge()
        assert (self.w == self.store.parameters(0)).all()
        assert (self.learned - self.lost == self.on_chain + self.store.residual(0)).all()

    def decide(self, which: int, included: Flags, others: Pair, losses: Flags) -> None:
        """A record with or without our open contribution `which`, and with what others sent."""
        key = self.open[which % len(self.open)] if self.open else -1
        sent = self.payloads.get(key, ())
        included = included if sent else (False, False)
        mine = decoded(sent) * included if sent else array([0, 0])
        taken = tuple(array([1]) if loss else None for loss in losses)
        outcome = Outcome(key, 0, BOUNDS, sent, included, taken, final=False)
        before = (self.store.parameters(0).copy(), self.store.momentum(0).copy())
        self.store.prepare("tag", 0, BOUNDS, encoded(mine + 2 * array(others)), final=False)
        handed = self.store.handed(key)
        if handed is not None and handed.snapshot is not None:
            self.in_w = self.in_w * ~array(included).astype(bool)
        self._take(self.store.adopt("tag", outcome).delta)
        self.on_chain = self.on_chain + mine - array(losses)
        self.records.append((outcome, *before))

    def live(self, rng: Random, events: int) -> None:
        """So many random events, checked one by one."""
        happen: tuple[Callable[[], None], ...] = (
            lambda: self.train(_pair(rng)),
            self.merge,
            self.end_window if self.public else self.merge,
            self.hand_over,
            lambda: self.decide(rng.randrange(4), _flags(rng), _pair(rng), _flags(rng)),
            lambda: self.decide(rng.randrange(4), (True, True), _pair(rng), _flags(rng)),
            self.abort,
            self.give_up,
            self.restart,
        )
        often = (6, 3, 1, 6, 4, 2, 1, 1, 1)
        for event in rng.choices(happen, often, k=events):
            event()
            self.check()

    def abort(self) -> None:
        for key in self.open:
            self.store.forget(key)

    def give_up(self) -> None:
        if self.records:
            outcome, theta, momentum = self.records.pop()
            self._take(self.store.leap(0, theta, momentum, [], lost=[outcome]).delta)
            mine = decoded(outcome.payloads) * outcome.included if outcome.payloads else 0
            self.on_chain = self.on_chain - mine + [loss is not None for loss in outcome.losses]

    def restart(self) -> None:
        """The trainer's values and its merges are gone; what was handed over is on disk."""
        old, keys = self.store, self.open
        self.store = fresh(public=self.public)
        residual = old.residual(0) + self.in_w
        self.store.load(0, old.parameters(0), old.momentum(0), residual)
        for key in keys:
            self.store.recall(key, 0, self.payloads[key], array([0, 0]))
        self.w, self.merges, self.held = self.store.parameters(0).copy(), [], None
        gap = self.learned - self.lost - self.on_chain - self.owed()
        assert (gap == self.unsent).all(), "a restart loses unsent steps and nothing else"
        self.lost, self.unsent = self.lost + gap, array([0, 0])
        self.in_w = array([0, 0])

    def _take(self, delta: Any) -> None:
        self.merges.append(delta)


def _pair(rng: Random) -> Pair:
    return rng.randint(-9, 9), rng.randint(-9, 9)


def _flags(rng: Random) -> Flags:
    return rng.random() < 0.5, rng.random() < 0.5
