"""Agreement machines of members by number, and a host that answers as it is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from runnel.dht.identity import NullSigner
from runnel.types import Digest, PeerId
from runnel.verification.agreement import (
    Action,
    Agreement,
    Decided,
    Electorate,
    Instance,
    Proposal,
    Step,
    Vote,
    majority,
)
from tests.support.members import PEERS, RUN, name
from tests.support.members import vote as vote_of

INSTANCE = Instance("set", 3, name("base"))
X, Y = name("x"), name("y")
STEP_S = 1.0


@dataclass
class Host:
    """Answers as it is told."""

    value: Digest | None = X
    holding: bool = True
    accepting: bool = True
    stopped: bool = False
    silent: frozenset[PeerId] = frozenset()
    asked: list[int] = field(default_factory=list)
    missed: list[tuple[PeerId, float]] = field(default_factory=list)

    def propose(self, instance: Instance, attempt: int, now: float) -> Digest | None:
        self.asked.append(attempt)
        return self.value

    def acceptable(self, proposal: Proposal, now: float) -> bool:
        return self.accepting

    def holds(self, instance: Instance, value: Digest) -> bool:
        return self.holding

    def is_silent(self, peer: PeerId, now: float) -> bool:
        return peer in self.silent

    def overdue(self, peer: PeerId, since: float, now: float) -> None:
        self.missed.append((peer, since))

    def halted(self, instance: Instance) -> bool:
        return self.stopped


def electorate(members: int) -> Electorate:
    return Electorate.of(INSTANCE, PEERS[:members], majority)


def machine(me: PeerId, members: int, now: float = 0.0) -> Agreement:
    return Agreement(INSTANCE, electorate(members), NullSigner(me), RUN, now=now, step_s=STEP_S)


def follower(members: int = 3) -> tuple[Agreement, PeerId, list[PeerId]]:
    """A machine whose peer does not propose first; the proposer, and all the others."""
    proposer = electorate(members).proposer(0)
    others = [p for p in PEERS[:members] if p != proposer]
    return machine(others[0], members), proposer, [proposer, *others[1:]]


def vote(voter: PeerId, value: Digest, *, attempt: int = 0, step: Step = Step.PREVOTE) -> Vote:
    return vote_of(INSTANCE, voter, value, attempt=attempt, step=step)


def votes_in(actions: list[Action]) -> list[tuple[int, Step, Digest]]:
    return [(a.attempt, a.step, a.value) for a in actions if isinstance(a, Vote)]


def decisions(actions: list[Action]) -> list[Digest]:
    return [a.value for a in actions if isinstance(a, Decided)]


def deliver(peer: Agreement, item: Action, now: float) -> None:
    if isinstance(item, Vote):
        peer.on_vote(item, now)
    elif isinstance(item, Proposal):
        peer.on_proposal(item, now)
