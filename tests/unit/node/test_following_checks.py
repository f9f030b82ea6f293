"""Records that peers tell: which prove themselves, and which are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runnel.errors import PeerError
from runnel.node.actions import Send
from runnel.node.branches import branch_record
from runnel.node.messages import Records, WantRecords
from runnel.node.records import RecordKind
from runnel.verification.votes import Step
from tests.support.members import PEERS, certificate, following_record
from tests.support.states import (
    GENESIS,
    OTHER,
    STRANGER,
    THIRD,
    branch_after,
    grown,
    result_record,
    state_of,
    take,
    told,
)


def test_certified_records_are_wanted_and_more_are_asked_for() -> None:
    state = state_of()
    first = following_record(GENESIS)
    second = following_record(first)
    (more,) = take(state, told(first, second))
    assert isinstance(more, Send)
    assert isinstance(more.message, WantRecords)
    assert more.message.locator[0] == second.hash
    assert state.target == [GENESIS.hash, first.hash, second.hash]
    assert take(state, told(first, second)) == []


def test_records_that_hang_in_the_air_are_ignored() -> None:
    state = state_of()
    lonely = following_record(following_record(GENESIS))
    assert take(state, told(lonely)) == []
    assert lonely.hash not in state.chain


FIRST = following_record(GENESIS)


@pytest.mark.parametrize(
    "message",
    [
        told(FIRST, FIRST),
        told(FIRST, following_record(GENESIS, view=PEERS[:2])),
        told(replace(FIRST, number=3)),
        told(FIRST, proofs=[None]),
        told(FIRST, proofs=[certificate(FIRST, PEERS[:1])]),
        told(FIRST, proofs=[certificate(FIRST, (PEERS[0], STRANGER))]),
        told(FIRST, proofs=[certificate(following_record(GENESIS, nonce=b"n"), PEERS[:2])]),
        told(replace(FIRST, kind=RecordKind.GENESIS)),
        told(replace(FIRST, kind=RecordKind.BRANCH), proofs=[None]),
        told(replace(FIRST, kind=RecordKind.BRANCH)),
    ],
    ids=[
        "twice",
        "siblings",
        "number",
        "no certificate",
        "no quorum",
        "stranger",
        "other record",
        "second genesis",
        "unsigned branch",
        "branch with votes",
    ],
)
def test_records_without_a_proof_are_refused(message: Records) -> None:
    state = state_of()
    with pytest.raises(PeerError):
        take(state, message)
    assert state.target == []


def test_a_better_certificate_of_a_known_record_is_taken() -> None:
    state = grown(state_of(), 1)
    rival = result_record(GENESIS, "rival")
    take(state, told(rival, proofs=[certificate(rival, PEERS[:2], attempt=0)]))
    proof = certificate(rival, PEERS[1:3], attempt=2)
    take(state, told(rival, proofs=[proof]))
    assert state.chain.certificate(rival.hash) == proof
    assert state.target == [GENESIS.hash, rival.hash]


def test_an_abort_says_nothing_new() -> None:
    for record in (
        following_record(GENESIS, view=PEERS[:2]),
        following_record(GENESIS, nonce=b"x"),
    ):
        with pytest.raises(PeerError, match="no outcome"):
            take(state_of(), told(record))


def test_a_round_has_one_result_for_each_slice_by_senders_of_its_set() -> None:
    good = result_record(GENESIS, "result")
    take(state_of(), told(good))
    outside = replace(good.slices[0], included=(0, 1))
    for slices in ((), (good.slices[0],) * 2, (outside,)):
        with pytest.raises(PeerError, match="no outcome"):
            take(state_of(), told(replace(good, slices=slices)))


def test_a_branch_signed_by_all_it_lists_is_wanted() -> None:
    state = state_of()
    branch, proof = branch_after(GENESIS, (OTHER, THIRD))
    take(state, told(branch, proofs=[proof]))
    assert state.target == [GENESIS.hash, branch.hash]


def test_a_branch_may_carry_a_record_that_a_quorum_has_prevoted_for() -> None:
    state = state_of()
    locked = following_record(GENESIS)
    branch, proof = branch_after(GENESIS, (OTHER, THIRD), carried=locked)
    lock = certificate(locked, PEERS[:2], step=Step.PREVOTE)
    take(state, told(locked, branch, proofs=[lock, proof]))
    assert state.target == [GENESIS.hash, locked.hash, branch.hash]


def test_a_branch_that_claims_more_voters_than_it_lists_is_refused() -> None:
    branch, proof = branch_after(GENESIS, (OTHER, THIRD))
    with pytest.raises(PeerError, match="follows"):
        take(state_of(), told(replace(branch, listed=3), proofs=[proof]))


def test_a_branch_called_from_elsewhere_is_refused() -> None:
    first = following_record(GENESIS)
    second = following_record(first)
    _, proof = branch_after(GENESIS, (OTHER, THIRD))
    late = branch_record(second, b"nonce", (OTHER, THIRD), PEERS[:3])
    proofs = [certificate(first, PEERS[:2]), certificate(second, PEERS[:2]), proof]
    with pytest.raises(PeerError, match="another record"):
        take(state_of(), told(first, second, late, proofs=proofs))
