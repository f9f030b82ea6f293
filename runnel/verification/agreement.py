"""Single-shot agreement on one digest: Tendermint's propose, prevote, precommit with one lock.

Follows *The latest gossip on BFT consensus* (Buchman, Kwon, Milosevic), Algorithm 1, without its
separate valid value and without views of time: its inner rounds are called attempts here, and a
proposal repeats the locked value together with the prevotes that justify it. Pure: no clock, no
sockets, no disk. Inputs are methods with `now`; outputs are actions, in order, and a `Persist` must
be durable before the actions after it are carried out. So a vote or proposal is never forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from runnel.protocols import Signer
from runnel.types import Digest, PeerId
from runnel.verification.host import AgreementHost
from runnel.verification.votes import (
    NIL,
    Action,
    Ballots,
    Decided,
    Electorate,
    Instance,
    Lock,
    Proposal,
    Step,
    StoreProposal,
    StoreVote,
    Vote,
    check_certificate,
    majority,
)

__all__ = [
    "NIL",
    "Action",
    "Agreement",
    "AgreementHost",
    "Decided",
    "Electorate",
    "Instance",
    "Lock",
    "Proposal",
    "Step",
    "StoreProposal",
    "StoreVote",
    "Vote",
    "check_certificate",
    "majority",
]


SILENT_STEP_S = 0.1
"""How long the proposal of a member may take that has been silent for some time."""


_MOST_PATIENT = 18
"""From this attempt on the steps grow no longer, so that no far attempt makes anybody wait for ever."""


class Agreement:
    """One member's side of one decision. Call `advance` after any input and whenever time passed."""

    def __init__(
        self,
        instance: Instance,
        electorate: Electorate,
        signer: Signer,
        run: bytes,
        *,
        now: float,
        step_s: float,
    ) -> None:
        self.instance = instance
        self.electorate = electorate
        self.attempt = 0
        self.step = Step.PROPOSE
        self.decided = False
        self._signer, self._run = signer, run
        self._since, self._step_s = now, step_s
        self._proposals: dict[int, Proposal] = {}
        self._ballots: dict[tuple[int, Step], Ballots] = {}
        self._lock = Lock(-1, NIL, ())

    def restore(
        self, votes: Sequence[Vote], lock: Lock | None, proposals: Sequence[Proposal] = ()
    ) -> None:
        """Resumes exactly where what was read from disk left off: silence proves there was no vote."""
        for proposal in proposals:
            self._proposals[proposal.attempt] = proposal
            self.attempt = max(self.attempt, proposal.attempt)
        for vote in votes:
            self._cast(vote)
            if (vote.attempt, vote.step) >= (self.attempt, self.step):
                self.attempt, self.step = vote.attempt, vote.step
        self._lock = lock or self._lock

    @property
    def lock(self) -> Lock:
        """The lock held; attempt -1 for none."""
        return self._lock

    @property
    def idle(self) -> bool:
        """Whether nothing has been proposed or voted yet."""
        return self.step is Step.PROPOSE and not self.attempt and not self._proposals

    def hold(self, now: float) -> None:
        """Stops the first attempt's clock: there is nothing to propose yet."""
        if self.idle:
            self._since = now

    def on_proposal(self, proposal: Proposal, now: float) -> bool:
        """Takes in a proposal whose signature was checked; whether it is news.

        The first one of an attempt counts.
        """
        if proposal.proposer != self.electorate.proposer(proposal.attempt):
            return False
        if proposal.attempt in self._proposals:
            return False
        self._skip_to(proposal.attempt, now)
        self._proposals[proposal.attempt] = proposal
        return True

    def on_vote(self, vote: Vote, now: float) -> bool:
        """Takes in a vote whose signature was checked; whether it is news.

        The first one of a voter and step counts.
        """
        if vote.voter not in self.electorate.members or vote.step is Step.PROPOSE:
            return False
        if self._vote_of(vote.voter, vote.attempt, vote.step) is not None:
            return False
        self._skip_to(vote.attempt, now)
        self._cast(vote)
        return True

    def waited_for(self, vote: Vote, now: float) -> float | None:
        """How long this member, having cast the same vote, waited for that of another.

        None for any other vote: who votes `NIL` or comes late to a step may have waited for a
        deadline, and deadlines must not be measured by themselves.
        """
        own = self._vote_of(self._signer.peer_id, vote.attempt, vote.step)
        current = (vote.attempt, vote.step) == (self.attempt, self.step)
        if not vote.value or not current or own is None or own.value != vote.value:
            return None
        return now - self._since

    def advance(self, host: AgreementHost, now: float) -> list[Action]:
        """Goes as far as the inputs allow."""
        actions: list[Action] = []
        before = None
        while not self.decided and before != (self.attempt, self.step):
            before = (self.attempt, self.step)
            self._try_decide(host, actions)
            if not self.decided:
                self._propose(host, now, actions)
                self._prevote(host, now, actions)
                self._precommit(host, now, actions)
                self._next_attempt(now)
        return actions

    def repeats(self) -> list[Action]:
        """What to send again, in case it was lost: own proposal and votes of this attempt."""
        me = self._signer.peer_id
        proposal = self._proposals.get(self.attempt)
        again: list[Action] = []
        if proposal is not None and proposal.proposer == me:
            again.append(proposal)
        own = [self._vote_of(me, self.attempt, step) for step in (Step.PREVOTE, Step.PRECOMMIT)]
        if own[0] is None and self.attempt:
            own.append(self._vote_of(me, self.attempt - 1, Step.PRECOMMIT))
        return again + [vote for vote in own if vote is not None]

    def _vote_of(self, member: PeerId, attempt: int, step: Step) -> Vote | None:
        ballots = self._ballots.get((attempt, step))
        return ballots.votes.get(member) if ballots else None

    def _cast(self, vote: Vote) -> None:
        self._ballots.setdefault((vote.attempt, vote.step), Ballots()).add(vote)

    def _skip_to(self, attempt: int, now: float) -> None:
        if attempt > self.attempt:
            self.attempt, self.step, self._since = attempt, Step.PROPOSE, now

    def _late(self, now: float) -> bool:
        patience = 1 + min(self.attempt, _MOST_PATIENT) / 2
        return now - self._since > self._step_s * patience

    def _tally(self, step: Step) -> tuple[int, Digest | None]:
        """How many voted in this attempt, and the value with a quorum if there is one."""
        ballots = self._ballots.get((self.attempt, step))
        return (
            (len(ballots.votes), ballots.winner(self.electorate.quorum)) if ballots else (0, None)
        )

    def _try_decide(self, host: AgreementHost, actions: list[Action]) -> None:
        for (attempt, step), ballots in self._ballots.items():
            value = ballots.winner(self.electorate.quorum) if step is Step.PRECOMMIT else None
            if value and host.holds(self.instance, value):
                self.decided = True
                proof = ballots.supporters(value)
                actions.append(Decided(self.instance, value, attempt, proof))
                return

    def _propose(self, host: AgreementHost, now: float, actions: list[Action]) -> None:
        me = self._signer.peer_id
        if self.electorate.proposer(self.attempt) != me or self.attempt in self._proposals:
            return
        lock = self._lock
        value = lock.value if lock.attempt >= 0 else host.propose(self.instance, self.attempt, now)
        if value is None:
            return
        proposal = Proposal(self.instance, self.attempt, value, me, lock.attempt, lock.proof)
        self._proposals[self.attempt] = proposal
        actions.extend((StoreProposal(proposal), proposal))

    def _prevote(self, host: AgreementHost, now: float, actions: list[Action]) -> None:
        if self.step is not Step.PROPOSE:
            return
        proposal = self._proposals.get(self.attempt)
        if proposal is not None and self._may_prevote(proposal, host, now):
            self._vote(Step.PREVOTE, proposal.value, host, now, actions)
        elif self._late(now) or self._skips_proposer(host, now):
            if proposal is None and self._late(now):
                host.overdue(self.electorate.proposer(self.attempt), self._since, now)
            self._vote(Step.PREVOTE, NIL, host, now, actions)

    def _skips_proposer(self, host: AgreementHost, now: float) -> bool:
        """Whether the proposer seems to be gone: each of its turns would cost the others a whole step."""
        if now - self._since <= SILENT_STEP_S:
            return False
        return host.is_silent(self.electorate.proposer(self.attempt), now)

    def _may_prevote(self, proposal: Proposal, host: AgreementHost, now: float) -> bool:
        proved = proposal.lock_attempt < 0 or self._proves(proposal)
        lock = self._lock
        free = lock.attempt < 0 or lock.value == proposal.value
        free = free or (proposal.lock_attempt >= lock.attempt and self._proves(proposal))
        return proved and free and host.acceptable(proposal, now)

    def _proves(self, proposal: Proposal) -> bool:
        """Whether the proposal carries a quorum of prevotes of its value at its lock's attempt."""
        voters = {
            vote.voter
            for vote in proposal.proof
            if vote.voter in self.electorate.members
            and (vote.instance, vote.step) == (self.instance, Step.PREVOTE)
            and (vote.attempt, vote.value) == (proposal.lock_attempt, proposal.value)
        }
        return proposal.lock_attempt < proposal.attempt and len(voters) >= self.electorate.quorum

    def _precommit(self, host: AgreementHost, now: float, actions: list[Action]) -> None:
        if self.step is not Step.PREVOTE:
            return
        count, value = self._tally(Step.PREVOTE)
        if value and host.holds(self.instance, value):
            proof = self._ballots[self.attempt, Step.PREVOTE].supporters(value)
            lock = Lock(self.attempt, value, proof)
            self._vote(Step.PRECOMMIT, value, host, now, actions, lock)
        elif value == NIL or (count >= self.electorate.quorum and self._late(now)):
            self._vote(Step.PRECOMMIT, NIL, host, now, actions)

    def _next_attempt(self, now: float) -> None:
        if self.step is not Step.PRECOMMIT:
            return
        count, value = self._tally(Step.PRECOMMIT)
        if value == NIL or (count >= self.electorate.quorum and self._late(now)):
            self.attempt, self.step, self._since = self.attempt + 1, Step.PROPOSE, now

    def _vote(
        self,
        step: Step,
        value: Digest,
        host: AgreementHost,
        now: float,
        actions: list[Action],
        lock: Lock | None = None,
    ) -> None:
        if self._vote_of(self._signer.peer_id, self.attempt, step) or host.halted(self.instance):
            return
        vote = Vote(self.instance, self.attempt, step, value, self._signer.peer_id)
        vote = replace(vote, signature=self._signer.sign(vote.statement(self._run)))
        self._cast(vote)
        self._lock = lock or self._lock
        self.step, self._since = step, now
        actions.extend((StoreVote(vote, lock), vote))
