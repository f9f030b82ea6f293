"""Who says two things where one may be said is found out, and nobody else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from runnel.dht.identity import NullSigner
from runnel.errors import PeerError
from runnel.node.actions import Action, Blame, Note, Store
from runnel.node.commitments import JoinRequest
from runnel.node.events import Equivocated
from runnel.node.evidence import (
    MAX_EVIDENCE_BYTES,
    Evidence,
    SignedProposal,
    Statement,
    author_of,
    read_evidence,
)
from runnel.node.messages import Cast, ProposeOutcome, proposal_statement
from runnel.node.outcomes import abort_record
from runnel.node.records import MAX_MEMBERS
from runnel.node.storage_keys import restore
from runnel.node.witness import MAX_PER_PEER, Witness
from runnel.types import Digest, PeerId
from runnel.verification.votes import NIL, Electorate, Instance, Proposal, Step, Vote, majority
from tests.support.lying_world import LyingWorld
from tests.support.members import PEERS, RUN, commitment, name, signed_vote, vote
from tests.support.sim_peer import RUN as WORLD_RUN
from tests.support.states import GENESIS, OTHER, THIRD
from tests.unit.node.test_elections import protocol

SET = Instance("set", 0, GENESIS.hash)
LIAR = PEERS[1]


def proposal(value: str, *, lock_attempt: int = -1, proof: tuple[Vote, ...] = ()) -> SignedProposal:
    said = Proposal(SET, 0, name(value), LIAR, lock_attempt, proof)
    return SignedProposal(said, NullSigner(LIAR).sign(proposal_statement(RUN, said)))


def commitments() -> tuple[Statement, Statement]:
    return (
        commitment(LIAR, 0, GENESIS.hash),
        commitment(LIAR, 0, GENESIS.hash, leaves=(LIAR,)),
    )


PAIRS: dict[str, Callable[[], tuple[Statement, Statement]]] = {
    "votes": lambda: (vote(SET, LIAR, name("x")), vote(SET, LIAR, NIL)),
    "proposals": lambda: (proposal("x"), proposal("y")),
    "proposals by their lock": lambda: (proposal("x"), proposal("x", lock_attempt=0)),
    "commitments": commitments,
}


def verify(peer: PeerId, statement: bytes, signature: bytes) -> bool:
    return NullSigner(peer).verify(peer, statement, signature)


@pytest.mark.parametrize("kind", PAIRS)
def test_two_statements_for_one_place_prove_it_to_anybody_from_their_bytes_alone(kind: str) -> None:
    one, other = PAIRS[kind]()
    witness = Witness({})
    assert witness.notes(one) is None
    found = witness.notes(other)
    assert found == Evidence.of(other, one)
    read = read_evidence(found.encoded)
    assert read == found
    assert (read.problem(RUN, verify), read.peer, read.round) == ("", LIAR, 0)
    assert read.problem(name("another run"), verify) == "a statement that its peer did not sign"


@pytest.mark.parametrize("kind", PAIRS)
def test_the_same_statement_again_proves_nothing(kind: str) -> None:
    one, _ = PAIRS[kind]()
    witness = Witness({})
    assert witness.notes(one) is witness.notes(one) is None
    assert Evidence.of(one, one).problem(RUN, verify) == "the same statement twice"


def test_what_proves_a_lock_is_no_part_of_what_is_said() -> None:
    proof = (vote(SET, OTHER, name("x")),)
    witness = Witness({})
    assert witness.notes(proposal("x")) is None
    assert witness.notes(proposal("x", proof=proof)) is None


def test_statements_of_two_peers_or_places_prove_nothing() -> None:
    mine = vote(SET, LIAR, name("x"))
    for other in (vote(SET, THIRD, NIL), vote(SET, LIAR, NIL, attempt=1), proposal("y")):
        assert "different" in Evidence.of(mine, other).problem(RUN, verify)
        witness = Witness({})
        assert witness.notes(mine) is witness.notes(other) is None


def test_a_forged_statement_proves_nothing() -> None:
    one, other = vote(SET, LIAR, name("x")), vote(SET, LIAR, NIL)
    forged = Evidence.of(one, replace(other, signature=bytes(64)))
    assert forged.problem(RUN, verify) == "a statement that its peer did not sign"


def test_a_peer_may_sign_several_branches() -> None:
    place = Instance("branch", 0, GENESIS.hash)
    one, other = (signed_vote(Vote(place, 0, Step.PRECOMMIT, name(v), LIAR)) for v in "xy")
    witness = Witness({})
    assert witness.notes(one) is witness.notes(other) is None
    assert Evidence.of(one, other).problem(RUN, verify) == "a peer may sign several branches"


def test_evidence_has_one_form_only() -> None:
    found = Evidence.of(*commitments())
    swapped = replace(found, first=found.second, second=found.first)
    with pytest.raises(PeerError, match="not in order"):
        read_evidence(swapped.encoded)
    for data in (b"", found.encoded[:-1], found.encoded + b"\0", bytes(MAX_EVIDENCE_BYTES + 1)):
        with pytest.raises(PeerError):
            read_evidence(data)


def test_the_largest_commitments_fit() -> None:
    joins = tuple(JoinRequest(peer, bytes(512)) for peer in (LIAR,) * (MAX_MEMBERS // 4))
    everybody = (LIAR,) * MAX_MEMBERS
    one = commitment(LIAR, 0, GENESIS.hash, leaves=everybody, unheard=everybody, slices=MAX_MEMBERS)
    one = replace(one, joins=joins)
    found = Evidence.of(one, replace(one, tokens=11))
    assert read_evidence(found.encoded) == found


def test_what_is_kept_against_a_peer_is_bounded_and_each_place_counts_once() -> None:
    kept: dict[Digest, Evidence] = {}
    witness = Witness(kept)
    for attempt in range(2 * MAX_PER_PEER):
        for value in ("x", "y", "z"):
            found = witness.notes(vote(SET, LIAR, name(value), attempt=attempt))
            if found is not None and witness.is_news(found):
                kept[found.name] = found
    assert len(kept) == MAX_PER_PEER
    assert len({found.place for found in kept.values()}) == MAX_PER_PEER


# -- in the protocol


def test_two_votes_are_kept_told_of_and_held_against_their_voter() -> None:
    subject = protocol()
    one, other = vote(SET, LIAR, name("x")), vote(SET, LIAR, NIL)
    assert not accusations(subject.receive(LIAR, Cast(one), 0.2))
    actions = subject.receive(THIRD, Cast(other), 0.3)  # whoever passes it on is not to blame
    (stored,) = [
        a for a in actions if isinstance(a, Store) and any("evidence" in k for k in a.updates)
    ]
    (told,) = accusations(actions)
    assert (told.round, told.what) == (0, "two prevotes on its set")
    assert [a for a in actions if isinstance(a, Blame)] == [Blame(LIAR, "equivocation")]
    again = restore({k: v for k, v in stored.updates.items() if v}, GENESIS, open_rounds=2)
    assert [author_of(found.first) for found in again.evidence.values()] == [LIAR]
    assert not accusations(subject.receive(LIAR, Cast(other), 0.4))


def test_a_member_that_voted_for_another_proposal_is_shown_ours_once() -> None:
    subject = protocol()
    outcome = Instance("outcome", 0, GENESIS.hash)
    turn = Electorate.of(outcome, GENESIS.view, majority).proposer(0)
    record = abort_record(GENESIS)
    said = Proposal(outcome, 0, record.hash, turn)
    ours = ProposeOutcome(said, record, NullSigner(turn).sign(proposal_statement(RUN, said)))
    subject.receive(turn, ours, 0.2)
    for value, shown in ((record.hash, 0), (NIL, 0), (name("another"), 1), (name("another"), 0)):
        cast = Cast(vote(outcome, OTHER, value))
        actions = subject.receive(OTHER, cast, 0.3)
        assert sum(getattr(a, "message", None) == ours for a in actions) == shown


def accusations(actions: list[Action]) -> list[Equivocated]:
    return [a.event for a in actions if isinstance(a, Note) and isinstance(a.event, Equivocated)]


# -- in a swarm of four, three of which make a quorum


@pytest.mark.parametrize("manner", ["equivocates", "lies", "dies"])
def test_the_honest_go_on_with_equal_bits_and_know_who_lied(manner: str) -> None:
    world = LyingWorld(1, founders=4, manner=manner)
    stats = (
        world.run()
    )  # raises if a promise to the honest does not hold, or one of them is accused
    assert stats["round"] > 100
    assert world.told.total() > 1
    kept = [found for peer in world.honest for found in peer.protocol.state.saved.evidence.values()]
    assert bool(kept) == (manner != "dies")
    assert {found.peer for found in kept} <= {
        peer.name for peer in world.peers.values() if peer not in world.honest
    }
    assert all(found.problem(WORLD_RUN, verify) == "" for found in kept)
    if manner == "equivocates":
        assert {found.place.partition("/")[0] for found in kept} == {
            "vote",
            "proposal",
            "commitment",
        }
    if manner == "lies":
        assert world.refused["signature"] > 0
