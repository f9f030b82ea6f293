from __future__ import annotations

import asyncio

import pytest

from runnel.dht.virtual_loop import VirtualLoop, run_virtual
from runnel.errors import BugError


def test_waiting_takes_virtual_time_only() -> None:
    async def main() -> float:
        await asyncio.sleep(3600 * 24 * 30)
        return asyncio.get_running_loop().time()

    assert run_virtual(main, limit_s=1e9) == pytest.approx(3600 * 24 * 30, abs=1e-6)


def test_timers_fire_in_their_order_at_their_time() -> None:
    async def main() -> list[tuple[float, int]]:
        loop, seen = asyncio.get_running_loop(), []

        async def at(seconds: float, number: int) -> None:
            await asyncio.sleep(seconds)
            seen.append((loop.time(), number))

        async with asyncio.TaskGroup() as group:
            for number, seconds in enumerate((3.5, 0.25, 1000.0, 0.5)):
                group.create_task(at(seconds, number))
        return seen

    assert run_virtual(main) == [(0.25, 1), (0.5, 3), (3.5, 0), (1000.0, 2)]


def test_timeouts_are_exact() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout_at(7.125):
                await asyncio.Event().wait()
        return loop.time()

    assert run_virtual(main) == 7.125


def test_a_deadlock_is_named_with_its_time_and_tasks() -> None:
    async def waits_for_ever() -> None:
        await asyncio.sleep(2.5)
        await asyncio.Event().wait()

    with pytest.raises(BugError, match=r"deadlock at virtual t=2\.500000 s") as caught:
        run_virtual(waits_for_ever)
    assert "waits_for_ever" in str(caught.value)


def test_a_limit_ends_what_never_ends() -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError, match="after 3600 virtual seconds"):
        run_virtual(main, limit_s=3600)


def test_a_timeout_of_the_program_itself_keeps_its_meaning() -> None:
    async def main() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        run_virtual(main)


def test_time_that_stands_still_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runnel.dht.virtual_loop.MAX_TURNS_AT_ONE_TIME", 1000)

    async def main() -> None:
        await asyncio.sleep(1)
        while True:
            await asyncio.sleep(0)

    with pytest.raises(BugError, match=r"livelock at virtual t=1\.0"):
        run_virtual(main)


def test_executors_run_in_place() -> None:
    def fails() -> None:
        raise KeyError("mine")

    async def main() -> int:
        with pytest.raises(KeyError):
            await asyncio.to_thread(fails)
        return await asyncio.to_thread(lambda: 41 + 1)

    assert run_virtual(main) == 42


def test_the_loop_closes_what_it_opened() -> None:
    loop = VirtualLoop()
    assert loop.time() == 0
    loop.close()
    assert loop.is_closed()
