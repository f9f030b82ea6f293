"""Between two threads: nothing is lost, the order of merges is kept, and waiting ends."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from runnel.errors import StorageError
from runnel.node.actions import RoundKey, WantHandover
from runnel.node.mailbox import ChainView, DecidedMerge, HandedOver, Mailbox
from runnel.optim.store import Merge
from runnel.types import Digest

BASE = Digest(bytes(32))
SOON_S = 20.0


def want(number: int, *, urgent: bool = False) -> WantHandover:
    return WantHandover(RoundKey(number, BASE), number % 4, 1, urgent)


def decided(number: int) -> DecidedMerge:
    zeros = np.zeros(3, dtype=np.float32)
    return DecidedMerge(number, Merge(number % 4, 1, zeros, zeros), included=True)


def handed(request: WantHandover) -> HandedOver:
    return HandedOver(request, np.zeros(3, dtype=np.float32), 0, 1, 1, 0.5)


def mailbox() -> Mailbox:
    return Mailbox(lambda _: None)


def test_requests_come_lowest_round_first() -> None:
    box = mailbox()
    for number in (5, 3, 4):
        box.want(want(number))
    assert [request.key.number for request in box.wants()] == [3, 4, 5]


def test_a_request_becomes_urgent_and_stays_so() -> None:
    box = mailbox()
    box.want(want(3))
    box.want(want(3, urgent=True))
    box.want(want(3))
    assert [request.urgent for request in box.wants()] == [True]


def test_merges_of_a_trainer_that_takes_none_are_summed_up() -> None:
    box = mailbox()
    for number in range(1000):
        delta = np.full(3, 1, dtype=np.float32)
        merge = Merge(number % 4, number // 4 + 1, delta, np.full(3, number, dtype=np.float32))
        box.deliver(DecidedMerge(number, merge, included=number < 2))
    merges = box.take_merges(lambda _: True)
    assert len(merges) <= 8
    assert sum(float(waiting.merge.delta[0]) for waiting in merges) == 1000
    newest = {waiting.merge.fragment: waiting.merge for waiting in merges}
    assert {f: merge.version for f, merge in newest.items()} == dict.fromkeys(range(4), 250)
    assert {f: merge.parameters[0] for f, merge in newest.items()} == {f: 996 + f for f in range(4)}
    assert [waiting.number for waiting in merges if waiting.included] == [0, 1]


def test_a_start_that_is_summed_up_with_a_round_counts_as_that_round() -> None:
    box = mailbox()
    for number in range(8):
        box.deliver(decided(number))
    ones = np.ones(3, dtype=np.float32)
    start = DecidedMerge(8, Merge(4, 1, ones, ones), included=False, starts=True)
    box.deliver(start)
    box.deliver(DecidedMerge(8, Merge(4, 2, ones, ones), included=False, tokens=-5))
    last = box.take_merges(lambda _: True)[-1]
    assert (last.starts, last.tokens, last.merge.version) == (False, -5, 2)
    assert last.merge.delta.tolist() == [2, 2, 2]


def test_a_share_that_was_included_is_told_by_itself() -> None:
    box = mailbox()
    for number in range(40):
        box.deliver(decided(number))
    assert [merge.number for merge in box.take_merges(lambda _: True)] == list(range(40))


def test_an_answered_request_is_gone_and_the_answer_is_passed_on() -> None:
    answers: list[HandedOver] = []
    box = Mailbox(answers.append)
    box.want(want(3))
    box.want(want(4))
    box.hand_over(handed(box.wants()[0]))
    assert [request.key.number for request in box.wants()] == [4]
    assert [answer.want.key.number for answer in answers] == [3]


def test_requests_of_rounds_that_are_not_open_are_withdrawn() -> None:
    box = mailbox()
    for number in (3, 4):
        box.want(want(number))
    box.withdraw(lambda key: key.number == 4)
    assert [request.key.number for request in box.wants()] == [4]


def test_a_merge_that_is_not_ready_holds_back_those_after_it() -> None:
    box = mailbox()
    for number in (1, 2, 3):
        box.deliver(decided(number))
    assert [merge.number for merge in box.take_merges(lambda m: m.number != 2)] == [1]
    assert [merge.number for merge in box.take_merges(lambda _: True)] == [2, 3]
    assert box.take_merges(lambda _: True) == ()


def test_the_chain_is_replaced_as_a_whole() -> None:
    box = mailbox()
    assert box.chain.number == -1
    box.tell(ChainView(number=7, progress=0.5))
    assert (box.chain.number, box.chain.progress) == (7, 0.5)


def test_waiting_ends_when_the_other_thread_brings_what_was_waited_for() -> None:
    box = mailbox()
    waiting = threading.Event()

    def bring() -> None:
        assert waiting.wait(SOON_S)
        box.tell(ChainView(number=1))

    thread = threading.Thread(target=bring)
    thread.start()

    def arrived() -> bool:
        waiting.set()
        return box.chain.number == 1

    assert box.wait(arrived, SOON_S)
    thread.join()


def test_waiting_ends_without_it_when_the_time_is_over() -> None:
    assert not mailbox().wait(lambda: False, 0.0)


def test_a_failure_ends_the_waiting_and_is_raised_at_the_next_step() -> None:
    box = mailbox()
    box.check()
    box.fail(StorageError("the disk is full"))
    assert not box.wait(lambda: False, SOON_S)
    with pytest.raises(StorageError, match="the disk is full"):
        box.check()


def test_the_first_failure_is_the_one_that_is_told() -> None:
    box = mailbox()
    box.fail(StorageError("the disk is full"))
    box.fail(RuntimeError("closed"))
    with pytest.raises(StorageError):
        box.check()
