"""What the parts of the round protocol share: one peer's view of the run. Values and look-ups only."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from runnel.node.actions import Action, Fetch, RoundKey
from runnel.node.branches import Brancher
from runnel.node.chain import Chain
from runnel.node.deadlines import Deadlines, Limits
from runnel.node.membership import MAX_STRANGERS, Membership
from runnel.node.pace import Pace
from runnel.node.rounds import Round, slice_bounds
from runnel.node.storage_keys import Restored
from runnel.node.witness import Witness
from runnel.protocols import Signer
from runnel.types import Digest, PeerId
from runnel.verification.agreement import Instance, Vote
from runnel.verification.votes import majority

Handler = Callable[[PeerId, Any, float], list[Action]]
"""Takes in one type of message, from whom and when."""

CAUGHT_UP_ROUNDS = 16
"""So many rounds of a few bytes are followed within a moment: else a newcomer would never catch up with
members whose rounds are shorter than that."""

FETCH_AGAIN_S = 10.0
"""After so long without any answer a result is asked for again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolSettings:
    """What a run fixes for its protocol, and how this peer takes part.

    `admits` checks a join ticket's signature (not its expiry, which clocks may disagree on);
    `ticket` is this peer's own; `deepest_fork` is how many records it can give up one by one: the
    states before them, down to a fetched one, are still on its disk; `kept_records` is how many of the
    newest records are at hand in memory; `max_upload_bits_s` is the most that it may send. `carries` is
    None where payloads travel in slices; in a run whose contributions travel in their commitments it says
    what is wrong with one, or nothing. `names_windows`: commitments may name what public windows are computed
    again from.
    """

    run: bytes
    fragment_sizes: tuple[int, ...]
    max_weight_tokens: int
    limits: Limits
    admits: Callable[[PeerId, bytes], bool]
    deepest_fork: int
    kept_records: int
    ticket: bytes = b""
    max_upload_bits_s: float = math.inf
    carries: Callable[[bytes], str] | None = None
    names_windows: bool = False

    def slices(self, number: int, members: int) -> int:
        """Into how many slices a round of so many members is cut: one if contributions are not cut."""
        if self.carries is not None:
            return 1
        size = self.fragment_sizes[number % len(self.fragment_sizes)]
        return len(slice_bounds(size, members))


@dataclass(slots=True)
class Pulse:
    """When this peer last did what it does from time to time."""

    ticked: float
    moved: float
    hello: float = float("-inf")
    repeat: float = float("-inf")
    asked: dict[PeerId, float] = field(default_factory=dict)

    def trim(self, members: Collection[PeerId]) -> None:
        """Forgets who was asked longest ago of those who are no `members`."""
        strangers = [peer for peer in self.asked if peer not in members]
        for peer in sorted(strangers, key=self.asked.__getitem__)[:-MAX_STRANGERS]:
            del self.asked[peer]


@dataclass(slots=True)
class Pursuit:
    """A path that beats ours, and how what it takes to follow it comes in.

    `target` is that path; `landing` a part of it at whose end we can go on, as the state there was
    fetched; `fetching` are results under way and since when; `awaited` is the record whose results
    keep us from the next step, since `since`; `fed` is when a result came in last.
    """

    target: Sequence[Digest] = field(default_factory=list)
    landing: Sequence[Digest] = field(default_factory=list)
    fetching: dict[Digest, float] = field(default_factory=dict)
    awaited: Digest = Digest(b"")  # noqa: RUF009 - a value
    since: float = 0.0
    fed: float = float("-inf")

    def waits_for(self, record: Digest, now: float) -> float:
        """Notes what is missing; for how long it has been."""
        if self.awaited != record:
            self.awaited, self.since = record, now
        return now - self.since


@dataclass(slots=True)
class ProtocolState:
    """One peer's view of the run; changed only by the protocol's parts, between inputs.

    `held` are the results that are durably here and the round each was for; `news` are the rounds
    that something came in for since they were last looked at.
    """

    signer: Signer
    settings: ProtocolSettings
    saved: Restored
    members: Membership
    branches: Brancher
    deadlines: Deadlines
    pulse: Pulse
    witness: Witness
    rounds: dict[RoundKey, Round] = field(default_factory=dict)
    held: dict[Digest, int] = field(default_factory=dict)
    pursuit: Pursuit = field(default_factory=Pursuit)
    news: set[int] = field(default_factory=set)

    @staticmethod
    def begin(
        signer: Signer, settings: ProtocolSettings, saved: Restored, now: float
    ) -> ProtocolState:
        """The state at start-up, from what was read back from disk."""
        return ProtocolState(
            signer,
            settings,
            saved,
            Membership(signer.peer_id, now=now, number=saved.chain.number),
            Brancher(signer.peer_id, stall_s=settings.limits.stall_s),
            Deadlines(settings.limits, Pace(settings.max_upload_bits_s)),
            Pulse(ticked=now, moved=now),
            Witness(saved.evidence),
            held=dict.fromkeys(saved.results, saved.chain.number),
        )

    @property
    def target(self) -> Sequence[Digest]:
        """The better path we want to follow, or empty."""
        return self.pursuit.target

    def parts_deeply(self, place: int) -> bool:
        """Whether a path that shares `place` records with ours gives up more than can be taken back one by one."""
        far = len(self.chain.path) - place > self.settings.deepest_fork
        return far or place - 2 < self.saved.past.floor

    @property
    def me(self) -> PeerId:
        """This peer."""
        return self.signer.peer_id

    @property
    def chain(self) -> Chain:
        """The chain followed."""
        return self.saved.chain

    @property
    def is_over(self) -> bool:
        """Whether every fragment has had its final round."""
        return len(self.chain.head.finished) == len(self.settings.fragment_sizes)

    def has_quorum_near(self, now: float) -> bool:
        """Whether a quorum of the next round's voters, this peer among them or not, was just heard at our head."""
        head, voters = self.chain.head, self.chain.voters_of(self.chain.number + 1)
        near = set(self.branches.reach(head, now, orphaned=False)) & set(voters)
        return len(near) >= majority(len(voters))

    def lags(self, peer: PeerId, number: int) -> bool:
        """Whether `peer` is so far behind, as it says, that round `number` is not soon open for it.

        That it has the newest record, too, it may not have said yet.
        """
        near = self.chain.open_rounds + 1 if self.settings.carries is None else CAUGHT_UP_ROUNDS
        return self.members.reached(peer, number) + near < number

    def has_quorum_elsewhere(self, now: float) -> bool:
        """Whether a quorum of the next round's voters was just heard at heads that are not on our path."""
        voters = self.chain.voters_of(self.chain.number + 1)
        away = self.branches.elsewhere(voters, self.chain.follows, now)
        return away >= majority(len(voters))

    def results_in_use(self) -> frozenset[Digest]:
        """Results that rounds not decided yet know of."""
        pieces = (piece for place in self.rounds.values() for piece in place.slices)
        return frozenset(result.root for piece in pieces for result in piece.results)

    def round_of(self, instance: Instance) -> Round | None:
        """The open round that a decision is about, or None if it is not open here."""
        if instance.kind == "set":
            return self.rounds.get(RoundKey(instance.round, instance.base))
        if instance.round != self.chain.number + 1 or instance.base != self.chain.head.hash:
            return None
        return self.rounds.get(RoundKey(instance.round, self.chain.base_of(instance.round)))

    def fetch(
        self, root: Digest, holders: tuple[PeerId, ...], now: float, *, size_bytes: int = 0
    ) -> list[Action]:
        """Asks for a result unless it is here or on its way. `size_bytes` 0: unknown."""
        if (
            root in self.held
            or now - self.pursuit.fetching.get(root, float("-inf")) < FETCH_AGAIN_S
        ):
            return []
        self.pursuit.fetching[root] = now
        return [Fetch(root, size_bytes, tuple(p for p in dict.fromkeys(holders) if p != self.me))]

    def holds_all(self, roots: tuple[Digest, ...]) -> bool:
        """Whether all these results are durably here."""
        return all(root in self.held for root in roots)

    def verify_vote(self, vote: Vote) -> bool:
        """Whether the vote carries its voter's signature; of the newest ones it is checked once."""
        if self.witness.has_verified(vote):
            return True
        statement = vote.statement(self.settings.run)
        good = self.signer.verify(vote.voter, statement, vote.signature)
        if good:
            self.witness.verified(vote)
        return good
