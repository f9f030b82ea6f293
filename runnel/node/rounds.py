"""One round as this peer sees it: commitments, the decided set, the results that are known. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from itertools import pairwise

from runnel.hashing import digest
from runnel.node.actions import Action, Prepare, Reduce, RoundKey
from runnel.node.certificates import Certificate
from runnel.node.records import Commitment, Record, RecordKind, Share, SliceResult
from runnel.types import Digest, PeerId

SLICE_ALIGNMENT = 4096
"""Slice boundaries are multiples of this many values, a multiple of every codec's block."""


def slice_bounds(numel: int, members: int) -> tuple[tuple[int, int], ...]:
    """Cuts `numel` values into at most `members` aligned slices of about equal length."""
    blocks = -(-numel // SLICE_ALIGNMENT)
    count = max(1, min(members, blocks))
    edges = [min(numel, blocks * i // count * SLICE_ALIGNMENT) for i in range(count + 1)]
    return tuple(pairwise(edges))


@dataclass(slots=True)
class SliceState:
    """What is known of one slice.

    `results` are announced encodings and their sizes in bytes; `told` is how many of them each member
    was the first to tell of.
    """

    arrived: set[Digest] = field(default_factory=set)
    sent_to: set[PeerId] = field(default_factory=set)
    reducing: bool = False
    results: dict[SliceResult, int] = field(default_factory=dict)
    told: Counter[PeerId] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundFacts:
    """What follows from the record a round derives from, and when it was opened here.

    `forgotten`: this peer may have made promises in it that it does not know any more. `carried`:
    contributions travel in their commitments, and everybody makes the one result from the decided set.
    `progress` is that of the record it derives from, in millionths.
    """

    key: RoundKey
    fragment: int
    final: bool
    view: tuple[PeerId, ...]
    voters: tuple[PeerId, ...]
    opened: float
    forgotten: bool = False
    carried: bool = False
    progress: int = 0


MAX_PUT = 8
"""So many different values one member may put to the vote of a round.

A proposer has a new one only where its last was not decided in its turn, and commitments or results have
come in since; its turn comes once in as many attempts as there are members, each a deadline longer than the
one before, and a round is given up or branched from within a few of them.
"""


@dataclass(slots=True)
class Motions:
    """What was put to the vote of a round: sets of commitments and records, by digest, and by whom."""

    sets: dict[Digest, tuple[Commitment, ...]] = field(default_factory=dict)
    candidates: dict[Digest, Record] = field(default_factory=dict)
    put: Counter[PeerId] = field(default_factory=Counter)

    def has_room(self, proposer: PeerId) -> bool:
        """Whether a member may put one more value to the vote; counts it."""
        self.put[proposer] += 1
        return self.put[proposer] <= MAX_PUT


@dataclass(frozen=True, slots=True)
class Drawn:
    """Contributors in the order in which they reduce: those who send whole shares, and those who do not.

    `shares` is the decided set as a record keeps it.
    """

    whole: tuple[PeerId, ...]
    slow: tuple[PeerId, ...]
    shares: tuple[Share, ...] = ()


@dataclass(slots=True)
class Round:
    """A round between its opening and its outcome."""

    facts: RoundFacts
    slices: list[SliceState]
    commits: dict[PeerId, Commitment] = field(default_factory=dict)
    half_at: float | None = None
    expected: tuple[Commitment, ...] | None = None
    decided: tuple[Commitment, ...] | None = None
    decided_at: float = 0.0
    set_certificate: Certificate | None = None
    motions: Motions = field(default_factory=Motions)
    prepared: dict[tuple[SliceResult, ...], Digest | None] = field(default_factory=dict)
    drawn: Drawn = field(default_factory=lambda: Drawn((), ()))
    repeat_at: float = 0.0

    @property
    def key(self) -> RoundKey:
        """Its number and the record it derives from."""
        return self.facts.key

    @property
    def fragment(self) -> int:
        """The fragment it exchanges."""
        return self.facts.fragment

    @property
    def final(self) -> bool:
        """Whether it is one of the closing, plainly averaged rounds."""
        return self.facts.final

    @property
    def view(self) -> tuple[PeerId, ...]:
        """Its members."""
        return self.facts.view

    @property
    def voters(self) -> tuple[PeerId, ...]:
        """Those of its members whose votes count."""
        return self.facts.voters

    @property
    def sets(self) -> dict[Digest, tuple[Commitment, ...]]:
        """Sets of commitments that were put to the vote."""
        return self.motions.sets

    @property
    def candidates(self) -> dict[Digest, Record]:
        """Records that were put to the vote as its outcome."""
        return self.motions.candidates

    @property
    def forgotten(self) -> bool:
        """Whether this peer may have made promises in it that it does not know any more."""
        return self.facts.forgotten

    @property
    def opened(self) -> float:
        """When it was opened here."""
        return self.facts.opened

    @property
    def shares(self) -> tuple[Share, ...]:
        """The decided set as a record keeps it."""
        return self.drawn.shares

    def commitment(self, name: Digest) -> Commitment | None:
        """A commitment of this round by its digest."""
        pool = (*(self.decided or ()), *self.commits.values())
        return next((c for c in pool if c.id == name), None)

    def takes(self, me: PeerId) -> bool:
        """Whether this peer may commit to it."""
        return me in self.view and not self.forgotten

    def same(self, commitment: Commitment) -> Commitment:
        """The copy of a commitment that is kept already, if there is one: most sets name the same ones."""
        known = self.commits.get(commitment.peer)
        return known if known is not None and known.id == commitment.id else commitment

    def own(self, me: PeerId) -> Commitment | None:
        """This peer's commitment in the decided set, if it is there and its payload is known."""
        if self.forgotten:
            return None
        return next((c for c in self.decided or () if c.peer == me), None)

    def reducers(self, index: int) -> tuple[PeerId, PeerId]:
        """Worker and standby of a slice, drawn from the decided set by the base record's hash.

        Those whose links are slow, as they say by withholding slices, only stand in for a lone worker.
        """
        whole, slow = self.drawn.whole, self.drawn.slow
        worker, standby = whole[index % len(whole)], whole[(index + 1) % len(whole)]
        return worker, slow[index % len(slow)] if len(whole) == 1 and slow else standby

    def rank(self, peer: PeerId) -> int:
        """The place of `peer` in the order in which the contributors reduce; others come after them."""
        order = (*self.drawn.whole, *self.drawn.slow)
        return order.index(peer) if peer in order else len(order)

    def decide(
        self, commitments: tuple[Commitment, ...], certificate: Certificate | None, now: float
    ) -> None:
        """Takes up the decided set; results that records named before can now be told apart."""
        if self.expected != commitments:
            self._draw(commitments)
        self.decided, self.decided_at, self.set_certificate = commitments, now, certificate
        self.repeat_at = 0.0
        for record in self.candidates.values():
            self._take_results(record)

    def expect(self, commitments: tuple[Commitment, ...]) -> None:
        """Takes a set for the one that will be decided: what all can make of it is made beside the votes."""
        if self.facts.carried and self.decided is None and self.expected != commitments:
            self._draw(commitments)
            self.expected = commitments

    def stands_on(self, job: Reduce) -> bool:
        """Whether what comes of `job` is a result of the set as it is seen now."""
        known = tuple(share.commitment for share in self.shares)
        return not self.facts.carried or tuple(sender.id for sender in job.senders) == known

    def _draw(self, commitments: tuple[Commitment, ...]) -> None:
        """Draws who reduces what of a set; what was made of another one is of no use."""
        if self.expected is not None:
            self.slices = [SliceState() for _ in self.slices]
            self.prepared.clear()
        base, number = self.key.base, self.key.number.to_bytes(8, "big")
        order = sorted((c.peer for c in commitments), key=lambda peer: digest(base, number, peer))
        names = {c.peer for c in commitments if c.withheld}
        slow = tuple(peer for peer in order if peer in names)
        whole = tuple(peer for peer in order if peer not in names) or slow
        shares = tuple(Share(c.peer, c.id, c.tokens) for c in commitments)
        self.drawn = Drawn(whole, slow, shares)

    def take_candidate(self, record: Record) -> None:
        """Takes up a record that is put to the vote as this round's outcome."""
        self.candidates[record.hash] = record
        if self.decided is not None:
            self._take_results(record)

    def misfit(self, index: int, result: SliceResult) -> str:
        """Why a result cannot be one of this round's, or nothing. The set must be decided."""
        if index >= len(self.slices):
            return "a result of a slice that does not exist"
        if result.included[-1] >= len(self.decided or ()):
            return "a result that includes nobody of the set"
        if result.reducer not in self.reducers(index):
            return "a result by a peer that was not drawn to reduce it"
        return ""

    def could_be(self, record: Record) -> bool:
        """Whether a record names the decided set and one possible result of each slice."""
        if self.decided is None or record.kind is not RecordKind.ROUND:
            return False
        if record.shares != self.shares:
            return False
        if len(record.slices) != len(self.slices):
            return False
        if self.facts.carried:  # what others made is what we made, or it is no result
            pairs = zip(self.slices, record.slices, strict=True)
            return all(result in piece.results for piece, result in pairs)
        return not any(self.misfit(i, piece) for i, piece in enumerate(record.slices))

    def missing(self, held: Container[Digest]) -> list[tuple[SliceResult, int]]:
        """Announced results that are not here, with their sizes in bytes (0: unknown)."""
        return [
            (result, size_bytes)
            for piece in self.slices
            for result, size_bytes in piece.results.items()
            if result.root not in held
        ]

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

    def _take_results(self, record: Record) -> None:
        if self.could_be(record):
            for piece, result in zip(self.slices, record.slices, strict=True):
                piece.results.setdefault(result, 0)
