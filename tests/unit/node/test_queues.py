"""What waits to be sent or carried out is bounded, and what is dropped is the oldest."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.dht.identity import null_peer_id
from runnel.dht.virtual_loop import run_virtual
from runnel.node.action_queue import MAX_WAITING, ActionQueue
from runnel.node.actions import Adopt, Send
from runnel.node.chain import Fork
from runnel.node.message_types import Leave
from runnel.node.outboxes import MAX_BYTES, MAX_MESSAGES, MAX_TOTAL_BYTES, Outboxes

SIZES = (1, 100, 5000, 900_000)
LARGEST = 900_000
STEP = Adopt(Fork((), ()), (), {})
SAY = Send(Leave())


@settings(max_examples=50, deadline=None)
@given(
    given_=st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from(SIZES), st.booleans()), max_size=500
    )
)
def test_whatever_is_sent_to_whomever_what_waits_is_bounded(
    given_: list[tuple[int, int, bool]],
) -> None:
    boxes, last = Outboxes(), {}
    for number, size, read in given_:
        peer, data = null_peer_id(number), bytes(size)
        boxes.put(peer, data)
        last[peer] = data
        assert boxes.total_bytes <= MAX_TOTAL_BYTES
        if read:
            boxes.take(peer)
    for peer, box in boxes._boxes.items():
        assert len(box) <= MAX_MESSAGES
        assert boxes._sizes[peer] == sum(map(len, box)) <= max(MAX_BYTES, LARGEST)
    assert boxes.total_bytes == sum(boxes._sizes.values())


def test_the_oldest_message_makes_way_and_a_frame_holds_what_fits() -> None:
    boxes, peer = Outboxes(), null_peer_id(1)
    for number in range(MAX_MESSAGES + 5):
        boxes.put(peer, number.to_bytes(2, "big"))
    batch = boxes.take(peer)
    assert (len(batch), batch[0], boxes.waiting(peer)) == (MAX_MESSAGES, b"\x00\x05", False)
    for _ in range(10):
        boxes.put(peer, bytes(LARGEST))
    assert boxes.total_bytes == MAX_BYTES // LARGEST * LARGEST
    assert len(boxes.take(peer)) == 1


def test_who_does_not_read_large_answers_leaves_room_for_the_others() -> None:
    boxes, small, data = Outboxes(), null_peer_id(0), bytes(LARGEST)
    boxes.put(small, b"vote")
    for number in range(1, 100):
        for _ in range(4):
            boxes.put(null_peer_id(number), data)
    total_bytes = boxes.total_bytes  # by itself: who fails is shown without what the boxes hold
    assert total_bytes <= MAX_TOTAL_BYTES
    assert boxes.take(small) == [b"vote"]


def test_actions_are_taken_out_up_to_each_step_of_the_chain() -> None:
    queue = ActionQueue()
    queue.post([SAY, SAY, STEP, SAY])
    assert queue.step() is None
    assert queue.stretch() == [SAY, SAY]
    assert queue.stretch() == []
    assert queue.step() is STEP
    assert queue.stretch() == [SAY]
    assert len(queue) == 0


def test_a_full_queue_asks_for_no_more_until_half_of_it_is_done() -> None:
    async def main() -> None:
        queue = ActionQueue()
        queue.post([*[SAY] * (MAX_WAITING // 4), STEP, *[SAY] * MAX_WAITING])
        waiting = asyncio.get_running_loop().create_task(queue.room())
        await asyncio.sleep(1)
        assert queue.is_full
        queue.stretch()
        queue.step()
        await asyncio.sleep(1)
        assert not waiting.done()
        queue.stretch()
        await asyncio.sleep(1)
        assert waiting.done()
        assert not queue.is_full

    run_virtual(main)


def test_whoever_waits_for_actions_is_woken_by_the_first() -> None:
    async def main() -> None:
        queue = ActionQueue()
        waiting = asyncio.get_running_loop().create_task(queue.wait())
        await asyncio.sleep(1)
        assert not waiting.done()
        queue.post([])
        await asyncio.sleep(1)
        assert not waiting.done()
        queue.post([SAY])
        await asyncio.sleep(1)
        assert waiting.done()

    run_virtual(main)
