"""Records in memory: the newest of each author, for as long as they live, and not too many."""

from __future__ import annotations

import asyncio

import pytest

from runnel.clock import ManualClock
from runnel.dht import record_shelf
from runnel.dht.identity import null_peer_id
from runnel.dht.record_shelf import MAX_RECORDS_PER_AUTHOR, Found, RecordShelf, merge
from runnel.dht.records import Record
from runnel.dht.wire import pack

KEY = b"k" * 20
NOW_S = 1000.0


def record(number: int, value: bytes = b"v", *, key: bytes = KEY, lives_s: float = 10.0) -> Record:
    return Record(key, pack(null_peer_id(number)), value, NOW_S + lives_s)


def hold(shelf: RecordShelf, wanted: Record) -> bool:
    return asyncio.run(shelf.hold(wanted, deadline=0.0))  # noqa: TID251 - nothing here waits


def held(shelf: RecordShelf, key: bytes = KEY) -> Found:
    return asyncio.run(shelf.held(key, deadline=0.0))  # noqa: TID251 - nothing here waits


def test_each_author_has_one_record_under_a_key_the_one_that_lives_longest() -> None:
    shelf = RecordShelf(ManualClock(unix_s=NOW_S))
    for number, value, lives_s in (
        (1, b"a", 10.0),
        (2, b"b", 10.0),
        (1, b"c", 11.0),
        (1, b"d", 9.0),
    ):
        assert hold(shelf, record(number, value, lives_s=lives_s))
    assert held(shelf) == {
        null_peer_id(1): (b"c", NOW_S + 11.0),
        null_peer_id(2): (b"b", NOW_S + 10.0),
    }
    assert held(shelf, b"o" * 20) == {}


def test_what_has_expired_is_neither_taken_nor_given_and_its_place_is_free() -> None:
    clock = ManualClock(unix_s=NOW_S)
    shelf = RecordShelf(clock)
    assert not hold(shelf, record(1, lives_s=0.0))
    for number in range(MAX_RECORDS_PER_AUTHOR):
        assert hold(shelf, record(1, key=bytes([number]) * 20))
    clock.advance(10.0)
    assert held(shelf, bytes(20)) == {}
    assert hold(shelf, record(1, lives_s=20.0))
    assert len(shelf) == 1


def test_one_author_takes_no_more_than_its_places() -> None:
    shelf = RecordShelf(ManualClock(unix_s=NOW_S))
    taken = [hold(shelf, record(1, key=bytes([number]) * 20)) for number in range(20)]
    assert taken == [number < MAX_RECORDS_PER_AUTHOR for number in range(20)]
    assert hold(shelf, record(1, key=bytes(20), lives_s=99.0)), "a newer one in an old place"
    assert hold(shelf, record(2)), "others are not concerned"


def test_a_full_shelf_drops_what_would_expire_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_shelf, "MAX_RECORDS", 3)
    shelf = RecordShelf(ManualClock(unix_s=NOW_S))
    for number, lives_s in ((1, 30.0), (2, 10.0), (3, 20.0), (4, 15.0)):
        assert hold(shelf, record(number, lives_s=lives_s))
    assert set(held(shelf)) == {null_peer_id(1), null_peer_id(3), null_peer_id(4)}


def test_merging_keeps_the_record_of_each_author_that_expires_last() -> None:
    a, b = null_peer_id(1), null_peer_id(2)
    found = {a: (b"old", 1.0)}
    merge(found, {a: (b"new", 2.0), b: (b"b", 1.0)})
    merge(found, {a: (b"older", 0.5)})
    assert found == {a: (b"new", 2.0), b: (b"b", 1.0)}
