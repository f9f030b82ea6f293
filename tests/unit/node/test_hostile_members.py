"""One member floods the others with all that its vote allows it to sign: they hold little of it and go on."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.dht.identity import NullSigner
from runnel.errors import PeerError
from runnel.node.actions import Blame, Send
from runnel.node.aside import MAX_ASIDE_BYTES
from runnel.node.certificates import Certificate
from runnel.node.evidence import SignedProposal, without_proof
from runnel.node.following import ASK_KNOWN_S, ASK_S, on_hello
from runnel.node.messages import Cast, Hello, ProposeOutcome, WantRecords, proposal_statement
from runnel.node.outcomes import abort_record
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Record
from runnel.node.rounds import MAX_PUT
from runnel.node.witness import Witness
from runnel.types import PeerId
from runnel.verification.agreement import MAX_ATTEMPT
from runnel.verification.votes import Electorate, Instance, Proposal, majority
from tests.support.flooding_world import FloodingWorld
from tests.support.members import PEERS, RUN, certificate, following_record, vote
from tests.support.states import GENESIS, OTHER, branch_after, grown, messages, state_of, take, told
from tests.unit.node.test_elections import protocol

OUTCOME = Instance("outcome", 0, GENESIS.hash)
SHARE = MAX_ASIDE_BYTES // 2


@pytest.mark.parametrize(("seed", "founders"), [pytest.param(1, 4, marks=pytest.mark.slow), (2, 3)])
def test_a_member_that_floods_fills_no_memory_and_the_rounds_go_on(
    seed: int, founders: int
) -> None:
    world = FloodingWorld(seed, founders=founders, messages_a_tick=4)
    while world.now < 8:
        world.step()
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        while world.now < 18:
            world.step()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 30e6
    assert {"attempt", "proposal", "flood", "equivocation"} <= set(world.refused)
    assert min(world.sent.values()) > 10
    assert min(peer.chain.number for peer in world.honest) > 3
    world.messages_a_tick = 0
    stats = world.run()  # raises if a promise to the honest does not hold
    assert stats["round"] > 100
    assert not stats["branch"] + stats["forks healed"]


# -- attempts, and what is put to the vote


def test_an_attempt_that_nobody_comes_to_is_refused() -> None:
    subject = protocol()
    subject.receive(OTHER, Cast(vote(OUTCOME, OTHER, b"", attempt=MAX_ATTEMPT)), 0.2)
    with pytest.raises(PeerError, match="attempt"):
        subject.receive(OTHER, Cast(vote(OUTCOME, OTHER, b"", attempt=MAX_ATTEMPT + 1)), 0.2)


def put(record: Record, turn: int) -> tuple[PeerId, ProposeOutcome]:
    """A record, proposed by OTHER in one of its turns."""
    turns = Electorate.of(OUTCOME, GENESIS.view, majority)
    attempt = [a for a in range(300) if turns.proposer(a) == OTHER][turn]
    said = Proposal(OUTCOME, attempt, record.hash, OTHER)
    signature = NullSigner(OTHER).sign(proposal_statement(RUN, said))
    return OTHER, ProposeOutcome(said, record, signature)


def test_a_member_puts_so_many_values_to_the_vote_of_a_round() -> None:
    subject = protocol()
    (place,) = [p for p in subject.state.rounds.values() if p.key.number == 0]
    blamed = []
    for turn in range(3 * MAX_PUT):
        sender, message = put(following_record(GENESIS, nonce=bytes([turn])), turn)
        actions = subject.receive(sender, message, 0.2)
        blamed += [a for a in actions if isinstance(a, Blame) and a.reason == "flood"]
    assert len(place.candidates) == MAX_PUT
    assert blamed == [Blame(OTHER, "flood")] * (2 * MAX_PUT)
    known = next(iter(place.candidates.values()))
    assert Blame(OTHER, "flood") not in subject.receive(*put(known, 40), 0.3)


def test_what_proves_a_lock_is_not_kept_with_what_a_member_signed() -> None:
    proof = tuple(vote(OUTCOME, OTHER, b"", attempt=a) for a in range(64))
    said = SignedProposal(Proposal(OUTCOME, 0, GENESIS.hash, OTHER, 0, proof), b"")
    witness = Witness({})
    witness.notes(said)
    assert list(witness._seen.values()) == [without_proof(said)] != [said]


# -- records


def lone_path(state: ProtocolState, place: int, nonce: bytes, length: int) -> tuple[Record, ...]:
    """What OTHER tells: a branch from a record of our path that it alone signs, and aborts on it."""
    head = state.chain.record(state.chain.path[place])
    branch, proof = branch_after(head, (OTHER,), nonce=nonce)
    records, proofs = [branch], [proof]
    for _ in range(length):
        records.append(abort_record(records[-1]))
        proofs.append(certificate(records[-1], (OTHER,)))
    take(state, told(*records, proofs=proofs), now=0.5)
    return tuple(records)


@settings(max_examples=3, deadline=None)
@given(
    places=st.lists(st.integers(1, 6), min_size=150, max_size=200),
    length=st.integers(20, 63),
)
def test_whatever_paths_one_member_makes_up_they_take_so_much_room(
    places: list[int], length: int
) -> None:
    check_made_up_paths(places, length)


def test_paths_that_one_member_makes_up_are_forgotten_again() -> None:
    check_made_up_paths([1 + turn % 6 for turn in range(150)], 50)


def check_made_up_paths(places: list[int], length: int) -> None:
    state = grown(state_of(), 8)
    chain, known = state.chain, len(state.chain._records)
    record = following_record(chain.head)  # what the others have decided meanwhile
    take(state, told(record), now=0.5)
    room = 0
    for turn, place in enumerate(places):
        lone_path(state, place, turn.to_bytes(4, "big"), length)
        room = max(room, chain._aside.total_bytes)
    assert room <= MAX_ASIDE_BYTES
    assert state.target[-1] == record.hash
    assert record.hash in chain
    assert len(chain._records) == known + len(chain._aside._sizes)
    for name in chain._aside._sizes:
        assert chain.lineage(name)[0] == GENESIS.hash  # nothing hangs in the air
    assert all(name in chain for name in chain.path)


def test_whoever_told_of_most_that_had_to_be_forgotten_is_told_of() -> None:
    state = grown(state_of(), 8)
    blames = []
    for turn in range(400):
        head = state.chain.record(state.chain.path[3])
        branch, proof = branch_after(head, (OTHER,), nonce=turn.to_bytes(4, "big"))
        padded = Certificate(0, proof.votes, (bytes(512),))
        blames += take(state, told(branch, proofs=[padded]), now=0.5)
        for _ in range(20):
            branch = abort_record(branch)
            blames += take(state, told(branch, proofs=[certificate(branch, (OTHER,))]), now=0.5)
    found = [a for a in blames if isinstance(a, Blame)]
    assert found
    assert set(found) == {Blame(OTHER, "flood")}


def test_a_path_that_beats_nothing_is_asked_for_no_further_and_seldom() -> None:
    state = grown(state_of(), 8)
    head = state.chain.record(state.chain.path[3])
    branch, proof = branch_after(head, (OTHER,))
    assert not messages(take(state, told(branch, proofs=[proof]), now=1.0))
    for now, asks in ((1.0 + ASK_S + 0.1, False), (1.0 + ASK_KNOWN_S + 0.1, True)):
        actions = on_hello(state, OTHER, Hello(PEERS[0][:32], 99), now)  # type: ignore[arg-type]
        assert [type(a.message) for a in actions if isinstance(a, Send)] == [WantRecords] * asks
