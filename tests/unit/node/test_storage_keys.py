"""Durable state: what is written comes back, what is damaged is refused, what is old is let go."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.dht.wire import pack
from runnel.errors import InputFileError
from runnel.node import storage_keys as keys
from runnel.node.actions import RoundKey
from runnel.node.certificates import Certificate
from runnel.node.records import Record, set_value
from runnel.verification.votes import Instance, Lock, Step, StoreVote
from tests.support.members import PEERS, certificate, commitment, following_record, genesis, name
from tests.support.members import vote as vote_of

GENESIS = genesis(3)
FIRST = following_record(GENESIS)
SECOND = following_record(FIRST)
KEY = RoundKey(2, FIRST.hash)
COMMITMENTS = tuple(commitment(p, KEY.number, KEY.base) for p in PEERS[:2])
VALUE = set_value([c.id for c in COMMITMENTS])
SET = Instance("set", KEY.number, KEY.base)
PROOF = Certificate(0, tuple(vote_of(SET, p, VALUE) for p in PEERS[:2]))


def written(*updates: keys.Updates) -> dict[str, bytes]:
    stored: dict[str, bytes] = {}
    for update in updates:
        for key, value in update.items():
            if value is None:
                stored.pop(key, None)
            else:
                stored[key] = value
    return stored


def restored(*updates: keys.Updates) -> keys.Restored:
    return keys.restore(written(*updates), GENESIS, open_rounds=2)


def chain_updates(*records: Record) -> keys.Updates:
    updates: keys.Updates = {keys.HEAD: records[-1].hash}
    for record in records:
        updates |= keys.record_updates(record, certificate(record, PEERS[:2]))
    return updates


def stored_vote(
    *, attempt: int = 0, step: Step = Step.PREVOTE, lock: Lock | None = None
) -> StoreVote:
    return StoreVote(vote_of(SET, PEERS[0], VALUE, attempt=attempt, step=step), lock)


def everything() -> list[keys.Updates]:
    lock = Lock(0, VALUE, PROOF.votes)
    return [
        chain_updates(FIRST, SECOND),
        keys.vote_updates(stored_vote()),
        keys.vote_updates(stored_vote(step=Step.PRECOMMIT, lock=lock)),
        keys.proposed_set_updates(KEY, VALUE, COMMITMENTS),
        keys.candidate_updates(SECOND),
        keys.set_updates(KEY, COMMITMENTS, PROOF),
        keys.commitment_updates(COMMITMENTS[0]),
        keys.stop_updates(FIRST.hash),
        keys.result_updates(name("result")),
    ]


def test_nothing_stored_is_a_fresh_start() -> None:
    assert restored().chain.path == [GENESIS.hash]


def test_what_was_written_comes_back() -> None:
    found = restored(*everything())
    assert found.chain.path == [GENESIS.hash, FIRST.hash, SECOND.hash]
    assert found.chain.certificate(SECOND.hash) == certificate(SECOND, PEERS[:2])
    assert [v.step for v in found.votes[SET]] == [Step.PREVOTE, Step.PRECOMMIT]
    assert found.locks == {SET.key: Lock(0, VALUE, PROOF.votes)}
    assert found.proposed == {KEY: {VALUE: COMMITMENTS}}
    assert found.candidates == {1: {SECOND.hash: SECOND}}
    assert found.sets == {KEY: (COMMITMENTS, PROOF)}
    assert found.commits == {KEY: COMMITMENTS[0]}
    assert (found.stops, found.results) == ({FIRST.hash}, {name("result")})


def test_the_head_says_which_records_are_followed() -> None:
    aside = following_record(FIRST, view=PEERS[:2])
    updates = {**chain_updates(FIRST, SECOND), **keys.record_updates(aside, None)}
    assert restored(updates).chain.head == SECOND
    assert restored({**updates, keys.HEAD: aside.hash}).chain.head == aside


def test_keys_of_others_are_left_alone() -> None:
    assert restored({"drift/0": b"\x00", "state/1": b"?", "unknown": b""}).chain.number == -1


@pytest.mark.parametrize(
    "broken",
    [
        {keys.HEAD: name("nobody knows it")},
        {"record/ab": b"\x93"},
        {"record/ab": b""},
        {"vote/x": b"\xc0"},
        {"set/1": b"\x92\x90\x90"},
        {"com/one/two": b"\x90"},
        {"result/zz": b""},
        {"proposed/1/ab/cd": b"\xc0"},
        {"candidate/1/ab": b"\x90"},
        {"lock/x": b"\x91\x00"},
    ],
)
def test_damaged_state_is_refused_with_a_way_out(broken: dict[str, bytes]) -> None:
    with pytest.raises(InputFileError, match="join again"):
        keys.restore(broken, GENESIS, open_rounds=2)


def test_state_of_another_run_is_refused() -> None:
    stranger = genesis(2)
    first = following_record(stranger)
    stored = written(keys.record_updates(stranger, None), chain_updates(first))
    with pytest.raises(InputFileError, match="another"):
        keys.restore(stored, GENESIS, open_rounds=2)


@given(st.integers(0, 8), st.integers(0, 4096), st.integers(0, 255))
def test_a_flipped_byte_is_found_or_harmless(which: int, place: int, new: int) -> None:
    stored = written(*everything())
    key = sorted(stored)[which % len(stored)]
    value = bytearray(stored[key])
    if not value:
        return
    value[place % len(value)] = new
    try:
        found = keys.restore({**stored, key: bytes(value)}, GENESIS, open_rounds=2)
    except InputFileError:
        return
    assert found.chain.path[0] == GENESIS.hash


# -- letting go


def promises(number: int) -> list[keys.Updates]:
    """All that a peer writes about a round that is then decided."""
    base = name(f"base {number}")
    key, instance = RoundKey(number, base), Instance("set", number, base)
    record = following_record(following_record(GENESIS, nonce=base))
    outcome = Instance("outcome", number, base)
    commitments = (commitment(PEERS[0], number, base),)
    value = set_value([commitments[0].id])
    lock = Lock(0, value, ())
    return [
        keys.vote_updates(StoreVote(vote_of(instance, PEERS[0], value), lock)),
        keys.vote_updates(StoreVote(vote_of(outcome, PEERS[0], b""))),
        keys.proposed_set_updates(key, value, commitments),
        keys.set_updates(key, commitments, PROOF),
        keys.commitment_updates(commitments[0]),
        keys.candidate_updates(replace(record, number=number)),
    ]


def test_promises_of_old_rounds_are_forgotten_in_memory_and_on_disk() -> None:
    old = [update for number in (1, 2) for update in promises(number)]
    new = promises(3)
    stored = written(*old, *new)
    found = keys.restore(stored, GENESIS, open_rounds=2)
    deletions = found.expire(2)
    assert deletions.pop("expired") is not None
    assert set(deletions.values()) == {None}
    left = written(stored, deletions)  # type: ignore[arg-type]
    assert left == written(*new)
    again = keys.restore(left, GENESIS, open_rounds=2)
    assert (found.votes, found.locks, found.sets) == (again.votes, again.locks, again.sets)
    assert {key.number for key in (*found.sets, *found.commits, *found.proposed)} == {3}
    assert set(found.candidates) == {3}
    assert {instance.round for instance in found.votes} == {3}


def test_nothing_is_forgotten_that_is_still_open() -> None:
    found = restored(*everything())
    assert found.expire(0) == {}
    assert found.commits


def test_stops_and_results_are_not_forgotten_with_their_rounds() -> None:
    found = restored(*everything())
    found.expire(1000)
    assert (found.stops, found.results) == ({FIRST.hash}, {name("result")})
    assert found.chain.head == SECOND


def test_stops_on_archived_records_become_one_number() -> None:
    records = [GENESIS]
    for _ in range(12):
        records.append(following_record(records[-1]))
    stored = written(chain_updates(*records[1:]))
    lost = following_record(records[2], nonce=b"given up long ago")
    for parent in (records[3], records[11], lost):
        stored = written(stored, keys.stop_updates(parent.hash))  # type: ignore[arg-type]
    found = keys.restore(stored, GENESIS, open_rounds=2, block=4)
    assert found.forget_stops() == {}
    assert found.chain.fold(5) is not None
    updates = found.forget_stops()
    assert found.stops == {records[11].hash}
    assert updates == {
        f"stop/{records[3].hash.hex()}": None,
        f"stop/{lost.hash.hex()}": None,
        "stopped": pack(2),
    }
    for saved in (found, keys.restore(written(stored, updates), GENESIS, open_rounds=2)):  # type: ignore[arg-type]
        assert saved.has_stopped(records[3].hash, 2)
        assert saved.has_stopped(name("another record of that round"), 2)
        assert saved.has_stopped(records[11].hash, 10)
        assert not saved.has_stopped(records[10].hash, 9)


def test_a_vote_key_is_one_for_each_attempt_and_step() -> None:
    votes = [stored_vote(attempt=a, step=s) for a in (0, 1) for s in (Step.PREVOTE, Step.PRECOMMIT)]
    assert len({key for vote in votes for key in keys.vote_updates(vote)}) == 4


def test_the_record_whose_state_was_fetched_is_remembered() -> None:
    assert restored().past.floor == -1
    assert restored(keys.floor_updates(7)).past.floor == 7
    with pytest.raises(InputFileError, match="damaged"):
        keys.restore({"floor": pack("seven")}, GENESIS, open_rounds=2)
