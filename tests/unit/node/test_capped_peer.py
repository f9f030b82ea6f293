"""A peer that may send little: it keeps to that, sends what fits in time, and nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

from runnel.dht.memory import MemoryNetwork, MemoryTransport
from runnel.dht.throttle import Throttle
from runnel.node.link_rate import parse_rate
from runnel.node.manifest import make_spec, parse_overrides
from runnel.node.round_events import RoundCommitted, RoundDecided
from runnel.tools.chaos_ledger import SETTINGS
from runnel.tools.sim_faults import Faults
from runnel.tools.sim_peer import Ground, temporary_folder
from runnel.tools.sim_runtime import SimLoop
from runnel.tools.sim_world import Course, World
from tests.support.uplink import Uplink

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PEERS, CAPPED = 4, 2
CAP = "560 kbit/s"
"""Whole shares and the results for all others take 630, if it never rested."""
MINUTES = 4.0
LAST = 3
"""Rounds at the end, when the time between rounds is known."""


@dataclass
class Run:
    course: Course
    uplinks: list[Uplink]

    def committed(self, peer: int) -> list[RoundCommitted]:
        return [e for p, e in self.course.events if p == peer and isinstance(e, RoundCommitted)]

    def decided(self, peer: int) -> list[RoundDecided]:
        return [e for p, e in self.course.events if p == peer and isinstance(e, RoundDecided)]

    def round_s(self) -> float:
        """From one decision to the next, as peer 0 saw it, once the first ones are over."""
        at = [event.unix_s for event in self.decided(0)][3:]
        return median(b - a for a, b in pairwise(at))


def run(caps: Mapping[int, str]) -> Run:
    uplinks: list[Uplink] = []

    def seen(transport: MemoryTransport) -> MemoryTransport:
        uplinks.append(Uplink(transport))
        return transport

    spec = make_spec(
        parse_overrides(["run.name=capped", "model.kind=custom", *SETTINGS]), source="test"
    )
    with temporary_folder() as folder, asyncio.Runner(loop_factory=SimLoop) as runner:
        ground = Ground(
            loop=runner.get_loop(),  # type: ignore[arg-type]  # the factory's
            network=MemoryNetwork(3),
            folder=Path(folder),
            seed=3,
            cells=PEERS,
            values=1 << 20,
            step_s=2.0,
            wrap=seen,
            caps=caps,
        )
        world = World(ground, spec, Faults())
        course = runner.run(world.run(60 * MINUTES, lambda _: None))
    assert course.agree
    assert course.problems == []
    return Run(course, uplinks)


@pytest.fixture(scope="module")
def capped() -> Run:
    return run({CAPPED: CAP})


def test_in_no_window_more_is_sent_than_the_cap(capped: Run) -> None:
    bits_s = parse_rate("cap", CAP)
    excess = [uplink.excess(bits_s) for uplink in capped.uplinks]
    assert excess[CAPPED] <= Throttle(bits_s).burst_bytes
    assert min(excess[:CAPPED]) > 1_000_000, "others are not held to it"


def test_slices_are_kept_back_and_not_late(capped: Run) -> None:
    decided = {event.round: event for event in capped.decided(CAPPED)}
    shares = [event for event in capped.committed(CAPPED) if event.round in decided][-LAST:]
    assert all(0 < share.withheld < share.slices for share in shares)
    for share in shares:
        assert decided[share.round].included == share.slices - share.withheld
    assert all(event.withheld == 0 for event in capped.committed(0)[-LAST:])


def test_nobody_is_held_up(capped: Run) -> None:
    assert {event.kind for event in capped.decided(0)} == {"record"}
    assert capped.round_s() <= 1.15 * run({}).round_s()
