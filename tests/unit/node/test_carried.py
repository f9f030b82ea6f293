"""Contributions that travel in their commitments: everybody makes the result, and believes no other one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runnel.dht.identity import NullSigner
from runnel.errors import PeerError
from runnel.hashing import digest
from runnel.node import taking_part
from runnel.node.actions import Handover, Prepare, Reduce, RoundKey, Send, Store
from runnel.node.certificates import Certificate
from runnel.node.chain import Chain
from runnel.node.elections import Elections
from runnel.node.inbox import Inbox, commitment_problem
from runnel.node.messages import ResultReady
from runnel.node.outcomes import round_record
from runnel.node.protocol import RoundProtocol
from runnel.node.protocol_state import CAUGHT_UP_ROUNDS, ProtocolState
from runnel.node.records import Commitment, SliceResult
from runnel.node.round_data import DataWait, advance_data, overdue_for_data
from runnel.node.rounds import Round
from runnel.node.storage_keys import Restored
from runnel.types import PeerId
from tests.support.golden_run import WINDOW
from tests.support.members import PEERS, RUN, commitment, name
from tests.support.states import GENESIS, ME, OTHER, THIRD, state_of

KEY = RoundKey(0, GENESIS.hash)
LATE = DataWait(waited_s=1e6, patience_s=1.0)


def carries(payload: bytes) -> str:
    return "" if len(payload) == 2 else f"{len(payload)} bytes, expected 2"


def carried(peer: PeerId, payload: bytes = b"ab") -> Commitment:
    plain = commitment(peer, 0, GENESIS.hash)
    unsigned = replace(plain, payload_root=digest(payload), carried=payload, signature=b"")
    return replace(unsigned, signature=NullSigner(peer).sign(unsigned.statement(RUN)))


def carrying_state(me: PeerId = ME) -> ProtocolState:
    state = state_of(me=me)
    state.settings = replace(state.settings, carries=carries)
    return state


def carrying_protocol() -> RoundProtocol:
    settings, chain = carrying_state().settings, Restored(Chain(GENESIS, open_rounds=1))
    return RoundProtocol(NullSigner(ME), settings, chain, now=0.0)


def decided(state: ProtocolState, members: tuple[PeerId, ...] = (ME, OTHER)) -> Round:
    place = taking_part.open_round(state, KEY, 0.0)
    commitments = sorted((carried(peer) for peer in members), key=lambda c: c.id)
    place.decide(tuple(commitments), None, 0.0)
    return place


def job_of(place: Round) -> Reduce:
    (job,) = advance_data(place, ME, set(), wait=LATE)
    assert isinstance(job, Reduce)
    return job


def entry_of(job: Reduce, text: str = "entry") -> SliceResult:
    return SliceResult(name(text), job.reducer, job.included)


def test_a_round_of_any_size_has_one_slice() -> None:
    state = carrying_state()
    state.settings = replace(state.settings, fragment_sizes=(1 << 20,))
    assert len(taking_part.open_round(state, KEY, 0.0).slices) == 1


@pytest.mark.parametrize("me", [ME, THIRD], ids=["contributor", "the rest"])
def test_everybody_reduces_the_whole_set_at_once_and_the_same_way(me: PeerId) -> None:
    state = carrying_state(me)
    place = decided(state)
    (job,) = advance_data(place, me, set(), wait=LATE)
    assert isinstance(job, Reduce)
    assert job.senders == place.decided
    assert job.included == (0, 1)
    assert job.reducer == place.reducers(0)[0]
    assert job.seats == tuple(place.view.index(c.peer) for c in job.senders)
    assert advance_data(place, me, set(), wait=LATE) == []


def test_nobody_is_waited_for_once_the_set_is_decided() -> None:
    assert overdue_for_data(decided(carrying_state()), ME, set()) == set()


def test_a_result_that_everybody_makes_is_kept_and_not_announced() -> None:
    peer = carrying_protocol()
    place = decided(peer.state)
    job = job_of(place)
    result = entry_of(job)
    actions = peer.reduced(job, result, 30, 0.5)
    assert any(isinstance(a, Store) and f"result/{result.root.hex()}" in a.updates for a in actions)
    told = [a.message for a in actions if isinstance(a, Send)]
    assert not any(isinstance(message, ResultReady) for message in told)
    assert any(isinstance(a, Prepare) for a in actions)
    assert peer.state.deadlines.data.deadline_s() > 0
    repeated = taking_part.repeat(peer.state, place, 1e6)
    assert not any(isinstance(a, Send) and isinstance(a.message, ResultReady) for a in repeated)


def test_a_result_that_another_tells_of_is_refused() -> None:
    state = carrying_state()
    place = decided(state)
    inbox = Inbox(state, Elections(state))
    told = ResultReady(0, GENESIS.hash, 0, SliceResult(name("x"), place.reducers(0)[0], (0, 1)), 3)
    with pytest.raises(PeerError, match="everybody makes their own"):
        inbox.on_result(OTHER, told, 1.0)


def test_no_record_of_another_result_could_be_the_rounds() -> None:
    state = carrying_state()
    place = decided(state)
    mine = SliceResult(name("mine"), place.reducers(0)[0], (0, 1))
    other = replace(mine, root=name("another"))
    records = {
        piece: round_record(GENESIS, place, (piece,), name("state")) for piece in (mine, other)
    }
    assert not any(place.could_be(record) for record in records.values())  # not made here yet
    place.slices[0].results[mine] = 30
    assert place.could_be(records[mine])
    assert not place.could_be(records[other])
    place.take_candidate(records[other])
    assert list(place.slices[0].results) == [mine]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"carried": b"xy"}, "carries another contribution than it names"),
        ({"carried": b"", "payload_root": digest(b"")}, "0 bytes, expected 2"),
        ({"carried": b"abc", "payload_root": digest(b"abc")}, "3 bytes, expected 2"),
        ({"withheld": (0,)}, "withholds what it carries"),
    ],
)
def test_a_commitment_that_carries_no_contribution_is_refused(
    change: dict[str, object], why: str
) -> None:
    state = carrying_state()
    place = taking_part.open_round(state, KEY, 0.0)
    assert commitment_problem(place, carried(OTHER), state) == ""
    wrong: Commitment = replace(carried(OTHER), **change)  # type: ignore[arg-type]
    assert why in commitment_problem(place, wrong, state)


def test_a_commitment_carries_nothing_where_payloads_travel_in_slices() -> None:
    state = state_of()
    place = taking_part.open_round(state, KEY, 0.0)
    assert "sent in slices" in commitment_problem(place, carried(OTHER), state)


def test_a_commitment_names_a_window_only_where_windows_are_public() -> None:
    state = state_of()
    place = taking_part.open_round(state, KEY, 0.0)
    named = replace(commitment(OTHER, 0, GENESIS.hash), window=WINDOW)
    assert "whose windows are private" in commitment_problem(place, named, state)
    state.settings = replace(state.settings, names_windows=True)
    assert commitment_problem(place, named, state) == ""


def test_what_is_handed_over_goes_into_the_commitment_whatever_the_link() -> None:
    state = carrying_state()
    taking_part.open_round(state, KEY, 0.0)
    handover = Handover(KEY, digest(b"ab"), (0.0,), 3, 1, 0.5, 2, {}, b"ab")
    made = taking_part.commitment_of(state, handover, 7, 0.0)
    assert (made.carried, made.withheld, made.payload_root) == (b"ab", (), digest(b"ab"))
    assert Commitment.from_wire(made.to_wire()) == made


def test_the_trainer_is_told_its_seat() -> None:
    state = carrying_state(THIRD)
    place = taking_part.open_round(state, KEY, 0.0)
    assert taking_part.want(place, THIRD, urgent=False).seat == PEERS.index(THIRD)


def test_a_member_some_rounds_behind_is_waited_for() -> None:
    for behind, lags in ((CAUGHT_UP_ROUNDS, False), (CAUGHT_UP_ROUNDS + 1, True)):
        state = carrying_state()
        state.members.stands_at(OTHER, 40 - behind)
        assert state.lags(OTHER, 40) == lags


def test_results_that_are_made_here_say_how_long_that_takes() -> None:
    peer = carrying_protocol()
    jobs = [job_of(decided(peer.state)) for _ in range(8)]
    result = entry_of(jobs[0])
    for job in jobs:
        decided(peer.state)
        peer.reduced(job, result, 30, 0.01)
    floor_s = peer.state.settings.limits.floor_s
    assert peer.state.deadlines.data.deadline_s() == floor_s
    assert result.root in peer.state.held


# --- beside the votes on the set ----------------------------------------------------------------


def some(*members: PeerId) -> tuple[Commitment, ...]:
    return tuple(sorted((carried(peer) for peer in members), key=lambda c: c.id))


def expecting(peer: RoundProtocol, *members: PeerId) -> tuple[Round, Reduce]:
    """A round whose set is put to the vote, and what is made of it meanwhile."""
    place = peer.state.rounds.get(KEY) or taking_part.open_round(peer.state, KEY, 0.0)
    place.expect(some(*members))
    return place, job_of(place)


def test_what_is_made_of_a_set_is_made_beside_the_votes_on_it() -> None:
    peer = carrying_protocol()
    place, job = expecting(peer, ME, OTHER)
    assert job.senders == some(ME, OTHER)
    result = entry_of(job)
    (prepare,) = [a for a in peer.reduced(job, result, 30, 0.5) if isinstance(a, Prepare)]
    assert prepare.shares == place.shares
    peer.prepared(KEY, prepare.slices, name("state"), 0.6)
    Inbox(peer.state, Elections(peer.state)).fix_set(place, job.senders, Certificate(0, ()), 1.0)
    assert place.best_held(peer.state.held) == (result,)
    assert place.prepared[result,] == name("state")
    assert advance_data(place, ME, peer.state.held, wait=LATE) == []


def test_what_was_made_of_a_set_that_was_not_decided_is_no_result() -> None:
    peer = carrying_protocol()
    place, early = expecting(peer, ME, OTHER, THIRD)
    peer.reduced(early, entry_of(early), 30, 0.5)
    _, late = expecting(peer, ME, OTHER)  # another attempt, another set: the job goes on meanwhile
    peer.reduced(early, entry_of(early, "too late"), 30, 0.6)
    place.decide(some(OTHER, THIRD), None, 0.7)
    peer.reduced(late, entry_of(late), 30, 0.8)
    assert place.best_held(peer.state.held) is None
    assert not any(place.prepared.values())
    job = job_of(place)
    assert job.senders == place.decided
    peer.reduced(job, entry_of(job, "mine"), 30, 0.9)
    assert place.best_held(peer.state.held) == (entry_of(job, "mine"),)


def test_no_record_could_be_the_rounds_while_its_set_is_not_decided() -> None:
    peer = carrying_protocol()
    place, job = expecting(peer, ME, OTHER)
    peer.reduced(job, entry_of(job), 30, 0.5)
    record = round_record(GENESIS, decided(carrying_state()), (entry_of(job),), name("state"))
    assert not place.could_be(record)
    place.decide(job.senders, None, 1.0)
    assert place.could_be(record)


def test_nothing_is_made_of_a_set_before_its_votes_where_payloads_travel_in_slices() -> None:
    state = state_of()
    place = taking_part.open_round(state, KEY, 0.0)
    place.expect((commitment(ME, 0, GENESIS.hash),))
    assert advance_data(place, ME, set(), wait=LATE) == []
    assert place.shares == ()


def test_whoever_votes_for_a_set_takes_it_for_the_one_that_will_be_decided() -> None:
    expected, whole = list[tuple[Commitment, ...]](), some(ME, OTHER, THIRD)
    for me in (ME, OTHER, THIRD):
        state = carrying_state(me)
        elections, place = Elections(state), taking_part.open_round(state, KEY, 0.0)
        inbox = Inbox(state, elections)
        for one in whole:
            inbox.note(place, one, 0.0)
        elections.advance_set(place, 0.1)
        expected += [place.expected] if place.expected else []
    assert expected == [whole], "one of them proposes, and votes for it"
