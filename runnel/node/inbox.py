"""Commitments, proposals, votes and results as they come in: checked, then noted. Pure."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import pairwise

from runnel.errors import PeerError
from runnel.hashing import digest
from runnel.node import storage_keys
from runnel.node.actions import Action, Blame, Note, RoundKey, Send, Store
from runnel.node.certificates import Certificate
from runnel.node.commitments import MAX_NORM
from runnel.node.elections import Elections
from runnel.node.events import Equivocated
from runnel.node.events import SetDecided as SetDecidedEvent
from runnel.node.evidence import SignedProposal, Statement, evidence_updates
from runnel.node.messages import (
    Cast,
    Commit,
    ProposeOutcome,
    ProposeSet,
    ResultReady,
    SetDecided,
    proposal_statement,
)
from runnel.node.protocol_state import Handler, ProtocolState
from runnel.node.records import Commitment, set_value
from runnel.node.rounds import Round
from runnel.types import PeerId, short
from runnel.verification.agreement import (
    MAX_ATTEMPT,
    NIL,
    Decided,
    Electorate,
    Instance,
    Proposal,
    Step,
    Vote,
    check_certificate,
    majority,
)

TELL_AFTER_S = 0.5
"""What comes for a set decided less than this ago was probably under way: its sender will know soon."""


_MAX_PROPOSALS = 64


@dataclass(slots=True)
class _Passed:
    """The proposal of an attempt that came first, and to whom it was passed on."""

    message: ProposeSet | ProposeOutcome
    to: set[PeerId] = field(default_factory=set)


MAX_TOLD = 8
"""Results of one slice that one member may be the first to tell of: there are two, and a few after restarts."""


class Inbox:
    """Takes in what members say about open rounds."""

    def __init__(self, state: ProtocolState, elections: Elections) -> None:
        self._state = state
        self._elections = elections
        self._proposals: OrderedDict[tuple[Instance, int], _Passed] = OrderedDict()

    def handlers(self) -> dict[type, Handler]:
        """Who takes in what, by type of message."""
        return {
            Commit: self.on_commit,
            ProposeSet: self.on_propose_set,
            ProposeOutcome: self.on_propose_outcome,
            Cast: self.on_vote,
            SetDecided: self.on_set_decided,
            ResultReady: self.on_result,
        }

    def on_commit(self, sender: PeerId, message: Commit, now: float) -> list[Action]:
        """A member's commitment; one that comes after the set is decided is told so."""
        commitment = message.commitment
        key = RoundKey(commitment.round, commitment.base)
        place = self._state.rounds.get(key)
        if place is None:
            state, peer = self._state, commitment.peer
            timed = peer in state.chain.head.view and not state.lags(peer, state.chain.number + 1)
            if timed and self._is_signed(commitment):
                state.deadlines.too_late(key, peer, now)
            return []
        told = self._take(place, commitment, now)
        instance = Instance("set", commitment.round, commitment.base)
        return told + self._tell_set(sender, instance, since=now - TELL_AFTER_S)

    def on_propose_set(self, sender: PeerId, message: ProposeSet, now: float) -> list[Action]:
        """A proposed set with its commitments."""
        proposal = message.proposal
        place = self._state.round_of(proposal.instance)
        if proposal.instance.kind != "set" or place is None:
            return []
        _check_attempt(proposal)
        self._check_proposal(place, proposal, message.signature)
        names = [c.id for c in message.commitments]
        peers = {c.peer for c in message.commitments}
        if set_value(names) != proposal.value or names != sorted(names) or not names:
            raise PeerError("malformed", "the proposed set is not what its digest says")
        if len(peers) != len(names):
            raise PeerError("malformed", "the proposed set names a peer twice")
        if proposal.value not in place.sets and not place.motions.has_room(proposal.proposer):
            return [Blame(proposal.proposer, "flood")]
        actions: list[Action] = []
        for commitment in message.commitments:
            actions += self._take(place, commitment, now)
        if proposal.value not in place.sets:
            place.sets[proposal.value] = tuple(map(place.same, message.commitments))
            self._state.news.add(place.key.number)
        kept = place.sets[proposal.value]
        actions += self._proposed(ProposeSet(proposal, kept, message.signature))
        return actions + self._to_agreement(sender, proposal.instance, proposal, now)

    def on_propose_outcome(
        self, sender: PeerId, message: ProposeOutcome, now: float
    ) -> list[Action]:
        """A proposed record."""
        proposal, record = message.proposal, message.record
        place = self._state.round_of(proposal.instance)
        if proposal.instance.kind != "outcome" or place is None:
            return []
        _check_attempt(proposal)
        self._check_proposal(place, proposal, message.signature)
        if record.hash != proposal.value:
            raise PeerError("malformed", "the proposed record is not what its digest says")
        if record.hash not in place.candidates:
            if not place.motions.has_room(proposal.proposer):
                return [Blame(proposal.proposer, "flood")]
            place.take_candidate(record)
            self._state.news.add(place.key.number)
        kept = place.candidates[record.hash]
        actions = self._proposed(ProposeOutcome(proposal, kept, message.signature))
        return actions + self._to_agreement(sender, proposal.instance, proposal, now)

    def on_vote(self, sender: PeerId, message: Cast, now: float) -> list[Action]:
        """A vote."""
        vote = message.vote
        place = self._state.round_of(vote.instance)
        if place is None:
            return []
        _check_attempt(vote)
        if not self._state.verify_vote(vote):
            raise PeerError("signature", "vote not signed by its voter")
        actions = self._witnessed(vote) if vote.voter in place.voters else []
        actions += self._pass_on(vote) if sender == vote.voter in place.voters else []
        return actions + self._to_agreement(sender, vote.instance, vote, now)

    def on_set_decided(self, _sender: PeerId, message: SetDecided, now: float) -> list[Action]:
        """A set that others decided."""
        if not message.commitments:
            raise PeerError("malformed", "an empty set")
        first = message.commitments[0]
        place = self._state.rounds.get(RoundKey(first.round, first.base))
        if place is None or place.decided is not None:
            return []
        instance = Instance("set", first.round, first.base)
        value = set_value([c.id for c in message.commitments])
        electorate = Electorate.of(instance, place.voters, majority)
        decided = Decided(instance, value, message.certificate.attempt, message.certificate.votes)
        if not check_certificate(decided.certificate, decided, electorate, self._state.verify_vote):
            raise PeerError("certificate", "a decided set lacks a quorum of its voters")
        actions: list[Action] = []
        for commitment in message.commitments:
            actions += self._take(place, commitment, now)
        for vote in decided.certificate:
            if vote.voter in place.voters and self._state.verify_vote(vote):
                actions += self._witnessed(vote)
        self._elections.close(instance)
        return actions + self.fix_set(place, message.commitments, message.certificate, now)

    def on_result(self, sender: PeerId, message: ResultReady, _now: float) -> list[Action]:
        """A member's announcement of a slice's result, its own or another's."""
        place = self._state.rounds.get(RoundKey(message.round, message.base))
        if place is None or place.decided is None:
            return []
        if sender not in place.view:
            raise PeerError("result", "a result told by a peer that is not a member of the round")
        if place.facts.carried:
            raise PeerError("result", "a result of a round in which everybody makes their own")
        problem = place.misfit(message.slice_index, message.result)
        if problem:
            raise PeerError("result", problem)
        piece = place.slices[message.slice_index]
        if message.result not in piece.results:
            if piece.told[sender] >= MAX_TOLD:
                return []
            piece.told[sender] += 1
        if not piece.results.get(message.result):
            piece.results[message.result] = message.size_bytes
            self._state.news.add(place.key.number)
        return []

    def note(self, place: Round, commitment: Commitment, now: float) -> None:
        """Takes up a checked commitment."""
        if commitment.peer in place.commits:
            return
        place.commits[commitment.peer] = commitment
        state = self._state
        state.members.hear_of_leavers(commitment.leaves, state.chain.head.view)
        state.news.add(place.key.number)
        if place.half_at is not None:
            self._state.deadlines.commits.arrived(now - place.half_at)
        elif 2 * len(place.commits) >= len(place.voters):
            place.half_at = now
            self._state.deadlines.half_committed(place.key, now)

    def fix_set(
        self,
        place: Round,
        commitments: tuple[Commitment, ...],
        certificate: Certificate,
        now: float,
    ) -> list[Action]:
        """Takes up a decided set."""
        place.decide(commitments, certificate, now)
        deadlines = self._state.deadlines
        deadlines.set_decided(place.key, now)
        if any(piece.results for piece in place.slices):
            deadlines.data.arrived(0.0)  # made beside the votes
        if any(place.prepared.values()):
            deadlines.finished(place.key, now)
        self._state.news.add(place.key.number)
        self._state.saved.sets[place.key] = (commitments, certificate)
        names = tuple(short(c.peer) for c in commitments)
        fact = SetDecidedEvent(
            unix_s=0.0, round=place.key.number, contributors=names, seconds=now - place.opened
        )
        return [Store(storage_keys.set_updates(place.key, commitments, certificate)), Note(fact)]

    def _take(self, place: Round, commitment: Commitment, now: float) -> list[Action]:
        known = place.commits.get(commitment.peer)
        if known is not None and known.id == commitment.id:
            return []
        problem = commitment_problem(place, commitment, self._state)
        if problem:
            raise PeerError("commitment", problem)
        if not self._is_signed(commitment):
            raise PeerError("signature", "commitment not signed by its peer")
        self.note(place, commitment, now)
        return self._witnessed(commitment)

    def _witnessed(self, statement: Statement) -> list[Action]:
        """Takes note of what a member signed; if it signed something else there, both are kept."""
        witness, saved = self._state.witness, self._state.saved
        found = witness.notes(statement)
        if found is None or not witness.is_news(found):
            return []
        saved.evidence[found.name] = found
        fact = Equivocated(
            unix_s=0.0,
            peer=short(found.peer),
            round=found.round,
            what=found.what,
            place=found.place,
            evidence=found.name.hex(),
        )
        return [Store(evidence_updates(found)), Note(fact), Blame(found.peer, "equivocation")]

    def _proposed(self, message: ProposeSet | ProposeOutcome) -> list[Action]:
        """Takes note of a checked proposal, to be passed on if others had another one."""
        proposal = message.proposal
        self._proposals.setdefault((proposal.instance, proposal.attempt), _Passed(message))
        while len(self._proposals) > _MAX_PROPOSALS:
            self._proposals.popitem(last=False)
        return self._witnessed(SignedProposal(proposal, message.signature))

    def _pass_on(self, vote: Vote) -> list[Action]:
        """Shows a member that prevoted another value the proposal that came here, once: it has another one."""
        known = self._proposals.get((vote.instance, vote.attempt))
        if known is None or vote.step is not Step.PREVOTE or vote.voter in known.to:
            return []
        if vote.value in {NIL, known.message.proposal.value}:
            return []
        known.to.add(vote.voter)
        return [Send(known.message, to=vote.voter)]

    def _is_signed(self, commitment: Commitment) -> bool:
        statement = commitment.statement(self._state.settings.run)
        return self._state.signer.verify(commitment.peer, statement, commitment.signature)

    def _to_agreement(
        self, sender: PeerId, instance: Instance, item: Proposal | Vote, now: float
    ) -> list[Action]:
        agreement = self._elections.agreement(instance, now)
        if agreement is None:
            return self._tell_set(sender, instance, since=now - TELL_AFTER_S)
        if isinstance(item, Vote):
            waited_s = agreement.waited_for(item, now)
            news = agreement.on_vote(item, now)
            if news and waited_s is not None:
                self._state.deadlines.votes.arrived(waited_s)
        else:
            news = agreement.on_proposal(item, now)
        if news:
            self._state.news.add(instance.round)
        return []

    def _tell_set(self, sender: PeerId, instance: Instance, since: float) -> list[Action]:
        """A peer still commits to, or votes on, a set that was decided here before `since`: tell it."""
        place = self._state.round_of(instance)
        if place is None or place.decided is None or place.set_certificate is None:
            return []
        if instance.kind != "set" or place.decided_at > since:
            return []
        return [Send(SetDecided(place.decided, place.set_certificate), to=sender)]

    def _check_proposal(self, place: Round, proposal: Proposal, signature: bytes) -> None:
        electorate = Electorate.of(proposal.instance, place.voters, majority)
        if proposal.proposer != electorate.proposer(proposal.attempt):
            raise PeerError("proposal", "proposed by a peer whose turn it is not")
        statement = proposal_statement(self._state.settings.run, proposal)
        if not self._state.signer.verify(proposal.proposer, statement, signature):
            raise PeerError("signature", "proposal not signed by its proposer")
        if not all(self._state.verify_vote(vote) for vote in proposal.proof):
            raise PeerError("signature", "a proposal's proof holds a vote nobody signed")


def _check_attempt(item: Proposal | Vote) -> None:
    if item.attempt > MAX_ATTEMPT:
        raise PeerError("attempt", f"attempt {item.attempt}, nobody comes beyond {MAX_ATTEMPT}")


def commitment_problem(place: Round, commitment: Commitment, state: ProtocolState) -> str:
    """Why a commitment to an open round is unusable, or nothing. The same answer on every member."""
    if (commitment.round, commitment.base) != (place.key.number, place.key.base):
        return "it names another round"
    if commitment.peer not in place.view:
        return "its peer is not a member of the round"
    if len(commitment.slice_norms) != len(place.slices):
        return f"{len(commitment.slice_norms)} norms for {len(place.slices)} slices"
    withheld = commitment.withheld
    if any(high <= low for low, high in pairwise((-1, *withheld, len(place.slices)))):
        return "what it withholds are not slices in ascending order"
    if any(norm < 0 for norm in commitment.slice_norms):
        return "a negative norm"
    if math.hypot(*commitment.slice_norms) > MAX_NORM:
        return f"a norm above {MAX_NORM:g}"
    if not 0 < commitment.tokens <= state.settings.max_weight_tokens:
        return f"{commitment.tokens} tokens, allowed are 1 to {state.settings.max_weight_tokens}"
    if not all(state.settings.admits(join.peer, join.ticket) for join in commitment.joins):
        return "it names a candidate without a ticket"
    if commitment.window is not None and not state.settings.names_windows:
        return "it names a window of a run whose windows are private"
    return _carried_problem(commitment, state)


def _carried_problem(commitment: Commitment, state: ProtocolState) -> str:
    carries, carried = state.settings.carries, commitment.carried
    if carries is None:
        return "it carries a contribution that is to be sent in slices" if carried else ""
    if commitment.withheld:
        return "it withholds what it carries"
    if commitment.payload_root != digest(carried):
        return "it carries another contribution than it names"
    return carries(carried)
