"""One round as this peer sees it: commitments, the decided set, slices on their way to results. Pure."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from runnel.hashing import digest
from runnel.node.actions import Action, Fetch, Prepare, Reduce, RoundKey, Scatter
from runnel.node.chain import Certificate
from runnel.node.records import Commitment, Record, Share, SliceResult
from runnel.types import Digest, PeerId

SLICE_ALIGNMENT = 4096
"""Slice boundaries are multiples of this many values, a multiple of every codec's block."""


def slice_bounds(numel: int, members: int) -> tuple[tuple[int, int], ...]:
    """Cuts `numel` values into at most `members` aligned slices of about equal length."""
    blocks = -(-numel // SLICE_ALIGNMENT)
    count = max(1, min(members, blocks))
    edges = [min(numel, blocks * i // count * SLICE_ALIGNMENT) for i in range(count + 1)]
    return tuple(zip(edges[:-1], edges[1:], strict=True))


@dataclass(slots=True)
class SliceState:
    """What is known of one slice."""

    arrived: set[Digest] = field(default_factory=set)
    sent_to: set[PeerId] = field(default_factory=set)
    reducing: bool = False
    results: dict[SliceResult, int] = field(default_factory=dict)
    fetching: set[Digest] = field(default_factory=set)


@dataclass(slots=True)
class Round:
    """A round between its opening and its outcome."""

    key: RoundKey
    fragment: int
    final: bool
    opened: float
    slices: list[SliceState]
    view: tuple[PeerId, ...]
    commits: dict[PeerId, Commitment] = field(default_factory=dict)
    half_at: float | None = None
    decided: tuple[Commitment, ...] | None = None
    decided_at: float = 0.0
    set_certificate: Certificate | None = None
    sets: dict[Digest, tuple[Commitment, ...]] = field(default_factory=dict)
    candidates: dict[Digest, Record] = field(default_factory=dict)
    prepared: dict[tuple[SliceResult, ...], Digest | None] = field(default_factory=dict)

    @property
    def shares(self) -> tuple[Share, ...]:
        """The decided set as a record keeps it."""
        return tuple(Share(c.peer, c.id, c.tokens) for c in self.decided or ())

    def commitment(self, name: Digest) -> Commitment | None:
        """A commitment of this round by its digest."""
        pool = (*(self.decided or ()), *self.commits.values())
        return next((c for c in pool if c.id == name), None)

    def own(self, me: PeerId) -> Commitment | None:
        """This peer's commitment in the decided set, if it is there."""
        return next((c for c in self.decided or () if c.peer == me), None)

    def reducers(self, index: int) -> tuple[PeerId, PeerId]:
        """Worker and standby of a slice, drawn from the decided set by the base record's hash."""
        number = self.key.number.to_bytes(8, "big")
        pool = sorted(
            (c.peer for c in self.decided or ()), key=lambda peer: digest(self.key.base, number, peer)
        )
        return pool[index % len(pool)], pool[(index + 1) % len(pool)]

    def best_held(self, held: Container[Digest]) -> tuple[SliceResult, ...] | None:
        """For each slice the held result with most senders; None while a slice has none."""
        chosen = []
        for piece in self.slices:
            options = [result for result in piece.results if result.root in held]
            if not options:
                return None
            chosen.append(min(options, key=lambda result: (-len(result.included), result.root)))
        return tuple(chosen)

    def prepare(self, slices: tuple[SliceResult, ...]) -> list[Action]:
        """Asks once for the state after these results."""
        if slices in self.prepared:
            return []
        self.prepared[slices] = None
        return [Prepare(self.key, slices, self.shares, self.final)]


def advance_data(
    state: Round, me: PeerId, held: Container[Digest], *, now: float, data_s: float
) -> list[Action]:
    """Scatter, reduce and gather as far as the inputs and the clock allow.

    The standby is sent data only if the worker has missed its deadline, so that its work is wasted
    only then.
    """
    if state.decided is None:
        return []
    actions: list[Action] = []
    for index in range(len(state.slices)):
        actions += _scatter(state, index, me, late=now - state.decided_at > data_s)
        actions += _reduce(state, index, me, waited_s=now - state.decided_at, data_s=data_s)
        actions += _gather(state, index, held)
    chosen = state.best_held(held)
    return actions + (state.prepare(chosen) if chosen else [])


def _scatter(state: Round, index: int, me: PeerId, *, late: bool) -> list[Action]:
    mine, piece = state.own(me), state.slices[index]
    if mine is None or piece.results:
        return []
    worker, standby = state.reducers(index)
    actions: list[Action] = []
    for target in (worker, standby) if late else (worker,):
        if target in piece.sent_to:
            continue
        piece.sent_to.add(target)
        if target == me:
            piece.arrived.add(mine.id)
        else:
            actions.append(Scatter(state.key, index, mine.id, target))
    return actions


def _reduce(state: Round, index: int, me: PeerId, *, waited_s: float, data_s: float) -> list[Action]:
    piece, members = state.slices[index], state.decided or ()
    worker, standby = state.reducers(index)
    if piece.reducing or me not in (worker, standby):
        return []
    senders = tuple(c for c in members if c.id in piece.arrived)
    patience_s = data_s if me == worker else 2 * data_s
    if not senders or (len(senders) < len(members) and waited_s <= patience_s):
        return []
    piece.reducing = True
    included = tuple(i for i, c in enumerate(members) if c.id in piece.arrived)
    return [Reduce(state.key, index, senders, included)]


def _gather(state: Round, index: int, held: Container[Digest]) -> list[Action]:
    piece = state.slices[index]
    actions: list[Action] = []
    for result, size_bytes in piece.results.items():
        if result.root not in held and result.root not in piece.fetching:
            piece.fetching.add(result.root)
            others = tuple(peer for peer in state.view if peer != result.reducer)
            actions.append(Fetch(result.root, size_bytes, (result.reducer, *others)))
    return actions
