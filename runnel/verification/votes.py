"""What members of an agreement say, who they are, and when their votes prove a decision. Values only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from runnel.hashing import digest
from runnel.types import Digest, PeerId

NIL = Digest(b"")
"""The vote for no value."""


class Step(IntEnum):
    """Where an attempt stands."""

    PROPOSE = 0
    PREVOTE = 1
    PRECOMMIT = 2


@dataclass(frozen=True, slots=True, order=True)
class Instance:
    """One decision: what it is about, of which round, and the record it derives from."""

    kind: str
    round: int
    base: Digest

    @property
    def key(self) -> str:
        """Unique text for storage keys."""
        return f"{self.kind}/{self.round}/{self.base.hex()}"


@dataclass(frozen=True, slots=True)
class Vote:
    """One member's vote in one step of one attempt; `value` is `NIL` for none."""

    instance: Instance
    attempt: int
    step: Step
    value: Digest
    voter: PeerId
    signature: bytes = b""

    def statement(self, run: bytes) -> bytes:
        """The bytes that the signature covers."""
        place = f"vote/{self.instance.key}/{self.attempt}/{int(self.step)}/".encode()
        return b"runnel1" + run + place + self.value


@dataclass(frozen=True, slots=True)
class Proposal:
    """What an attempt's proposer puts to the vote; a value locked before comes with its prevotes."""

    instance: Instance
    attempt: int
    value: Digest
    proposer: PeerId
    lock_attempt: int = -1
    proof: tuple[Vote, ...] = ()


@dataclass(frozen=True, slots=True)
class Lock:
    """The value a member precommitted last, and the prevotes that allowed it."""

    attempt: int
    value: Digest
    proof: tuple[Vote, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """A quorum precommitted `value`; `certificate` holds those votes."""

    instance: Instance
    value: Digest
    attempt: int
    certificate: tuple[Vote, ...]


@dataclass(frozen=True, slots=True)
class StoreVote:
    """To be durable before anything after it is sent."""

    vote: Vote
    lock: Lock | None = None


@dataclass(frozen=True, slots=True)
class StoreProposal:
    """To be durable before anything after it is sent: a proposer says the same again after a crash."""

    proposal: Proposal


Action = StoreVote | StoreProposal | Proposal | Vote | Decided


@dataclass(frozen=True, slots=True)
class Electorate:
    """Who votes, in what order they propose, and how many make a quorum."""

    members: tuple[PeerId, ...]
    quorum: int
    offset: int

    @staticmethod
    def of(
        instance: Instance, members: Sequence[PeerId], quorum: Callable[[int], int]
    ) -> Electorate:
        """The proposer's order follows from the instance, so that nobody chooses it."""
        offset = int.from_bytes(digest(instance.key.encode())[:8], "big")
        return Electorate(tuple(members), quorum(len(members)), offset)

    @property
    def spare(self) -> int:
        """How many a quorum does without: so many may fail or lie."""
        return len(self.members) - self.quorum

    def proposer(self, attempt: int) -> PeerId:
        """Who proposes in `attempt`."""
        return self.members[(self.offset + attempt) % len(self.members)]


def majority(members: int) -> int:
    """Quorum of circle runs, where members crash but do not lie: 1, 2, 2, 3 of 1, 2, 3, 4."""
    return members // 2 + 1


@dataclass(slots=True)
class Ballots:
    """The votes of one step of one attempt; the first vote of a member counts."""

    votes: dict[PeerId, Vote] = field(default_factory=dict)
    counts: dict[Digest, int] = field(default_factory=dict)

    def add(self, vote: Vote) -> None:
        """Counts a vote unless its voter has voted here."""
        if vote.voter not in self.votes:
            self.votes[vote.voter] = vote
            self.counts[vote.value] = self.counts.get(vote.value, 0) + 1

    def remove(self, voter: PeerId) -> None:
        """Takes a member's vote out again."""
        value = self.votes.pop(voter).value
        self.counts[value] -= 1
        if not self.counts[value]:
            del self.counts[value]

    def winner(self, quorum: int) -> Digest | None:
        """The value with a quorum; `NIL` is a value here. At most one has a majority."""
        return next((value for value, count in self.counts.items() if count >= quorum), None)

    def most(self) -> int:
        """How many votes the value with most of them has."""
        return max(self.counts.values(), default=0)

    def supporters(self, value: Digest) -> tuple[Vote, ...]:
        """The votes for a value, by voter."""
        return tuple(v for _, v in sorted(self.votes.items()) if v.value == value)


def check_certificate(
    votes: Sequence[Vote], decided: Decided, electorate: Electorate, verify: Callable[[Vote], bool]
) -> bool:
    """Whether `votes` hold a quorum of correctly signed votes for `decided`'s value at its attempt.

    All are precommits of a decided value, or all are prevotes of a locked one (which only a branch
    may carry on from).
    """
    steps = {vote.step for vote in votes}
    if len(steps) != 1:
        return False
    good = {
        vote.voter
        for vote in votes
        if vote.voter in electorate.members
        and vote.instance == decided.instance
        and (vote.attempt, vote.value) == (decided.attempt, decided.value)
        and verify(vote)
    }
    return len(good) >= electorate.quorum
