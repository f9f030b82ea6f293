"""Slots for transfers: in order, fewer when slow, never leaked."""

from __future__ import annotations

import asyncio

import pytest

from runnel.dht.virtual_loop import run_virtual
from runnel.node.slots import Slots


async def use(slots: Slots, order: list[int], number: int, busy_s: float = 1.0) -> None:
    async with slots.slot():
        order.append(number)
        await asyncio.sleep(busy_s)


def test_slots_are_given_in_order_and_no_more_than_there_are() -> None:
    async def main() -> None:
        slots, order = Slots(2), list[int]()
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(use(slots, order, number))
        assert order == list(range(6))
        assert loop.time() - began == pytest.approx(3.0)

    run_virtual(main)


def test_slow_transfers_halve_them_and_those_in_time_bring_them_back_one_by_one() -> None:
    slots = Slots(8)
    widths = []
    for _ in range(5):
        slots.too_slow()
        widths.append(slots.width)
    assert widths == [4, 2, 1, 1, 1]
    for _ in range(3):
        slots.in_time()
    assert slots.width == 2
    for _ in range(100):
        slots.in_time()
    assert slots.width == 8


def test_fewer_slots_hold_for_those_who_wait() -> None:
    async def main() -> None:
        slots, order = Slots(4), list[int]()
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(use(slots, order, number))
            await asyncio.sleep(0.5)
            slots.too_slow()
            slots.too_slow()
            began = loop.time()
        assert order == list(range(8))
        assert loop.time() - began == pytest.approx(4.5)

    run_virtual(main)


def test_who_gives_up_waiting_takes_no_slot_along() -> None:
    async def main() -> None:
        slots, order = Slots(1), list[int]()
        async with asyncio.TaskGroup() as group:
            group.create_task(use(slots, order, 0))
            await asyncio.sleep(0)
            second = group.create_task(use(slots, order, 1))
            group.create_task(use(slots, order, 2))
            await asyncio.sleep(0.1)
            second.cancel()
        assert order == [0, 2]

    run_virtual(main)
