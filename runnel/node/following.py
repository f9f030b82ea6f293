"""Following the chain: greeting, asking for records, checking them, adopting them one by one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from runnel.errors import PeerError
from runnel.node.actions import Action, Blame, Recall, Send
from runnel.node.branches import BEHIND_STALLS, REACH_S, branch_problem, branch_record
from runnel.node.certificates import Certificate
from runnel.node.chain import Chain, size_bytes_of
from runnel.node.membership import JOIN_LAG, greeting_s
from runnel.node.messages import MAX_RECORDS, Hello, Join, Leave, Records, WantRecords
from runnel.node.outcomes import abort_record
from runnel.node.protocol_state import Handler, ProtocolState
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
"""Of so many records on the way to a better path results are fetched at once."""
_CARRIED_AHEAD = 16
"""The same where results are some bytes; those that are there are followed in one step."""
_ROOM_BYTES = 900_000


def handlers(state: ProtocolState) -> dict[type, Handler]:
    """Who takes in what, by type of message."""
    return {
        Hello: partial(on_hello, state),
        WantRecords: partial(on_want_records, state),
        Records: partial(on_records, state),
        Join: partial(on_join, state),
        Leave: partial(on_leave, state),
    }


def greet_if_due(state: ProtocolState, now: float) -> list[Action]:
    """A greeting, if the time has come: who wants in or out says so each second, others among many more rarely."""
    view = state.chain.head.view
    wishes = state.members.leaving or state.me not in view
    often_s = greeting_s(1 if wishes else len(view))
    return greet(state, now) if now - state.pulse.hello > often_s else []


def greet(state: ProtocolState, now: float) -> list[Action]:
    """What goes out now and then and after each step: the head, and a wish to join or leave."""
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
    state.members.stands_at(sender, message.number)
    head, place = message.head, message.number + 1
    if state.chain.follows(head, message.number):
        return []
    if place < len(state.target) and state.target[place] == head:
        return []
    known = state.chain.is_at_hand(head)
    if known:
        aim(state, state.chain.lineage(head), now)
    pause_s = ASK_KNOWN_S if known else ASK_S
    if now - state.pulse.asked.get(sender, float("-inf")) < pause_s:
        return []
    state.pulse.asked[sender] = now
    return [Send(WantRecords((*state.target[-1:], *state.chain.locator())), to=sender)]


def on_want_records(
    state: ProtocolState, sender: PeerId, message: WantRecords, _now: float
) -> list[Action]:
    """A peer asks for records: those after the newest one we share; old ones have to be read first."""
    chain = state.chain
    if chain.meeting(message.locator) + 1 < len(chain.archive):
        return [Recall(message.locator, sender)]
    records = records_after(chain, message.locator)
    return [Send(records, to=sender)] if records.records else []


def records_after(chain: Chain, locator: Sequence[Digest]) -> Records:
    """Our records after the newest one of `locator`, as many as one message holds; may block on the disk.

    Raises:
        InputFileError, StorageError: they are old, and the disk does not give them.
    """
    records, certificates, room = list[Record](), list[Certificate | None](), _ROOM_BYTES
    for record, certificate in chain.after(locator, MAX_RECORDS):
        room -= size_bytes_of(record, certificate)
        if room < 0 and records:
            break
        records.append(record)
        certificates.append(certificate)
    return Records(tuple(records), tuple(certificates))


def on_join(state: ProtocolState, sender: PeerId, message: Join, now: float) -> list[Action]:
    """A peer asks to become a member."""
    if not state.settings.admits(sender, message.ticket):
        raise PeerError("ticket", "asks to join without a ticket of this run's owner")
    near = message.number >= state.chain.number - JOIN_LAG
    if near and state.chain.follows(message.head, message.number):
        state.members.wish(sender, message.ticket, now)
    return []


def on_leave(state: ProtocolState, sender: PeerId, _message: Leave, now: float) -> list[Action]:
    """A peer says goodbye."""
    state.members.goodbye(sender, now)
    return []


def on_records(state: ProtocolState, sender: PeerId, message: Records, now: float) -> list[Action]:
    """Records of a peer's path: check each, and follow them if their path beats ours."""
    chain = state.chain
    if not message.records or not chain.knows_parent(message.records[0]):
        return []  # nothing new, or an answer to what we asked before a restart
    path, news = chain.lineage(message.records[0].parent), False
    for record, certificate in zip(message.records, message.certificates, strict=True):
        if record.parent != path[-1]:
            raise PeerError("records", "a record does not follow the one before it")
        better = certificate is not None and chain.improves(record, certificate)
        if better or not chain.knows(record):
            news = True
            _check_record(state, path, record, certificate)
            chain.add(record, certificate, sender)
        path = path.then(record.hash)
    aim(state, path, now)
    heaviest = chain.trim(state.target)
    blames: list[Action] = [Blame(heaviest, "flood")] if heaviest else []
    wanted = chain.follows(path[-1], len(path) - 2) or state.target[: len(path)] == path
    if not wanted:  # it beats nothing as yet: what follows need not be known
        state.pulse.asked[sender] = now + ASK_KNOWN_S - ASK_S
        return blames
    if not news:
        return blames
    state.pulse.asked[sender] = now
    locator = (path[-1], *chain.locator())
    return [*blames, Send(WantRecords(locator), to=sender)]


def aim(state: ProtocolState, path: Sequence[Digest], now: float) -> None:
    """Wants `path` (all known) if it beats ours and the one wanted so far.

    If what it takes to follow that one has not come for the stall time, perhaps nobody has it any
    more: then another path that beats ours will do. Whoever still has it will say so.

    A branch that few made while they were cut off does not take a quorum along that stands at our
    head and goes on: it beats nothing as yet, as the next record is not there. Whoever has just come to
    its head waits until it has heard who else is there, and whoever hears a quorum of others, wherever
    they stand, lets them tell their records for a while: anybody with a ticket can sign a
    branch from our head by himself, at any time.
    """
    chain, pursuit = state.chain, state.pursuit
    if not chain.prefers(path) or _leaves_a_quorum(state, path, now):
        return
    known = pursuit.target
    if known and not chain.prefers(path, known):
        place = chain.common(known)
        stuck = pursuit.waits_for(known[place], now) > state.settings.limits.stall_s
        if not stuck or path[chain.common(path)] == known[place]:
            return
    pursuit.target = path
    state.news.add(chain.number + 1)


def _leaves_a_quorum(state: ProtocolState, path: Sequence[Digest], now: float) -> bool:
    """Whether a path goes on from our head by a branch of few, while a quorum is with us there."""
    chain, head = state.chain, state.chain.head
    first = chain.record(path[chain.common(path)])
    if first.parent != head.hash or first.kind is not RecordKind.BRANCH:
        return False
    if state.saved.has_stopped(head.hash, head.number) or state.me not in head.view:
        return False
    voters = chain.voters_of(head.number + 1)
    if len(set(voters) & set(first.view)) >= majority(len(voters)):
        return False
    if state.has_quorum_near(now):
        return True
    idle_s, alone = now - state.pulse.moved, set(voters) == {state.me}
    just_moved = idle_s < REACH_S * greeting_s(len(head.view)) and not alone
    others = (set(voters) - set(first.view)) & {state.me, *state.branches.heard(voters, now)}
    patience_s = BEHIND_STALLS * state.settings.limits.stall_s
    return just_moved or (idle_s < patience_s and len(others) >= majority(len(voters)))


def next_step(state: ProtocolState, now: float) -> tuple[list[Action], Sequence[Digest]]:
    """What to fetch for the next records of the path we want, and the path to move to (or empty).

    One record further, or several where contributions are a few bytes: the state after the last of them
    is then the one that is compared, and they cost one pass over the weights.
    """
    pursuit = state.pursuit
    if not pursuit.target or not state.chain.prefers(pursuit.target):
        pursuit.target, pursuit.landing = [], []
        return [], []
    landing, pursuit.landing = pursuit.landing, []
    if landing == state.target[: len(landing)] and state.chain.prefers(landing):
        return [], landing
    place = state.chain.common(state.target)
    if state.parts_deeply(place):
        return [], []  # by a landing only
    fetches: list[Action] = []
    carried = state.settings.carries is not None
    near = state.target[place : place + (_CARRIED_AHEAD if carried else _AHEAD)]
    records = [state.chain.record(name) for name in near]
    for record in records:
        for piece in record.slices:
            fetches += state.fetch(piece.root, (piece.reducer, *record.view), now)
    held = [state.holds_all(tuple(piece.root for piece in one.slices)) for one in records]
    count = held.index(False) if False in held else len(held)
    if count:
        return fetches, state.target[: place + (count if carried else 1)]
    pursuit.waits_for(records[0].hash, now)
    return fetches, []


def _check_record(
    state: ProtocolState, path: Sequence[Digest], record: Record, certificate: Certificate | None
) -> None:
    parent = state.chain.record(path[-1])
    if record.number != parent.number + 1:
        raise PeerError("records", "a record does not follow the one before it")
    if record.kind is RecordKind.BRANCH and certificate is not None:
        _check_branch(state, path, record, certificate)
        return
    if record.kind is RecordKind.GENESIS or certificate is None:
        raise PeerError("records", "a record without a certificate")
    if not _fits(state, path, record, parent):
        raise PeerError("records", f"record {record.number} is no outcome of its round")
    instance = Instance("outcome", record.number, parent.hash)
    electorate = Electorate.of(instance, state.chain.voters_of(record.number, path), majority)
    decided = Decided(instance, record.hash, certificate.attempt, certificate.votes)
    if not check_certificate(certificate.votes, decided, electorate, state.verify_vote):
        raise PeerError("certificate", f"record {record.number} lacks a quorum of its voters")


def _fits(state: ProtocolState, path: Sequence[Digest], record: Record, parent: Record) -> bool:
    """Whether a record could be an outcome, as far as the chain says: a branch of one is its own quorum."""
    if record.kind is RecordKind.ABORT:
        return record == abort_record(parent)
    view = state.chain.view_of(record.number, path)
    slices = state.settings.slices(record.number, len(view))
    senders = all(piece.included[-1] < len(record.shares) for piece in record.slices)
    return len(record.slices) == slices and senders


def _check_branch(
    state: ProtocolState, path: Sequence[Digest], branch: Record, certificate: Certificate
) -> None:
    chain, parent = state.chain, state.chain.record(path[-1])
    voters = chain.voters_of(branch.number, path)
    if branch != branch_record(parent, branch.nonce, branch.view, voters):
        raise PeerError("records", f"branch {branch.number} is not what follows from its parent")
    if not certificate.votes:
        raise PeerError("certificate", f"branch {branch.number} is signed by nobody")
    called = certificate.votes[0].instance.base
    if called not in {parent.hash, parent.parent}:  # the latter where it carries a locked record
        raise PeerError("certificate", f"branch {branch.number} was called from another record")
    problem = branch_problem(
        chain.record(Digest(called)),
        branch,
        certificate,
        verify=state.verify_vote,
        admits=state.settings.admits,
    )
    if problem:
        raise PeerError("certificate", problem)
