"""Branches carried out on a peer's state: calls, signatures, locks that they carry, and promises on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from runnel.dht.identity import NullSigner
from runnel.errors import PeerError
from runnel.node import branching, storage_keys
from runnel.node.actions import Action, Send, Store
from runnel.node.branches import branch_vote
from runnel.node.messages import BranchCall, BranchSign
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Record, RecordKind
from runnel.types import PeerId
from runnel.verification.votes import Instance, Lock
from tests.support.members import PEERS, RUN, following_record, genesis, name, vote
from tests.support.states import grown, state_of

ME, OTHER, THIRD = PEERS[:3]
NOW = 100.0  # nothing has moved since 0, which is more than the stall time
UNKNOWN_HEAD = name("a head that nobody here knows")


def stalled(me: PeerId = ME, *near: PeerId) -> ProtocolState:
    state = grown(state_of(me=me), 3)
    for peer in near:
        state.branches.hello(peer, state.chain.head.hash, NOW)
    return state


def call_of(state: ProtocolState, group: tuple[PeerId, ...]) -> BranchCall:
    return BranchCall(b"nonce", state.chain.head.hash, group)


def signature(
    state: ProtocolState,
    call: BranchCall,
    signer: PeerId,
    lock: Lock | None = None,
    locked: Record | None = None,
) -> BranchSign:
    unsigned = branch_vote(state.chain.head, call.nonce, call.group, signer)
    signed = replace(unsigned, signature=NullSigner(signer).sign(unsigned.statement(RUN)))
    return BranchSign(call.nonce, signed, b"ticket", lock, locked)


def lock_on(record: Record, attempt: int = 1) -> Lock:
    instance = Instance("outcome", record.number, record.parent)
    return Lock(
        attempt,
        record.hash,
        tuple(vote(instance, p, record.hash, attempt=attempt) for p in PEERS[:2]),
    )


def sent(actions: Sequence[Action], kind: type) -> list[object]:
    return [a.message for a in actions if isinstance(a, Send) and isinstance(a.message, kind)]


def test_a_peer_alone_goes_on_alone_at_once() -> None:
    state = stalled()
    head = state.chain.head
    actions = branching.call_if_stalled(state, NOW)
    assert len(sent(actions, BranchCall)) == 1
    branch = state.chain.record(state.target[-1])
    assert (branch.kind, branch.parent, branch.view) == (RecordKind.BRANCH, head.hash, (ME,))
    proof = state.chain.certificate(branch.hash)
    assert proof is not None
    assert [v.voter for v in proof.votes] == [ME]


def test_nobody_calls_while_the_chain_moves() -> None:
    state = stalled()
    state.pulse.moved = NOW - 1
    assert branching.call_if_stalled(state, NOW) == []


def test_a_signer_writes_down_that_it_votes_no_more_before_it_signs() -> None:
    state = stalled(OTHER, ME)
    head = state.chain.head
    actions = branching.on_call(state, ME, call_of(state, (ME, OTHER)), NOW)
    assert actions[0] == Store(storage_keys.stop_updates(head.hash))
    assert isinstance(actions[1], Send)
    assert actions[1].to == ME
    assert head.hash in state.saved.stops


def test_a_call_from_another_head_is_ignored() -> None:
    state = stalled(OTHER, ME)
    call = BranchCall(b"nonce", state.chain.path[1], (ME, OTHER))
    assert branching.on_call(state, ME, call, NOW) == []
    assert not state.saved.stops


def test_a_signer_hands_over_what_it_has_locked() -> None:
    state = stalled(OTHER, ME)
    locked = following_record(state.chain.head)
    lock = lock_on(locked)
    state.saved.locks[Instance("outcome", locked.number, locked.parent).key] = lock
    state.saved.candidates[locked.number] = {locked.hash: locked}
    actions = branching.on_call(state, ME, call_of(state, (ME, OTHER)), NOW)
    (answer,) = sent(actions, BranchSign)
    assert isinstance(answer, BranchSign)
    assert (answer.lock, answer.locked) == (lock, locked)


def called(state: ProtocolState) -> BranchCall:
    """The call that a stalled state makes with those it reaches."""
    (call,) = sent(branching.call_if_stalled(state, NOW), BranchCall)
    assert isinstance(call, BranchCall)
    return call


def test_a_branch_stands_once_all_have_signed_and_carries_the_highest_lock() -> None:
    state = stalled(ME, OTHER, THIRD)
    head, call = state.chain.head, called(state)
    low, high = following_record(head, nonce=b"low"), following_record(head, nonce=b"high")
    branching.on_sign(state, OTHER, signature(state, call, OTHER, lock_on(low), low), NOW)
    assert state.target == []
    last = signature(state, call, THIRD, lock_on(high, 2), high)
    branching.on_sign(state, THIRD, last, NOW)
    carried, branch = (state.chain.record(name) for name in state.target[-2:])
    assert carried == high
    assert (branch.parent, branch.view, branch.listed) == (high.hash, PEERS[:3], 3)


def test_a_branch_is_taken_even_if_a_better_path_is_known() -> None:
    state = stalled()
    better = following_record(state.chain.head, RecordKind.ROUND)
    state.pursuit.target = [*state.chain.path, state.chain.add(better)]
    branching.call_if_stalled(state, NOW)
    assert state.chain.record(state.target[-1]).kind is RecordKind.BRANCH


def test_signatures_of_others_or_for_another_call_do_not_count() -> None:
    state = stalled(ME, OTHER, THIRD)
    call = called(state)
    stranger = signature(state, call, PEERS[5])
    branching.on_sign(state, PEERS[5], stranger, NOW)
    branching.on_sign(state, OTHER, replace(signature(state, call, OTHER), nonce=b"x"), NOW)
    assert state.branches.forming is not None
    assert set(state.branches.forming.signed) == {ME}


@pytest.mark.parametrize("fault", ["another's", "forged", "other group"])
def test_a_bad_signature_is_refused(fault: str) -> None:
    state = stalled(ME, OTHER, THIRD)
    call = called(state)
    good = signature(state, call, OTHER)
    bad = {
        "another's": signature(state, call, THIRD),
        "forged": replace(good, vote=replace(good.vote, signature=b"forged")),
        "other group": signature(state, replace(call, group=(ME, OTHER)), OTHER),
    }
    with pytest.raises(PeerError, match="signed"):
        branching.on_sign(state, OTHER, replace(bad[fault], nonce=call.nonce), NOW)


@pytest.mark.parametrize("fault", ["no record", "other record", "other parent", "no quorum"])
def test_a_lock_that_no_quorum_stands_for_is_refused(fault: str) -> None:
    state = stalled(ME, OTHER)
    call, locked = called(state), following_record(state.chain.head)
    lock = lock_on(locked)
    elsewhere = following_record(genesis(3), nonce=b"elsewhere")
    given: dict[str, tuple[Lock, Record | None]] = {
        "no record": (lock, None),
        "other record": (lock, following_record(state.chain.head, nonce=b"n")),
        "other parent": (lock_on(elsewhere), elsewhere),
        "no quorum": (replace(lock, proof=lock.proof[:1]), locked),
    }
    with pytest.raises(PeerError, match="lock"):
        branching.on_sign(state, OTHER, signature(state, call, OTHER, *given[fault]), NOW)


def branches_at(state: ProtocolState, now: float) -> bool:
    return bool(branching.call_if_stalled(state, now))


def test_who_hears_a_quorum_go_on_elsewhere_branches_only_much_later() -> None:
    state = grown(state_of(), 3)
    stall_s = state.settings.limits.stall_s
    for peer in (OTHER, THIRD):
        state.branches.hello(peer, UNKNOWN_HEAD, 2 * stall_s)
    assert not branches_at(state, 2 * stall_s + 0.1)
    for peer in (OTHER, THIRD):
        state.branches.hello(peer, UNKNOWN_HEAD, 5 * stall_s)
    assert branches_at(state, 5 * stall_s + 0.1)


def test_who_hears_nobody_elsewhere_branches_after_the_stall_time() -> None:
    state = grown(state_of(), 3)
    state.branches.hello(OTHER, UNKNOWN_HEAD, 2 * state.settings.limits.stall_s)  # no quorum
    assert branches_at(state, 2 * state.settings.limits.stall_s + 0.1)


def test_results_that_come_in_are_no_stall() -> None:
    state = grown(state_of(), 3)
    now = 2 * state.settings.limits.stall_s
    state.pursuit.fed = now - 1.0
    assert not branches_at(state, now)
    assert branches_at(state, now + state.settings.limits.stall_s)
