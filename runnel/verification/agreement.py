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
from runnel.types import Digest
from runnel.verification.host import AgreementHost
from runnel.verification.poll import MAX_ATTEMPT, Poll
from runnel.verification.votes import (
    NIL,
    Action,
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
    "MAX_ATTEMPT",
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


MAX_HOP = 64
"""So many attempts ahead others take this member at once: nobody alone takes it out of everybody's reach."""


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
        self._poll = Poll(electorate)
        self._lock = Lock(-1, NIL, ())

    def restore(
        self, votes: Sequence[Vote], lock: Lock | None, proposals: Sequence[Proposal] = ()
    ) -> None:
        """Resumes exactly where what was read from disk left off: silence proves there was no vote."""
        for proposal in proposals:
            self.attempt = max(self.attempt, proposal.attempt)
            self._poll.put(proposal, self.attempt)
        for vote in votes:
            self._poll.cast(vote, self.attempt)
            if (vote.attempt, vote.step) >= (self.attempt, self.step):
                self.attempt, self.step = vote.attempt, vote.step
        self._lock = lock or self._lock

    @property
    def lock(self) -> Lock:
        """The lock held; attempt -1 for none."""
        return self._lock

    @property
    def idle(self) -> bool:
        """Whether this member has neither a proposal nor voted yet."""
        return self.step is Step.PROPOSE and not self.attempt and not self._poll.proposal(0)

    def hold(self, now: float) -> None:
        """Stops the first attempt's clock: there is nothing to propose yet."""
        if self.idle:
            self._since = now

    def on_proposal(self, proposal: Proposal, now: float) -> bool:
        """Takes in a proposal whose signature was checked; whether it is news."""
        news = self._poll.put(proposal, self.attempt)
        if news:
            self._follow(now)
        return news

    def on_vote(self, vote: Vote, now: float) -> bool:
        """Takes in a vote whose signature was checked; whether it is news."""
        news = vote.step is not Step.PROPOSE and self._poll.cast(vote, self.attempt)
        if news:
            self._follow(now)
        return news

    def waited_for(self, vote: Vote, now: float) -> float | None:
        """How long this member, having cast the same vote, waited for that of another.

        None for any other vote: who votes `NIL` or comes late to a step may have waited for a
        deadline, and deadlines must not be measured by themselves.
        """
        own = self._poll.vote_of(self._signer.peer_id, vote.attempt, vote.step)
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
                self._rejoin(now)
        return actions

    def repeats(self) -> list[Action]:
        """What to send again, in case it was lost: own proposal and votes of this attempt."""
        me = self._signer.peer_id
        proposal = self._poll.proposal(self.attempt)
        again: list[Action] = []
        if proposal is not None and proposal.proposer == me:
            again.append(proposal)
        own = [
            self._poll.vote_of(me, self.attempt, step) for step in (Step.PREVOTE, Step.PRECOMMIT)
        ]
        if self.attempt:  # who lacks it cannot end the attempt before
            own.append(self._poll.vote_of(me, self.attempt - 1, Step.PRECOMMIT))
        return again + [vote for vote in own if vote is not None]

    def _follow(self, now: float) -> None:
        """Goes at once where more members are than may lie: one that is honest is among them."""
        self._skip_to(self._poll.reached_by(self.electorate.spare + 1), now)

    def _rejoin(self, now: float) -> None:
        """Goes after any member that is ahead once a step is over here and has not brought a quorum together.

        A quorum would have ended the step: as long as there is one in an attempt, whoever lies about
        where he is takes nobody away from it.
        """
        if self.step is not Step.PROPOSE and self._late(now):
            self._skip_to(self._poll.reached_by(1), now)

    def _skip_to(self, attempt: int, now: float) -> None:
        if attempt > self.attempt:
            self.attempt = min(attempt, self.attempt + MAX_HOP)
            self.step, self._since = Step.PROPOSE, now

    def _late(self, now: float) -> bool:
        patience = 1 + min(self.attempt, _MOST_PATIENT) / 2
        return now - self._since > self._step_s * patience

    def _is_over(self, now: float) -> bool:
        """Whether more votes of this step are not worth waiting for.

        That is so at its deadline, and once those that are still to come cannot give any value a quorum.
        """
        ballots = self._poll.ballots(self.attempt, self.step)
        to_come = len(self.electorate.members) - len(ballots.votes)
        return self._late(now) or ballots.most() + to_come < self.electorate.quorum

    def _tally(self, step: Step) -> tuple[int, Digest | None]:
        """How many voted in this attempt, and the value with a quorum if there is one."""
        ballots = self._poll.ballots(self.attempt, step)
        return len(ballots.votes), ballots.winner(self.electorate.quorum)

    def _try_decide(self, host: AgreementHost, actions: list[Action]) -> None:
        for attempt, value, proof in self._poll.winners(Step.PRECOMMIT):
            if host.holds(self.instance, value):
                self.decided = True
                actions.append(Decided(self.instance, value, attempt, proof))
                return

    def _propose(self, host: AgreementHost, now: float, actions: list[Action]) -> None:
        me = self._signer.peer_id
        if self.electorate.proposer(self.attempt) != me or self._poll.proposal(self.attempt):
            return
        lock = self._lock
        value = lock.value if lock.attempt >= 0 else host.propose(self.instance, self.attempt, now)
        if value is None:
            return
        proposal = Proposal(self.instance, self.attempt, value, me, lock.attempt, lock.proof)
        self._poll.put(proposal, self.attempt)
        actions.extend((StoreProposal(proposal), proposal))

    def _prevote(self, host: AgreementHost, now: float, actions: list[Action]) -> None:
        if self.step is not Step.PROPOSE:
            return
        proposal = self._poll.proposal(self.attempt)
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
            proof = self._poll.ballots(self.attempt, Step.PREVOTE).supporters(value)
            lock = Lock(self.attempt, value, proof)
            self._vote(Step.PRECOMMIT, value, host, now, actions, lock)
        elif value == NIL or (count >= self.electorate.quorum and self._is_over(now)):
            self._vote(Step.PRECOMMIT, NIL, host, now, actions)

    def _next_attempt(self, now: float) -> None:
        if self.step is not Step.PRECOMMIT:
            return
        count, value = self._tally(Step.PRECOMMIT)
        if value == NIL or (count >= self.electorate.quorum and self._is_over(now)):
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
        if self._poll.vote_of(self._signer.peer_id, self.attempt, step) or host.halted(
            self.instance
        ):
            return
        vote = Vote(self.instance, self.attempt, step, value, self._signer.peer_id)
        vote = replace(vote, signature=self._signer.sign(vote.statement(self._run)))
        self._poll.cast(vote, self.attempt)
        self._lock = lock or self._lock
        self.step, self._since = step, now
        actions.extend((StoreVote(vote, lock), vote))
