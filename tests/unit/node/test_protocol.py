"""The protocol of one peer, driven by hand: what it asks for, in which order, and what a restart keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from runnel.dht.identity import NullSigner
from runnel.node import storage_keys
from runnel.node.actions import (
    Action,
    Adopt,
    Fetch,
    Handover,
    Prepare,
    Reduce,
    RoundKey,
    Send,
    Store,
    WantHandover,
)
from runnel.node.certificates import Certificate
from runnel.node.messages import (
    Cast,
    Commit,
    Message,
    ProposeOutcome,
    ResultReady,
    SetDecided,
)
from runnel.node.protocol import RoundProtocol
from runnel.node.records import RecordKind, SliceResult, set_value
from runnel.types import PeerId
from runnel.verification.votes import Instance, Lock, Step, StoreVote
from tests.support import round_table
from tests.support.members import (
    PEERS,
    certificate,
    commitment,
    following_record,
    genesis,
    name,
    vote,
)
from tests.support.states import settings_of

ME, OTHER = PEERS[0], PEERS[1]
GENESIS_OF_THREE = genesis(3).hash


class Driven:
    """A protocol, its disk, and all that it wanted."""

    def __init__(self, members: int, stored: dict[str, bytes] | None = None) -> None:
        self.stored = stored if stored is not None else {}
        self.genesis = genesis(members)
        saved = storage_keys.restore(self.stored, self.genesis, open_rounds=2)
        self.protocol = RoundProtocol(NullSigner(ME), settings_of(), saved, now=0.0)
        self.actions: list[Action] = []

    def note(self, actions: Sequence[Action]) -> list[Action]:
        for action in actions:
            self.actions.append(action)
            if isinstance(action, Store | Adopt):
                for key, value in action.updates.items():
                    if value is None:
                        self.stored.pop(key, None)
                    else:
                        self.stored[key] = value
        return list(actions)

    def tick(self, now: float) -> list[Action]:
        return self.note(self.protocol.tick(now))

    def receive(self, sender: PeerId, message: Message, now: float) -> list[Action]:
        return self.note(self.protocol.receive(sender, message, now))

    def hand_over(self, key: RoundKey, now: float) -> list[Action]:
        handover = Handover(key, name("payload"), (1.0,), 10, 1, 0.5, 8, {"kept/x": b""})
        return self.note(self.protocol.handed_over(handover, 0, now))

    def wanted(self) -> list[RoundKey]:
        return [a.key for a in self.actions if isinstance(a, WantHandover)]

    def said(self, kind: type) -> list[Message]:
        sent = [a.message for a in self.actions if isinstance(a, Send)]
        return [message for message in sent if isinstance(message, kind)]


def key_of(subject: Driven, number: int) -> RoundKey:
    return RoundKey(number, subject.protocol.state.chain.base_of(number))


def reduced(subject: Driven, action: Reduce) -> None:
    result = SliceResult(name("result"), ME, action.included)
    subject.note(subject.protocol.reduced(action, result, 8, 0.3))


def test_a_lone_peer_takes_a_round_to_its_record() -> None:
    alone = Driven(1)
    alone.tick(0.1)
    assert [key.number for key in alone.wanted()] == [0, 1]
    alone.hand_over(alone.wanted()[0], 0.2)
    (job,) = [a for a in alone.actions if isinstance(a, Reduce)]
    reduced(alone, job)
    (prepare,) = [a for a in alone.actions if isinstance(a, Prepare)]
    alone.note(alone.protocol.prepared(prepare.key, prepare.slices, name("state"), 0.4))
    (step,) = [a for a in alone.actions if isinstance(a, Adopt)]
    (record,) = step.fork.adopted
    assert (record.kind, record.number, record.state_root) == (RecordKind.ROUND, 0, name("state"))
    assert step.updates[storage_keys.HEAD] == record.hash
    assert [key.number for key in alone.wanted()] == [0, 1, 2]


def test_a_member_that_tells_of_very_many_results_takes_no_room_from_others() -> None:
    subject = round_table.stages("another member")[3]
    liar, honest = round_table.others(subject)
    for number in range(1000):
        made = SliceResult(name(f"invented {number}"), round_table.WORKER, (0, 1, 2))
        subject.receive(liar, ResultReady(0, round_table.FIRST.hash, 0, made, 8), 1.0)
    results = subject.state.rounds[round_table.KEY].slices[0].results
    assert len(results) == 8
    told = ResultReady(0, round_table.FIRST.hash, 0, round_table.RESULT, 8)
    actions = subject.receive(honest, told, 1.0)
    assert [a.root for a in actions if isinstance(a, Fetch)] == [round_table.RESULT.root]
    assert round_table.RESULT in results


def test_what_must_be_durable_comes_before_what_is_sent() -> None:
    alone = Driven(1)
    alone.tick(0.1)
    actions = alone.hand_over(alone.wanted()[0], 0.2)
    written: set[str] = set()
    for action in actions:
        if isinstance(action, Store):
            written |= set(action.updates)
        elif isinstance(action, Send) and isinstance(action.message, Cast):
            given = action.message.vote
            assert f"vote/{given.instance.key}/{given.attempt}/{int(given.step)}" in written
        elif isinstance(action, Send) and isinstance(action.message, Commit):
            assert {"kept/x", f"com/0/{alone.genesis.hash.hex()}"} <= written


def test_a_restart_repeats_its_commitment_and_wants_no_second_one() -> None:
    before = Driven(2)
    before.tick(0.1)
    before.hand_over(before.wanted()[0], 0.2)
    (promised,) = before.said(Commit)
    after = Driven(2, before.stored)
    after.tick(0.1)
    assert promised in after.said(Commit)
    assert [key.number for key in after.wanted()] == [1]


def test_a_round_that_closes_and_opens_again_wants_no_second_commitment() -> None:
    subject = Driven(2)
    subject.tick(0.1)
    subject.hand_over(key_of(subject, 1), 0.2)
    chain = subject.protocol.state.chain
    cut = following_record(subject.genesis, RecordKind.BRANCH, view=(ME,))
    better = following_record(subject.genesis)
    chain.add(cut)
    chain.add(better, certificate(better, PEERS[:2]))
    for record in (cut, better):
        subject.protocol.state.pursuit.target = [subject.genesis.hash, record.hash]
        subject.tick(0.5)
        assert chain.head == record
    wanted = [key for key in subject.wanted() if key == RoundKey(1, subject.genesis.hash)]
    assert len(wanted) == 1
    assert len(subject.said(Commit)) == 2
    assert subject.said(Commit)[0] == subject.said(Commit)[1]


def with_set(subject: Driven) -> tuple[Instance, list[object]]:
    """Round 0's set of both members, decided elsewhere and told to `subject`."""
    key = key_of(subject, 0)
    instance = Instance("set", 0, key.base)
    both = tuple(sorted((commitment(p, 0, key.base) for p in PEERS[:2]), key=lambda c: c.id))
    value = set_value([c.id for c in both])
    votes = tuple(vote(instance, p, value, step=Step.PRECOMMIT) for p in PEERS[:2])
    actions = subject.receive(OTHER, SetDecided(both, Certificate(0, votes)), 0.2)
    return instance, list(actions)


def test_a_decided_set_is_told_to_who_still_votes_also_after_a_restart() -> None:
    before = Driven(2)
    before.tick(0.1)
    instance, _ = with_set(before)
    after = Driven(2, before.stored)
    after.tick(0.1)
    late = vote(instance, OTHER, name("another set"))
    assert after.receive(OTHER, Cast(late), 0.2) == [], "it may know by now"
    (answer,) = after.receive(OTHER, Cast(late), 5.0)
    assert isinstance(answer, Send)
    assert isinstance(answer.message, SetDecided)
    assert answer.to == OTHER


def test_a_locked_record_is_known_after_a_restart_and_proposed_again() -> None:
    before = Driven(2)
    locked = following_record(before.genesis)
    instance = Instance("outcome", 0, before.genesis.hash)
    proof = tuple(vote(instance, p, locked.hash) for p in PEERS[:2])
    for step, lock in ((Step.PREVOTE, None), (Step.PRECOMMIT, Lock(0, locked.hash, proof))):
        mine = vote(instance, ME, locked.hash, step=step)
        before.stored |= {
            k: v for k, v in storage_keys.vote_updates(StoreVote(mine, lock)).items() if v
        }
    before.stored |= {k: v for k, v in storage_keys.candidate_updates(locked).items() if v}
    after = Driven(2, before.stored)
    after.tick(0.1)
    for attempt in range(3):
        empty = vote(instance, OTHER, b"", attempt=attempt, step=Step.PRECOMMIT)
        after.receive(OTHER, Cast(empty), 1.0 + attempt)
        after.tick(50.0 * (attempt + 1))
    proposals = [m for m in after.said(ProposeOutcome) if isinstance(m, ProposeOutcome)]
    assert {m.record for m in proposals} == {locked}
    assert {m.proposal.lock_attempt for m in proposals} == {0}


def test_a_laptop_that_wakes_up_hears_the_others_before_it_branches() -> None:
    subject = Driven(2)
    for tick in range(100):
        subject.tick(tick * 0.1)
    subject.tick(1000.0)
    assert subject.protocol.state.pulse.moved == 1000.0
    assert not [a for a in subject.actions if isinstance(a, Adopt)]


def test_a_peer_left_alone_branches_after_the_stall_time() -> None:
    subject = Driven(2)
    for tick in range(260):
        subject.tick(tick * 0.1)
    (step,) = [a for a in subject.actions if isinstance(a, Adopt)]
    assert [r.kind for r in step.fork.adopted] == [RecordKind.BRANCH]
    assert step.fork.adopted[0].view == (ME,)


def test_a_signature_that_comes_again_is_checked_once_and_a_forged_one_each_time() -> None:
    state = Driven(3).protocol.state
    checked: list[PeerId] = []

    class Counting(NullSigner):
        def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
            checked.append(peer)
            return super().verify(peer, message, signature)

    state.signer = Counting(ME)
    good = vote(Instance("set", 0, GENESIS_OF_THREE), OTHER, name("value"))
    forged = replace(good, signature=bytes(64))
    assert [state.verify_vote(good) for _ in range(3)] == [True] * 3
    assert checked == [OTHER]
    assert not any(state.verify_vote(forged) for _ in range(3))
    assert not state.verify_vote(replace(good, value=name("another")))
    assert len(checked) == 5
