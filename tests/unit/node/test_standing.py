"""Who sends too much is read more slowly, who sends rubbish is not read for a while."""

from __future__ import annotations

from runnel.dht.identity import null_peer_id
from runnel.node.standing import (
    BAD_RATE,
    MEMBER_RATE,
    REPORT_S,
    SHUT_OUT_S,
    STRANGER_RATE,
    Standing,
)

MEMBER, STRANGER = null_peer_id(1), null_peer_id(2)


def standing() -> Standing:
    return Standing(lambda peer: peer == MEMBER)


def test_members_may_send_more_than_strangers() -> None:
    books = standing()
    many = int(STRANGER_RATE.burst) + 100
    assert books.received(MEMBER, many, 0.0) == 0
    assert books.received(STRANGER, many, 0.0) == 100 / STRANGER_RATE.per_s
    assert books.received(MEMBER, int(MEMBER_RATE.burst), 0.0) > 0


def test_a_few_bad_messages_are_forgiven_and_many_shut_their_sender_out() -> None:
    books = standing()
    for _ in range(int(BAD_RATE.burst)):
        books.refused(STRANGER, "malformed", 0.0)
    assert not books.is_shut_out(STRANGER, 0.0)
    books.refused(STRANGER, "malformed", 0.0)
    assert books.is_shut_out(STRANGER, 0.0)
    assert books.is_shut_out(STRANGER, SHUT_OUT_S - 0.1)
    assert not books.is_shut_out(STRANGER, SHUT_OUT_S)
    assert not books.is_shut_out(MEMBER, 0.0)


def test_bad_messages_now_and_then_never_shut_out() -> None:
    books = standing()
    for number in range(500):
        now = number / BAD_RATE.per_s
        books.refused(STRANGER, "malformed", now)
        assert not books.is_shut_out(STRANGER, now)


def test_refusals_are_told_of_by_sender_and_reason_and_not_one_by_one() -> None:
    books = standing()
    for reason in ("malformed", "signature", "malformed"):
        books.refused(STRANGER, reason, 100.0)
    books.refused(MEMBER, "malformed", 100.0)
    assert sorted(books.reports(100.0)) == sorted(
        [(STRANGER, "malformed", 2), (STRANGER, "signature", 1), (MEMBER, "malformed", 1)]
    )
    books.refused(MEMBER, "malformed", 101.0)
    assert books.reports(100.0 + REPORT_S - 0.1) == []
    assert books.reports(100.0 + REPORT_S) == [(MEMBER, "malformed", 1)]
    assert books.reports(999.0) == []


def test_a_flood_from_many_strangers_fills_no_memory() -> None:
    books = standing()
    for number in range(5000):
        for _ in range(25):
            books.refused(null_peer_id(number), f"reason {number}", 0.0)
    assert len(books.reports(0.0)) <= 64
    assert sum(books.is_shut_out(null_peer_id(number), 0.0) for number in range(5000)) <= 1024
