"""Following the chain: greeting, asking for records, checking them, adopting them one by one. Pure."""

from __future__ import annotations

from runnel.errors import PeerError
from runnel.node.actions import Action, Send
from runnel.node.chain import Certificate
from runnel.node.membership import JOIN_LAG
from runnel.node.messages import MAX_RECORDS, Hello, Join, Leave, Records, WantRecords
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Record, RecordKind
from runnel.types import Digest, PeerId
from runnel.verification.agreement import (
    Decided,
    Electorate,
    Instance,
    check_certificate,
    majority,
)

ASK_S = 0.5
"""How often, at most, a peer is asked for records we do not know."""
ASK_KNOWN_S = 5.0
"""How often a peer is asked that stays on a path we know and do not prefer: its proofs may be better."""
_AHEAD = 4


def greet(state: ProtocolState, now: float) -> list[Action]:
    """What goes out every second and after each step: the head, and a wish to join or leave."""
    state.pulse.hello = now
    head = state.chain.head
    actions: list[Action] = [Send(Hello(head.hash, head.number))]
    if state.members.leaving:
        actions.append(Send(Leave()))
    elif state.me not in head.view and not state.is_over:
        actions.append(Send(Join(state.settings.ticket, head.hash, head.number)))
    return actions


def on_hello(state: ProtocolState, sender: PeerId, message: Hello, now: float) -> list[Action]:
    """A peer's head: ask for what we lack."""
    state.branches.hello(sender, message.head, now)
    head, place = message.head, message.number + 1
    if state.chain.follows(head):
        return []
    if place < len(state.target) and state.target[place] == head:
        return []
    if head in state.chain:
        aim(state, state.chain.lineage(head))
    pause_s = ASK_KNOWN_S if head in state.chain else ASK_S
    if now - state.pulse.asked.get(sender, float("-inf")) < pause_s:
        return []
    state.pulse.asked[sender] = now
    return [Send(WantRecords((*state.target[-1:], *state.chain.locator())), to=sender)]


def on_want_records(
    state: ProtocolState, sender: PeerId, message: WantRecords, _now: float
) -> list[Action]:
    """A peer asks for records: those after the newest one we share."""
    records = state.chain.after(message.locator, MAX_RECORDS)
    if not records:
        return []
    return [Send(Records(records, tuple(state.chain.certificate(r.hash) for r in records)), to=sender)]


def on_join(state: ProtocolState, sender: PeerId, message: Join, now: float) -> list[Action]:
    """A peer asks to become a member."""
    if not state.settings.admits(sender, message.ticket):
        raise PeerError("ticket", "asks to join without a ticket of this run's owner")
    if state.chain.follows(message.head) and message.number >= state.chain.number - JOIN_LAG:
        state.members.wish(sender, message.ticket, now)
    return []


def on_leave(state: ProtocolState, sender: PeerId, _message: Leave, now: float) -> list[Action]:
    """A peer says goodbye."""
    state.members.goodbye(sender, now)
    return []


def on_records(state: ProtocolState, sender: PeerId, message: Records, now: float) -> list[Action]:
    """Records of a peer's path: check each, and follow them if their path beats ours."""
    chain = state.chain
    if not message.records or message.records[0].parent not in chain:
        return []  # nothing new, or an answer to what we asked before a restart
    path = chain.lineage(message.records[0].parent)
    for record, certificate in zip(message.records, message.certificates, strict=True):
        if record.parent != path[-1]:
            raise PeerError("records", "a record does not follow the one before it")
        better = certificate is not None and chain.improves(record.hash, certificate)
        if record.hash not in chain or better:
            _check_record(state, path, record, certificate)
            chain.add(record, certificate)
        path.append(record.hash)
    aim(state, path)
    if len(message.records) < MAX_RECORDS:
        return []
    state.pulse.asked[sender] = now
    locator = (path[-1], *chain.locator())
    return [Send(WantRecords(locator), to=sender)]


def aim(state: ProtocolState, path: list[Digest]) -> None:
    """Wants `path` (all known) if it beats both ours and the one wanted so far."""
    if state.chain.prefers(path) and (not state.target or state.chain.prefers(path, state.target)):
        state.target = path
        state.news.add(state.chain.number + 1)


def next_step(state: ProtocolState, now: float) -> tuple[list[Action], list[Digest]]:
    """What to fetch for the next records of the path we want, and the path to move to (or empty)."""
    if not state.target or not state.chain.prefers(state.target):
        state.target = []
        return [], []
    place = state.chain.common(state.target)
    fetches: list[Action] = []
    for name in state.target[place : place + _AHEAD]:
        record = state.chain.record(name)
        for piece in record.slices:
            fetches += state.fetch(piece.root, (piece.reducer, *record.view), now)
    first = state.chain.record(state.target[place])
    ready = state.holds_all(tuple(piece.root for piece in first.slices))
    return fetches, state.target[: place + 1] if ready else []


def _check_record(
    state: ProtocolState, path: list[Digest], record: Record, certificate: Certificate | None
) -> None:
    parent = state.chain.record(path[-1])
    if record.number != parent.number + 1:
        raise PeerError("records", "a record does not follow the one before it")
    if record.kind is RecordKind.BRANCH:
        return
    if record.kind is RecordKind.GENESIS or certificate is None:
        raise PeerError("records", "a record without a certificate")
    instance = Instance("outcome", record.number, parent.hash)
    electorate = Electorate.of(instance, state.chain.voters_of(record.number, path), majority)
    decided = Decided(instance, record.hash, certificate.attempt, certificate.votes)
    if not check_certificate(certificate.votes, decided, electorate, state.verify_vote):
        raise PeerError("certificate", f"record {record.number} lacks a quorum of its voters")
