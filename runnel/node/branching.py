"""Calling and signing branches for one peer: what `branches` decides, carried out on its state. Pure."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from runnel.errors import PeerError
from runnel.node import storage_keys
from runnel.node.actions import Action, RoundKey, Send, Store
from runnel.node.branches import BEHIND_STALLS, Signature, branch_record, branch_vote
from runnel.node.certificates import Certificate
from runnel.node.messages import BranchCall, BranchSign
from runnel.node.protocol_state import Handler, ProtocolState
from runnel.node.records import Record
from runnel.types import PeerId
from runnel.verification.votes import (
    Decided,
    Electorate,
    Instance,
    Lock,
    check_certificate,
    majority,
)


def handlers(state: ProtocolState) -> dict[type, Handler]:
    """Who takes in what, by type of message."""
    return {BranchCall: partial(on_call, state), BranchSign: partial(on_sign, state)}


def stalled_since(state: ProtocolState, now: float) -> float:
    """Since when the chain stands still without reason.

    While a quorum is within reach, training is a reason, however long it takes, and so is an
    exchange until the round could have been aborted. A peer that gets one result after the other of
    what the others have decided is behind, not cut off; so is one that hears a quorum at heads that it
    does not know, for a while: its link may carry greetings before it carries records.
    """
    chain, since = state.chain, max(state.pulse.moved, state.pursuit.fed)
    if state.has_quorum_elsewhere(now):
        since += BEHIND_STALLS * state.settings.limits.stall_s
    place = state.rounds.get(RoundKey(chain.number + 1, chain.base_of(chain.number + 1)))
    if (
        place is None
        or state.saved.has_stopped(chain.head.hash, chain.number)
        or not state.has_quorum_near(now)
    ):
        return since
    begun = place.half_at if place.decided is None else place.decided_at
    return max(since, (begun or now) + 4 * state.deadlines.abort_s)


def call_if_stalled(state: ProtocolState, now: float) -> list[Action]:
    """Calls a branch if the chain has not moved for the stall time and it is this peer's turn."""
    head, stall_s = state.chain.head, state.settings.limits.stall_s
    if now - state.pulse.moved <= stall_s or state.is_over:
        return []  # whatever else there may be to wait for
    since = stalled_since(state, now)
    if now - since <= stall_s:
        return []
    orphaned = state.branches.orphaned(head, since, now)
    forming = state.branches.call(head, since, now, orphaned=orphaned)
    if forming is None:
        return []
    call = BranchCall(forming.nonce, forming.parent, forming.group)
    return [Send(call), *on_call(state, state.me, call, now)]


def on_call(state: ProtocolState, sender: PeerId, message: BranchCall, now: float) -> list[Action]:
    """A peer asks to go on without those it cannot reach; a signer votes no more on this outcome."""
    head = state.chain.head
    if message.parent != head.hash:
        return []
    if not state.branches.may_sign(sender, message.group, head, stalled_since(state, now), now):
        return []
    state.branches.sign(sender, now)
    state.saved.stops.add(head.hash)
    stop: list[Action] = [Store(storage_keys.stop_updates(head.hash))]
    answer = _signature(state, message)
    if sender == state.me:
        return stop + on_sign(state, sender, answer, now)
    return [*stop, Send(answer, to=sender)]


def on_sign(state: ProtocolState, sender: PeerId, message: BranchSign, _now: float) -> list[Action]:
    """A signature for the branch this peer called; the last one completes it."""
    forming, chain = state.branches.forming, state.chain
    if forming is None or forming.nonce != message.nonce or sender not in forming.group:
        return []
    head = chain.record(forming.parent)
    expected = branch_vote(head, forming.nonce, forming.group, sender)
    if replace(message.vote, signature=b"") != expected or not state.verify_vote(message.vote):
        raise PeerError("signature", "a branch signed with something else")
    if message.lock is not None and not _is_locked(state, message.lock, message.locked):
        raise PeerError("certificate", "a lock that no quorum has prevoted for")
    forming.signed[sender] = Signature(message.vote, message.ticket, message.lock, message.locked)
    if not forming.complete:
        return []
    path = chain.path
    carried = forming.highest_lock()
    if carried is not None:
        lock, record = carried
        path = path.then(chain.add(record, Certificate(lock.attempt, lock.proof)))
    parent = chain.record(path[-1])
    voters = chain.voters_of(parent.number + 1, path)
    branch = branch_record(parent, forming.nonce, forming.group, voters)
    path = path.then(chain.add(branch, forming.certificate(head.view)))
    # Even if a better path is known: we stalled because what it takes to follow it cannot be had.
    state.pursuit.target = path
    state.news.add(head.number + 1)
    return []


def _is_locked(state: ProtocolState, lock: Lock, record: Record | None) -> bool:
    head, chain = state.chain.head, state.chain
    instance = Instance("outcome", head.number + 1, head.hash)
    if record is None or record.hash != lock.value or record.parent != head.hash:
        return False
    electorate = Electorate.of(instance, chain.voters_of(instance.round), majority)
    decided = Decided(instance, lock.value, lock.attempt, lock.proof)
    return check_certificate(lock.proof, decided, electorate, state.verify_vote)


def _signature(state: ProtocolState, call: BranchCall) -> BranchSign:
    head, saved = state.chain.head, state.saved
    vote = branch_vote(head, call.nonce, call.group, state.me)
    vote = replace(vote, signature=state.signer.sign(vote.statement(state.settings.run)))
    instance = Instance("outcome", head.number + 1, head.hash)
    lock = saved.locks.get(instance.key)
    locked = saved.candidates.get(instance.round, {}).get(lock.value) if lock else None
    return BranchSign(call.nonce, vote, state.settings.ticket, lock if locked else None, locked)
