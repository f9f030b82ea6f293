"""Who is heard, who wants in or out, and the next view."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from runnel.dht.identity import null_peer_id
from runnel.node.membership import (
    ABSENT_ROUNDS,
    ABSENT_S,
    PROBATION_ROUNDS,
    PROBATION_S,
    WISH_S,
    Membership,
    greeting_s,
    next_members,
)
from runnel.node.records import MAX_MEMBERS, Commitment, Record
from runnel.types import PeerId
from tests.support.members import PEERS, commitment, following_record, genesis, name

A, B, C, D, E = PEERS[:5]


def parent(members: int, unproven: tuple[PeerId, ...] = ()) -> Record:
    view = PEERS[:members]
    return following_record(genesis(members), view=view, unproven=unproven)


def said(
    peers: Iterable[PeerId],
    *,
    joins: Iterable[PeerId] = (),
    leaves: Iterable[PeerId] = (),
    unheard: Iterable[PeerId] = (),
) -> list[Commitment]:
    """One commitment of each of `peers`, all of which say the same."""
    wanted, gone, silent = tuple(joins), tuple(leaves), tuple(unheard)
    return [
        commitment(peer, 1, name("base"), joins=wanted, leaves=gone, unheard=silent)
        for peer in peers
    ]


# -- what one peer saw


def test_a_member_is_unheard_after_too_many_rounds_and_too_many_seconds() -> None:
    seen = Membership(A, now=0.0, number=0)
    seen.hear(B, 10.0, 3)
    later, far = 10.0 + ABSENT_S + 1, 3 + ABSENT_ROUNDS + 1
    assert seen.unheard((A, B), (), later, far) == (B,)
    assert seen.unheard((A, B), (), later, far - 1) == ()
    assert seen.unheard((A, B), (), 11.0, far) == ()


def test_a_newcomer_that_contributes_nothing_is_unheard_in_the_end() -> None:
    seen = Membership(A, now=0.0, number=0)
    for number in range(PROBATION_ROUNDS + 1):
        now = number * PROBATION_S
        seen.hear(B, now, number)
        assert seen.unheard((A, B), (B,), now, number) == ()
    number, now = PROBATION_ROUNDS + 1, (PROBATION_ROUNDS + 1) * PROBATION_S
    seen.hear(B, now, number)
    assert seen.unheard((A, B), (B,), now, number) == (B,)
    assert seen.unheard((A, B), (), now, number) == ()  # it contributed: probation is over
    assert seen.unheard((A, B), (B,), now, number) == ()  # and begins anew


def test_who_leaves_may_be_known_from_commitments_alone() -> None:
    seen = Membership(A, now=0.0, number=0)
    seen.hear_of_leavers([B, E], (A, B, C))
    seen.hear_of_leavers([], (A, B, C))
    assert seen.said_goodbye(B)
    assert not seen.said_goodbye(C)
    assert not seen.said_goodbye(E)  # no member: whoever names it, nothing is kept
    assert seen.leaves((A, B, C), 1.0) == ()  # it is not for this peer to repeat
    seen.wish(B, b"ticket", 2.0)
    assert not seen.said_goodbye(B)


def test_who_was_never_heard_counts_from_our_start() -> None:
    seen = Membership(A, now=100.0, number=50)
    assert seen.unheard((A, B), (), 100.0 + ABSENT_S + 1, 51 + ABSENT_ROUNDS) == (B,)
    assert seen.unheard((A, B), (), 101.0, 51 + ABSENT_ROUNDS) == ()
    assert not seen.heard_within(B, 1e9, 101.0)


def test_wishes_and_goodbyes_expire_unless_repeated() -> None:
    seen = Membership(A, now=0.0, number=0)
    seen.wish(C, b"ticket", 0.0)
    seen.goodbye(B, 0.0)
    assert [join.peer for join in seen.joins((A, B), 1.0)] == [C]
    assert seen.leaves((A, B), 1.0) == (B,)
    assert seen.joins((A, B), WISH_S) == ()
    assert seen.leaves((A, B), WISH_S) == ()
    assert seen.said_goodbye(B)


def test_whoever_leaves_right_after_joining_is_not_let_in_again() -> None:
    seen = Membership(A, now=0.0, number=0)
    seen.wish(B, b"ticket", 0.0)
    seen.goodbye(B, 1.0)
    assert seen.joins((A,), 1.0) == ()
    seen.wish(B, b"ticket", 2.0)
    assert [request.peer for request in seen.joins((A,), 2.0)] == [B]
    assert not seen.said_goodbye(B)


def test_only_strangers_join_and_only_members_leave() -> None:
    seen = Membership(A, now=0.0, number=0)
    seen.wish(B, b"ticket", 0.0)
    seen.goodbye(C, 0.0)
    assert seen.joins((A, B), 1.0) == ()
    assert seen.leaves((A, B), 1.0) == ()
    seen.leaving = True
    assert seen.leaves((A, B), 1.0) == (A,)


def test_a_commitment_names_at_most_a_quarter_of_a_full_view() -> None:
    seen = Membership(A, now=0.0, number=0)
    for i in range(MAX_MEMBERS):
        seen.wish(PeerId(bytes([i]) * 38), b"ticket", 0.0)
    assert len(seen.joins((A,), 1.0)) == MAX_MEMBERS // 4


# -- the next view


def test_nothing_said_changes_nothing() -> None:
    assert next_members(parent(3), said([A, B])) == (PEERS[:3], ())


def test_a_newcomer_is_admitted_on_probation() -> None:
    assert next_members(parent(2), said([A], joins=[C])) == (PEERS[:3], (C,))


def test_a_newcomer_proves_itself_by_a_decided_contribution() -> None:
    waiting = parent(3, unproven=(C,))
    assert next_members(waiting, said([A, B])) == (PEERS[:3], (C,))
    assert next_members(waiting, said([A, C])) == (PEERS[:3], ())


def test_nobody_is_admitted_while_another_is_on_probation() -> None:
    assert next_members(parent(3, unproven=(C,)), said([A, B], joins=[D])) == (PEERS[:3], (C,))
    assert next_members(parent(3, unproven=(C,)), said([A, C], joins=[D])) == (PEERS[:4], (D,))


@pytest.mark.parametrize(("members", "admitted"), [(1, 1), (2, 1), (3, 1), (5, 1)])
def test_at_most_a_third_is_admitted_at_once(members: int, admitted: int) -> None:
    view, unproven = next_members(parent(members), said([A], joins=PEERS[members:]))
    assert len(view) == members + admitted
    assert len(unproven) == admitted
    assert set(unproven) <= set(PEERS[members:])


def test_who_is_let_in_first_is_drawn_so_that_nobody_waits_for_ever() -> None:
    first = set()
    for index in range(40):
        record = replace(parent(3), nonce=index.to_bytes(4, "big"))
        first |= set(next_members(record, said([A], joins=PEERS[3:]))[1])
    assert first == set(PEERS[3:])


def test_a_full_view_admits_nobody() -> None:
    assert next_members(parent(3), said([A], joins=[D]), limit=3) == (PEERS[:3], ())


def test_one_word_is_enough_to_leave_and_a_leaver_is_not_let_in_again_at_once() -> None:
    given = [*said([A], leaves=[B]), *said([C], joins=[B])]
    assert next_members(parent(3), given) == ((A, C), ())


@pytest.mark.parametrize(("complaining", "removed"), [(1, False), (2, False), (3, True), (4, True)])
def test_a_member_that_most_of_the_set_does_not_hear_is_removed(
    complaining: int, removed: bool
) -> None:
    given = [*said(PEERS[:complaining], unheard=[E]), *said(PEERS[complaining:4])]
    view, _ = next_members(parent(5), given)
    assert (E not in view) is removed


def test_who_committed_is_heard_whatever_others_say() -> None:
    given = [*said([A, B], unheard=[C]), *said([C])]
    assert next_members(parent(3), given) == (PEERS[:3], ())


def test_a_view_is_never_empty() -> None:
    assert next_members(parent(1), said([A], leaves=[A])) == ((A,), ())


def test_if_no_voter_is_left_those_who_remain_vote() -> None:
    assert next_members(parent(2, unproven=(B,)), said([A], leaves=[A])) == ((B,), ())


def test_a_peer_that_let_a_deadline_pass_without_a_word_is_overdue_until_it_is_heard() -> None:
    members = Membership(A, now=0.0, number=0)
    members.hear(B, 5.0, 0)
    members.missed(B, 4.0, 5.5)  # it said something lately
    assert not members.is_overdue(B)
    members.missed(B, 4.9, 6.0)
    members.missed(A, 5.0, 6.0)
    assert members.is_overdue(B)
    assert not members.is_overdue(A)
    members.hear(B, 7.0, 0)
    assert not members.is_overdue(B)


def test_what_a_member_of_many_hears_in_all_does_not_grow_with_their_number() -> None:
    assert [greeting_s(members) for members in (1, 2, 8, 16, 64)] == [1, 1, 1, 2, 8]


def test_silence_says_less_of_one_of_many() -> None:
    members, often_s = Membership(A, now=0.0, number=0), greeting_s(64)
    members.hear(B, 5.0, 0)
    members.missed(B, 5.0, 5.0 + often_s - 1.1, among=64)  # its next greeting is not due
    assert not members.is_overdue(B)
    members.missed(B, 5.0, 5.0 + often_s, among=64)
    assert members.is_overdue(B)
    view, late, far = tuple(map(null_peer_id, range(64))), 5.0 + ABSENT_S + 1, ABSENT_ROUNDS + 1
    assert B in members.unheard((A, B), (), late, far)
    assert members.unheard((A, B, *view), (), late, far) == ()
    assert B in members.unheard((A, B, *view), (), late * often_s, far)
