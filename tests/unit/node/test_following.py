"""Following the chain: asking, checking what comes, choosing a path, fetching what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from runnel.dht.identity import null_peer_id
from runnel.errors import PeerError
from runnel.node import following
from runnel.node.actions import Fetch, Send
from runnel.node.chain import Chain
from runnel.node.membership import JOIN_LAG
from runnel.node.messages import (
    MAX_MESSAGE_BYTES,
    Hello,
    Join,
    Leave,
    Records,
    WantRecords,
    encode,
)
from runnel.node.protocol_state import FETCH_AGAIN_S, ProtocolState
from runnel.node.records import Record, RecordKind, Share, SliceResult
from runnel.types import Digest, PeerId
from tests.support.members import PEERS, RUN, certificate, following_record, name
from tests.support.states import (
    GENESIS,
    ME,
    OTHER,
    STALL_S,
    STRANGER,
    THIRD,
    branch_after,
    grown,
    messages,
    path_of,
    result_record,
    state_of,
    take,
    told,
)

# -- greeting


def test_a_member_says_hello_and_no_more() -> None:
    (hello,) = following.greet(state_of(), 1.0)
    assert hello == Send(Hello(GENESIS.hash, -1))


def test_a_stranger_asks_to_join_and_a_leaver_says_goodbye() -> None:
    stranger, leaver = state_of(me=STRANGER), state_of()
    leaver.members.leaving = True
    assert messages(following.greet(stranger, 1.0)) == [
        Hello(GENESIS.hash, -1),
        Join(b"ticket", GENESIS.hash, -1),
    ]
    assert isinstance(messages(following.greet(leaver, 1.0))[1], Leave)


def test_a_member_of_many_greets_more_rarely_but_wishes_are_said_each_second() -> None:
    view = tuple(map(null_peer_id, range(100, 124)))
    crowd = replace(GENESIS, view=view)

    def greets(me: PeerId, now: float, *, leaving: bool = False) -> bool:
        state = state_of(Chain(crowd, open_rounds=2), me=me)
        state.members.leaving = leaving
        state.pulse.hello = 10.0
        return bool(following.greet_if_due(state, now))

    assert greets(view[0], 13.1)
    assert not greets(view[0], 12.9)
    assert greets(view[0], 11.1, leaving=True)
    assert greets(STRANGER, 11.1)
    assert not greets(STRANGER, 10.9)


def test_who_asks_to_join_needs_a_ticket_and_our_chain() -> None:
    state = grown(state_of(), JOIN_LAG + 3)
    chain = state.chain
    following.on_join(state, STRANGER, Join(b"ticket", chain.path[-2], chain.number - 1), 1.0)
    assert [j.peer for j in state.members.joins(chain.head.view, 1.0)] == [STRANGER]
    following.on_join(state, PEERS[7], Join(b"ticket", chain.path[1], 0), 1.0)
    following.on_join(state, PEERS[7], Join(b"ticket", name("?"), chain.number), 1.0)
    assert [j.peer for j in state.members.joins(chain.head.view, 1.0)] == [STRANGER]
    with pytest.raises(PeerError, match="ticket"):
        following.on_join(state, PEERS[7], Join(b"forged", chain.path[-1], chain.number), 1.0)


# -- asking


def asked(state: ProtocolState, sender: PeerId, head: Digest, number: int, now: float) -> bool:
    actions = following.on_hello(state, sender, Hello(head, number), now)
    assert all(isinstance(a, Send) and a.to == sender for a in actions)
    return bool(actions)


def test_a_head_we_follow_or_want_is_not_asked_for() -> None:
    state = grown(state_of(), 2)
    assert not asked(state, OTHER, path_of(state)[1], 0, 1.0)
    ahead = following_record(state.chain.head)
    take(state, told(ahead))
    assert not asked(state, OTHER, ahead.hash, 2, 1.0)


def test_an_unknown_head_is_asked_for_at_most_twice_a_second_from_each_peer() -> None:
    state = state_of()
    assert asked(state, OTHER, name("x"), 5, 1.0)
    assert not asked(state, OTHER, name("x"), 5, 1.4)
    assert asked(state, THIRD, name("x"), 5, 1.4)
    assert asked(state, OTHER, name("x"), 5, 1.6)


def test_a_shorter_path_is_asked_for_too_it_may_be_the_better_one() -> None:
    assert asked(grown(state_of(), 5), OTHER, name("x"), 2, 1.0)


def test_a_known_path_that_we_do_not_prefer_is_asked_for_now_and_then() -> None:
    state = grown(state_of(), 1)
    worse = following_record(GENESIS, view=PEERS[:2])
    state.chain.add(worse)
    assert asked(state, OTHER, worse.hash, 0, 1.0)
    assert not asked(state, OTHER, worse.hash, 0, 5.0)
    assert asked(state, OTHER, worse.hash, 0, 6.1)


def test_a_known_path_that_has_become_better_is_wanted_at_once() -> None:
    state = grown(state_of(), 1)
    other = following_record(GENESIS, view=PEERS[:2])
    state.chain.add(other, certificate(other, PEERS[:2], attempt=3))
    asked(state, OTHER, other.hash, 0, 1.0)
    assert state.target == [GENESIS.hash, other.hash]


# -- answering


def test_the_answer_starts_after_what_is_shared() -> None:
    ours, theirs = grown(state_of(), 6), grown(state_of(), 2)
    (answer,) = following.on_want_records(ours, OTHER, WantRecords(theirs.chain.locator()), 1.0)
    assert isinstance(answer, Send)
    assert isinstance(answer.message, Records)
    assert [r.number for r in answer.message.records] == [2, 3, 4, 5]
    assert following.on_want_records(ours, OTHER, WantRecords(ours.chain.locator()), 1.0) == []


def test_an_answer_fits_a_message_however_large_the_swarm_is() -> None:
    many = tuple(PeerId(bytes([i]) * 38) for i in range(64))
    shares = tuple(Share(p, name("c"), 1) for p in many)
    pieces = tuple(SliceResult(name(f"{p!r}"), p, tuple(range(64))) for p in many)
    chain = Chain(GENESIS, open_rounds=2)
    for _ in range(64):
        plain = following_record(chain.head, RecordKind.ROUND, view=many)
        record = replace(plain, shares=shares, slices=pieces)
        chain.follow([*chain.path, chain.add(record, certificate(record, many[:33]))])
    answer = following.records_after(chain, [GENESIS.hash])
    assert 1 < len(answer.records) < 64
    assert len(encode(RUN, answer)) <= MAX_MESSAGE_BYTES


# -- the way there


def fetched(state: ProtocolState, now: float) -> tuple[list[Digest], Sequence[Digest]]:
    actions, path = following.next_step(state, now)
    return [a.root for a in actions if isinstance(a, Fetch)], path


def test_results_of_a_few_bytes_are_followed_together_as_far_as_they_are_here() -> None:
    state = state_of()
    state.settings = replace(state.settings, carries=lambda _: "")
    records = [result_record(GENESIS, "0")]
    for number in range(1, 20):
        records.append(result_record(records[-1], str(number)))
    take(state, told(*records))
    assert len(fetched(state, 1.0)[0]) == 16
    for number in (0, 1, 2, 4):
        state.held[name(str(number))] = number
    assert fetched(state, 2.0) == ([], [GENESIS.hash, *(one.hash for one in records[:3])])


def test_results_are_fetched_ahead_once_and_followed_in_order() -> None:
    state = state_of()
    first = result_record(GENESIS, "one")
    second = result_record(first, "two")
    take(state, told(first, second))
    assert fetched(state, 1.0) == ([name("one"), name("two")], [])
    assert fetched(state, 2.0) == ([], [])
    assert fetched(state, 1.0 + FETCH_AGAIN_S) == ([name("one"), name("two")], [])
    state.held[name("two")] = 1
    assert fetched(state, 3.0)[1] == []
    state.held[name("one")] = 0
    assert fetched(state, 3.0)[1] == [GENESIS.hash, first.hash]


def test_a_peer_does_not_ask_itself() -> None:
    state = state_of(me=OTHER)
    (fetch,) = state.fetch(name("r"), (OTHER, ME, OTHER, ME), 1.0, size_bytes=5)
    assert fetch == Fetch(name("r"), 5, (ME,))


def test_a_path_that_is_no_longer_better_is_dropped() -> None:
    state = state_of()
    take(state, told(result_record(GENESIS, "one")))
    better = following_record(GENESIS)
    proof = certificate(better, PEERS[:2], attempt=4)
    state.chain.follow([GENESIS.hash, state.chain.add(better, proof)])
    assert fetched(state, 1.0) == ([], [])
    assert state.target == []


def two_paths() -> tuple[ProtocolState, Record, Records]:
    """A state that waits for the result of a certified record, and a branch beside it."""
    state = state_of()
    wanted = result_record(GENESIS, "gone")
    take(state, told(wanted), 1.0)
    fetched(state, 1.0)
    branch, proof = branch_after(GENESIS, (OTHER, THIRD))
    return state, wanted, told(branch, proofs=[proof])


def test_the_better_path_is_waited_for_while_its_results_may_come() -> None:
    state, wanted, beside = two_paths()
    take(state, beside, STALL_S)
    assert state.target[-1] == wanted.hash


def test_another_path_will_do_once_nobody_seems_to_have_the_better_ones_results() -> None:
    state, wanted, beside = two_paths()
    take(state, beside, 1.0 + STALL_S + 0.1)
    assert state.target[-1] == beside.records[0].hash
    state.chain.follow(state.target)
    following.on_hello(state, THIRD, Hello(wanted.hash, 0), 60.0)
    assert state.target[-1] == wanted.hash, "whoever has them says hello from there"


def test_a_state_fetched_whole_is_a_step_without_results() -> None:
    state = state_of()
    first = result_record(GENESIS, "one")
    second = result_record(first, "two")
    take(state, told(first, second))
    state.pursuit.landing = list(state.target)
    assert fetched(state, 1.0)[1] == [GENESIS.hash, first.hash, second.hash]
