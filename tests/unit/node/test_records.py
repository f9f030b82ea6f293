"""Commitments and records: canonical, named by content, and bounded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.dht.wire import pack, unpack
from runnel.errors import PeerError
from runnel.hashing import digest
from runnel.node.fields import blob, digest_of, integer, items, number_of, peer_id, row
from runnel.node.outcomes import genesis_record
from runnel.node.records import (
    FULL_PROGRESS,
    Commitment,
    Record,
    RecordKind,
    SliceResult,
    set_value,
    vote_from_wire,
    vote_to_wire,
)
from tests.support.members import PEERS, RUN, commitment, name
from tests.support.wire_samples import COMMITMENTS, LOCK, RECORD


def through_the_wire(fields: list[Any]) -> Any:
    return unpack(pack(fields), max_bytes=1 << 20)


def test_a_record_survives_the_wire_with_its_name() -> None:
    again = Record.from_wire(through_the_wire(RECORD.to_wire()))
    assert again == RECORD
    assert again.hash == RECORD.hash == digest(pack(RECORD.to_wire()))


def test_a_commitment_survives_the_wire_with_its_name() -> None:
    again = Commitment.from_wire(through_the_wire(COMMITMENTS[0].to_wire()))
    assert again == COMMITMENTS[0]
    assert again.id == COMMITMENTS[0].id


def test_a_vote_survives_the_wire() -> None:
    assert vote_from_wire(through_the_wire(vote_to_wire(LOCK.proof[0]))) == LOCK.proof[0]


@pytest.mark.parametrize(
    "change",
    [
        {"number": 8},
        {"parent": name("other")},
        {"kind": RecordKind.ABORT},
        {"shares": ()},
        {"slices": ()},
        {"state_root": name("other")},
        {"view": PEERS[:2]},
        {"unproven": ()},
        {"tokens": 1},
        {"progress": 1},
        {"finished": ()},
        {"listed": 1},
        {"nonce": b"n"},
    ],
)
def test_every_field_is_in_a_records_name(change: dict[str, Any]) -> None:
    assert replace(RECORD, **change).hash != RECORD.hash


def test_a_commitments_name_and_statement_cover_all_but_its_signature() -> None:
    first = COMMITMENTS[0]
    resigned = replace(first, signature=b"other")
    assert resigned.id == first.id
    assert resigned.statement(RUN) == first.statement(RUN)
    assert first.statement(RUN) != first.statement(name("other run"))
    for change in ({"tokens": 11}, {"slice_norms": (2.0,)}, {"joins": ()}, {"loss": 0.25}):
        assert replace(first, **change).id != first.id


def test_a_set_is_named_by_its_commitments_in_order() -> None:
    names = [c.id for c in COMMITMENTS]
    assert set_value(names) != set_value(names[::-1]) != set_value(names[:1])


def test_a_contributor_is_in_at_least_one_slice() -> None:
    assert RECORD.contributors == PEERS[:2]
    only_second = replace(RECORD, slices=(replace(RECORD.slices[0], included=(1,)),))
    assert only_second.contributors == (PEERS[1],)
    assert [RECORD.share_of(p) for p in PEERS[:3]] == [0, 1, -1]


def test_a_record_closes_the_run_at_full_progress() -> None:
    assert replace(RECORD, progress=FULL_PROGRESS).closing
    assert not replace(RECORD, progress=FULL_PROGRESS - 1).closing


def test_genesis_sorts_its_members() -> None:
    assert genesis_record(PEERS[2::-1], name("s")) == genesis_record(PEERS[:3], name("s"))


@settings(max_examples=300)
@given(
    st.integers(0, 12), st.none() | st.integers() | st.binary(max_size=40) | st.lists(st.integers())
)
def test_a_record_with_a_foreign_field_is_refused_or_canonical(place: int, value: Any) -> None:
    fields = RECORD.to_wire()
    fields[place] = value
    try:
        record = Record.from_wire(fields)
    except PeerError:
        return
    assert record.to_wire() == fields


@settings(max_examples=300)
@given(st.integers(0, 12), st.none() | st.floats() | st.binary(max_size=70) | st.lists(st.floats()))
def test_a_commitment_with_a_foreign_field_is_refused_or_canonical(place: int, value: Any) -> None:
    fields = commitment(PEERS[0], 1, name("base")).to_wire()
    fields[place] = value
    try:
        read = Commitment.from_wire(fields)
    except PeerError:
        return
    assert read.to_wire() == fields


def test_results_name_their_senders_once_and_in_order() -> None:
    fine = [name("r"), PEERS[0], [0, 2, 63]]
    assert SliceResult.from_wire(fine).included == (0, 2, 63)
    for included in ([], [1, 0], [1, 1], [-1], [64], [1.0], "01", [True]):
        with pytest.raises(PeerError):
            SliceResult.from_wire([name("r"), PEERS[0], included])


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (lambda v: row(v, 2), [1, 2], [[1], (1, 2), None, "ab"]),
        (items, [1], [[0] * 65, (1,), None]),
        (integer, 0, [-1, 1 << 62, True, 1.0, "1", None]),
        (number_of, -1.5, [1, float("nan"), float("inf"), float("-inf"), None]),
        (lambda v: blob(v, 3), b"abc", [b"abcd", bytearray(b"a"), "a", None]),
        (digest_of, bytes(32), [b"", bytes(31), bytes(33), None]),
        (peer_id, PEERS[0], [b"", bytes(37), bytes(39), None]),
    ],
)
def test_a_field_is_what_it_should_be_or_refused(read: Any, good: Any, bad: list[Any]) -> None:
    assert read(good) == good
    for value in bad:
        with pytest.raises(PeerError):
            read(value)
