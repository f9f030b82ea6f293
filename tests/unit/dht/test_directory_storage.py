"""What a node holds for others in the directory is bounded, whoever hands it what."""

from __future__ import annotations

import pytest

from runnel.clock import SystemClock

pytest.importorskip("hivemind", reason="there is no daemon on this platform")

from hivemind.dht.routing import DHTID

from runnel.dht.hivemind.storage import BoundedStorage

SOON_S = 300.0


def later(seconds: float = SOON_S) -> float:
    return SystemClock().unix_s() + seconds


def key_of(number: int) -> DHTID:
    return DHTID.generate(f"key {number}")


def test_a_key_takes_no_more_than_its_number_of_authors_and_those_may_renew() -> None:
    storage = BoundedStorage(max_authors=3)
    taken = [storage.store_subkey(key_of(0), bytes([n]), b"first", later()) for n in range(5)]
    assert taken == [True, True, True, False, False]
    assert storage.store_subkey(key_of(0), b"\1", b"second", later(2 * SOON_S))
    held = storage.get(key_of(0)).value
    assert sorted(held.data) == [b"\0", b"\1", b"\2"]
    assert held.get(b"\1").value == b"second"
    assert storage.store_subkey(key_of(1), b"\3", b"elsewhere", later())


def test_all_keys_together_take_no_more_than_their_number_of_records() -> None:
    storage = BoundedStorage(max_records=10)
    taken = [storage.store_subkey(key_of(n), b"author", b"value", later()) for n in range(30)]
    assert sum(taken) == 10
    assert taken[:10] == [True] * 10


def test_what_has_expired_makes_room() -> None:
    storage = BoundedStorage(max_records=2)
    for number in range(2):
        assert storage.store_subkey(key_of(number), b"author", b"value", later())
    assert not storage.store_subkey(key_of(2), b"author", b"value", later())
    for number in range(2):
        del storage[key_of(number)]
    tried = [storage.store_subkey(key_of(2), b"author", b"value", later()) for _ in range(300)]
    assert any(tried)


def test_renewing_again_and_again_takes_no_more_room() -> None:
    storage = BoundedStorage()
    for turn in range(2_000):
        assert storage.store_subkey(key_of(0), b"author", b"value", later(SOON_S + turn / 1000))
    held = storage.get(key_of(0)).value
    assert len(held.data) == 1
    assert len(held.expiration_heap) < 100
    assert len(storage.expiration_heap) < 100
