"""Messages from strangers and liars: refused before they are kept, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runnel.dht.identity import NullSigner
from runnel.errors import PeerError
from runnel.node.certificates import Certificate
from runnel.node.chain import Chain
from runnel.node.commitments import MAX_NORM
from runnel.node.inbox import commitment_problem
from runnel.node.joining import records_answer
from runnel.node.messages import Commit, ProposeOutcome, Records, decode, proposal_statement
from runnel.node.protocol import RoundProtocol
from runnel.node.records import Record, RecordKind, Share, SliceResult
from runnel.node.storage_keys import Restored
from runnel.types import PEER_ID_PREFIX, PeerId
from runnel.verification.votes import Electorate, Instance, Proposal, majority
from tests.support.members import RUN, certificate, commitment, following_record, genesis, name
from tests.support.states import (
    GENESIS,
    ME,
    OTHER,
    STRANGER,
    branch_after,
    settings_of,
    state_of,
    take,
    told,
)


def protocol() -> RoundProtocol:
    restored = Restored(Chain(genesis(3), open_rounds=2))
    made = RoundProtocol(NullSigner(ME), settings_of(), restored, now=0.0)
    made.tick(0.1)
    return made


def proposed(record: Record, proposer: PeerId) -> ProposeOutcome:
    instance = Instance("outcome", record.number, record.parent)
    proposal = Proposal(instance, 0, record.hash, proposer)
    signature = NullSigner(proposer).sign(proposal_statement(RUN, proposal))
    return ProposeOutcome(proposal, record, signature)


def test_only_the_proposer_of_an_attempt_can_put_a_record_to_the_vote() -> None:
    subject = protocol()
    place = subject.state.rounds[next(iter(subject.state.rounds))]
    record = following_record(GENESIS, RecordKind.ROUND)
    instance = Instance("outcome", record.number, record.parent)
    turn = Electorate.of(instance, place.voters, majority).proposer(0)
    for sender in (STRANGER, *(peer for peer in place.voters if peer != turn)):
        with pytest.raises(PeerError, match="turn"):
            subject.receive(sender, proposed(record, sender), 0.2)
    assert record.hash not in place.candidates
    subject.receive(turn, proposed(record, turn), 0.2)
    assert record.hash in place.candidates


def test_a_norm_that_no_sum_can_hold_is_no_commitment() -> None:
    subject = protocol()
    place = subject.state.rounds[next(iter(subject.state.rounds))]
    fine = commitment(OTHER, place.key.number, place.key.base)
    assert commitment_problem(place, replace(fine, slice_norms=(MAX_NORM,)), subject.state) == ""
    lie = replace(fine, slice_norms=(1e308,))
    assert "norm above" in commitment_problem(place, lie, subject.state)


@pytest.mark.parametrize("lie", [(1,), (0, 0), (1, 0), (-1,)])
def test_only_slices_can_be_withheld_each_once(lie: tuple[int, ...]) -> None:
    subject = protocol()
    place = subject.state.rounds[next(iter(subject.state.rounds))]
    fine = commitment(OTHER, place.key.number, place.key.base)
    assert commitment_problem(place, replace(fine, withheld=(0,)), subject.state) == ""
    problem = commitment_problem(place, replace(fine, withheld=lie), subject.state)
    assert "ascending order" in problem


def test_a_late_commitment_that_nobody_signed_is_not_timed() -> None:
    subject = protocol()
    deadlines = subject.state.deadlines
    key = next(iter(subject.state.rounds))
    deadlines.half_committed(key, 0.0)
    del subject.state.rounds[key]
    late = commitment(OTHER, key.number, key.base)
    before = deadlines.commits.deadline_s()
    for peer in (OTHER, STRANGER):
        for at in range(8):
            forged = replace(late, peer=peer, signature=bytes(64))
            subject.receive(peer, Commit(forged), 100.0 + at)
    assert deadlines.commits.deadline_s() == before


def test_a_branch_that_nobody_signed_is_refused() -> None:
    state = state_of()
    branch, _ = branch_after(GENESIS, (OTHER,))
    with pytest.raises(PeerError, match="signed by nobody"):
        take(state, told(branch, proofs=[Certificate(0, (), ())]))


@pytest.mark.parametrize("members", [3, 25, 64])
def test_records_of_the_largest_views_fit_into_an_answer(members: int) -> None:
    view = tuple(PeerId(PEER_ID_PREFIX + bytes([index]) * 32) for index in range(members))
    chain = Chain(replace(genesis(3), view=view), open_rounds=2)
    for _ in range(64):
        parent = chain.head
        record = replace(
            following_record(parent, RecordKind.ROUND),
            shares=tuple(Share(peer, name("c"), 1000) for peer in view),
            slices=tuple(
                SliceResult(name(f"result {index}"), peer, tuple(range(members)))
                for index, peer in enumerate(view)
            ),
        )
        proof = certificate(record, view[: members // 2 + 1])
        chain.follow([*chain.path, chain.add(record, proof)])
    answer = decode(RUN, records_answer(chain, RUN, [chain.path[0]]))
    assert isinstance(answer, Records)
    assert answer.records
    assert answer.records[0].parent == chain.path[0]
