from __future__ import annotations

from runnel.dht.traffic import ByteCounter


def test_bytes_are_kept_apart_by_purpose_and_direction() -> None:
    counter = ByteCounter()
    counter.add_sent("scatter", 10)
    counter.add_sent("scatter", 5)
    counter.add_received("gather", 7)
    assert (counter.sent("scatter"), counter.sent("gather"), counter.sent()) == (15, 0, 15)
    assert (counter.received("scatter"), counter.received("gather")) == (0, 7)
    assert counter.received() == 7
    assert list(counter.purposes()) == ["gather", "scatter"]


def test_an_empty_ledger_has_no_purposes() -> None:
    counter = ByteCounter()
    assert counter.sent() == counter.received() == counter.sent("anything") == 0
    assert list(counter.purposes()) == []
