"""The decisions this peer takes part in: one agreement per open set and one for the next outcome. Pure."""

from __future__ import annotations

from runnel.node import storage_keys
from runnel.node.actions import Action, RoundKey, Send, Store
from runnel.node.membership import greeting_s
from runnel.node.messages import Cast, ProposeOutcome, ProposeSet, proposal_statement
from runnel.node.outcomes import abort_record, round_record
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Record, RecordKind, set_value
from runnel.node.rounds import Round
from runnel.types import Digest, PeerId
from runnel.verification.agreement import (
    Action as AgreementAction,
)
from runnel.verification.agreement import (
    Agreement,
    Decided,
    Electorate,
    Instance,
    Proposal,
    StoreProposal,
    StoreVote,
    Vote,
    majority,
)

ABORT_ATTEMPTS = 3
"""From this attempt on an outcome may be an abort although results are held."""
_STANDSTILL_ROUNDS = 9
"""One in so many waits for members that are behind, too; no multiple of a usual number of fragments."""
_SILENCE_S = 3.0


class Elections:
    """Runs agreements over the shared state; answers what they ask (`AgreementHost`)."""

    def __init__(self, state: ProtocolState) -> None:
        self._state = state
        self._open: dict[Instance, Agreement] = {}

    def agreement(self, instance: Instance, now: float) -> Agreement | None:
        """The agreement on `instance`; None if it is closed here or this peer has no vote in it."""
        known = self._open.get(instance)
        if known is not None:
            return known
        state = self._state
        place = state.round_of(instance)
        if place is None:
            return None
        if instance.kind == "set" and (place.decided is not None or place.forgotten):
            return None
        if state.me not in place.voters:
            return None
        electorate = Electorate.of(instance, place.voters, majority)
        step_s = state.deadlines.votes.deadline_s()
        run = state.settings.run
        opened = Agreement(instance, electorate, state.signer, run, now=now, step_s=step_s)
        saved = state.saved
        lock = saved.locks.get(instance.key)
        opened.restore(saved.votes.get(instance, []), lock, saved.proposals.get(instance, []))
        self._open[instance] = opened
        return opened

    def close(self, instance: Instance) -> None:
        """Forgets an agreement that others have finished."""
        self._open.pop(instance, None)

    def retain(self) -> None:
        """Forgets the agreements of rounds that are no longer open."""
        self._open = {
            instance: agreement
            for instance, agreement in self._open.items()
            if self._state.round_of(instance) is not None
        }

    def advance_set(self, place: Round, now: float) -> tuple[list[Action], Decided | None]:
        """Takes the decision on a round's set as far as it goes."""
        agreement = self.agreement(Instance("set", place.key.number, place.key.base), now)
        if agreement is None:
            return [], None
        if not self._has_set(place, now):
            agreement.hold(now)
        return self._carry(agreement, agreement.advance(self, now))

    def advance_outcome(self, now: float) -> tuple[list[Action], Decided | None]:
        """Takes the decision on the next record as far as it goes."""
        chain = self._state.chain
        number = chain.number + 1
        place = self._state.rounds.get(RoundKey(number, chain.base_of(number)))
        agreement = self.agreement(Instance("outcome", number, chain.head.hash), now)
        if place is None or agreement is None:
            return [], None
        if agreement.idle and not self._has_outcome(place, now):
            agreement.hold(now)
        return self._carry(agreement, agreement.advance(self, now))

    def repeats(self) -> list[Action]:
        """Own proposals and votes again, in case they were lost."""
        actions: list[Action] = []
        for agreement in self._open.values():
            actions += self._carry(agreement, agreement.repeats())[0]
        return actions

    def propose(self, instance: Instance, attempt: int, now: float) -> Digest | None:
        """See `AgreementHost.propose`."""
        place = self._state.round_of(instance)
        if place is None:
            return None
        if instance.kind == "set":
            return self._set(place, now)
        record = self._outcome(place, attempt, now)
        if record is None:
            return None
        place.take_candidate(record)
        return record.hash

    def acceptable(self, proposal: Proposal, now: float) -> bool:
        """See `AgreementHost.acceptable`."""
        place = self._state.round_of(proposal.instance)
        if place is None:
            return False
        record = place.candidates.get(proposal.value)
        if record is not None and record.kind is RecordKind.ABORT:
            allowed = proposal.lock_attempt >= 0 or self._may_abort(place, proposal.attempt, now)
            return allowed and record == abort_record(self._state.chain.head)
        return self.holds(proposal.instance, proposal.value)

    def holds(self, instance: Instance, value: Digest) -> bool:
        """See `AgreementHost.holds`."""
        place = self._state.round_of(instance)
        if place is None:
            return False
        if instance.kind == "set":
            return value in place.sets
        record = place.candidates.get(value)
        if record is None or record.kind is RecordKind.ABORT:
            return record is not None
        if place.prepared.get(record.slices) != record.state_root or not place.could_be(record):
            return False
        expected = round_record(self._state.chain.head, place, record.slices, record.state_root)
        return record == expected

    def is_silent(self, peer: PeerId, now: float) -> bool:
        """See `AgreementHost.is_silent`."""
        return not self._expected(peer, now)

    def overdue(self, peer: PeerId, since: float, now: float) -> None:
        """See `AgreementHost.overdue`."""
        members = len(self._state.chain.head.view)
        self._state.members.missed(peer, since, now, among=members)

    def halted(self, instance: Instance) -> bool:
        """See `AgreementHost.halted`."""
        parent = (Digest(instance.base), instance.round - 1)
        return instance.kind == "outcome" and self._state.saved.has_stopped(*parent)

    def _carry(
        self, agreement: Agreement, results: list[AgreementAction]
    ) -> tuple[list[Action], Decided | None]:
        actions: list[Action] = []
        decided: Decided | None = None
        for result in results:
            if isinstance(result, StoreVote):
                self._expect(result.vote)
                actions.append(Store(self._keep_vote(result)))
            elif isinstance(result, StoreProposal):
                actions.append(Store(self._keep_proposal(result.proposal)))
            elif isinstance(result, Proposal):
                actions += self._publish(result)
            elif isinstance(result, Vote):
                actions.append(Send(Cast(result)))
            else:
                decided = result
                self.close(agreement.instance)
        return actions, decided

    def _expect(self, vote: Vote) -> None:
        """A set that this peer votes for is likely to be decided."""
        place = self._state.round_of(vote.instance)
        if place is not None and vote.instance.kind == "set" and vote.value:
            place.expect(place.sets[vote.value])

    def _keep_proposal(self, proposal: Proposal) -> storage_keys.Updates:
        """Notes a proposal and its value; what must be durable of them."""
        self._state.saved.proposals.setdefault(proposal.instance, []).append(proposal)
        updates = storage_keys.proposal_updates(proposal)
        return updates | self._keep_value(proposal.instance, proposal.value)

    def _keep_vote(self, stored: StoreVote) -> storage_keys.Updates:
        """Notes a vote, the lock it brings and the value it is for; what must be durable of it."""
        vote, saved = stored.vote, self._state.saved
        saved.votes.setdefault(vote.instance, []).append(vote)
        if stored.lock is not None:
            saved.locks[vote.instance.key] = stored.lock
        updates = storage_keys.vote_updates(stored)
        return updates | self._keep_value(vote.instance, vote.value) if vote.value else updates

    def _keep_value(self, instance: Instance, value: Digest) -> storage_keys.Updates:
        place, saved = self._state.round_of(instance), self._state.saved
        if place is None:
            return {}
        if instance.kind == "set":
            proposed = saved.proposed.setdefault(place.key, {})
            if value in proposed:
                return {}
            proposed[value] = place.sets[value]
            return storage_keys.proposed_set_updates(place.key, value, proposed[value])
        candidates = saved.candidates.setdefault(instance.round, {})
        if value in candidates:
            return {}
        candidates[value] = place.candidates[value]
        return storage_keys.candidate_updates(candidates[value])

    def _publish(self, proposal: Proposal) -> list[Action]:
        place = self._state.round_of(proposal.instance)
        if place is None:
            return []
        signature = self._state.signer.sign(proposal_statement(self._state.settings.run, proposal))
        if proposal.instance.kind == "set":
            return [Send(ProposeSet(proposal, place.sets[proposal.value], signature))]
        return [Send(ProposeOutcome(proposal, place.candidates[proposal.value], signature))]

    def _set(self, place: Round, now: float) -> Digest | None:
        if not self._has_set(place, now):
            return None
        chosen = tuple(sorted(place.commits.values(), key=lambda c: c.id))
        value = set_value([c.id for c in chosen])
        place.sets[value] = chosen
        return value

    def _has_set(self, place: Round, now: float) -> bool:
        """Whether half has committed, and then all who are waited for or the deadline is over."""
        if place.half_at is None or 2 * len(place.commits) < len(place.voters):
            return False
        missing = [peer for peer in place.view if peer not in place.commits]
        if now - place.half_at >= self._state.deadlines.commits.deadline_s():
            for peer in missing:
                self._state.members.missed(peer, place.half_at, now, among=len(place.view))
            return True
        return not any(
            self._expected(peer, now) and not self._is_left_behind(peer, place.key.number)
            for peer in missing
        )

    def _is_left_behind(self, peer: PeerId, number: int) -> bool:
        """Whether round `number` does without `peer`, as that has not come so far.

        Now and then it does not: where rounds are short, whoever is behind meets the others only if they stand
        still for a moment.
        """
        turn = number % _STANDSTILL_ROUNDS == _STANDSTILL_ROUNDS - 1
        return not turn and self._state.lags(peer, number)

    def _expected(self, peer: PeerId, now: float) -> bool:
        """Whether to wait for `peer`: one that fell silent costs a deadline once, not in each round."""
        members = self._state.members
        often_s = greeting_s(len(self._state.chain.head.view))
        silence_s = max(_SILENCE_S * often_s, self._state.deadlines.commits.deadline_s())
        heard = members.heard_within(peer, silence_s, now) and not members.is_overdue(peer)
        return peer == self._state.me or heard

    def _outcome(self, place: Round, attempt: int, now: float) -> Record | None:
        chosen = place.best_held(self._state.held) if place.decided else None
        root = place.prepared.get(chosen) if chosen else None
        if chosen and root:
            return round_record(self._state.chain.head, place, chosen, root)
        return (
            abort_record(self._state.chain.head) if self._may_abort(place, attempt, now) else None
        )

    def _has_outcome(self, place: Round, now: float) -> bool:
        """Whether there is something to propose as yet."""
        chosen = place.best_held(self._state.held) if place.decided else None
        return bool(chosen and place.prepared.get(chosen)) or self._may_abort(place, 0, now)

    def _may_abort(self, place: Round, attempt: int, now: float) -> bool:
        deadlines = self._state.deadlines
        if place.decided is not None:
            since = place.decided_at + deadlines.abort_s
        elif place.half_at is not None:
            since = place.half_at + deadlines.commits.deadline_s() + 4 * deadlines.abort_s
        else:
            return False  # most still train, however long that takes
        held = place.decided is not None and place.best_held(self._state.held) is not None
        return now > since and (attempt >= ABORT_ATTEMPTS or not held)
