"""Damaged and repeated traffic of a living swarm, sent to it by strangers: refused, and nothing else changes."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter

import pytest

from tests.support.hostile_world import HostileWorld

KINDS = {
    "Hello", "Commit", "ProposeSet", "ProposeOutcome", "Cast", "SetDecided", "ResultReady",
    "WantRecords", "Records", "Join", "Leave", "BranchCall", "BranchSign",
}  # fmt: skip


def check(sent: Counter[str], refused: Counter[str]) -> None:
    assert refused["malformed"] > sent.total() / 4
    assert refused.total() > sent.total() / 2


def test_no_frame_of_a_stranger_ends_or_sways_a_peer() -> None:
    world = HostileWorld(3, frames_a_tick=1)  # a seed whose peers say nearly everything
    world.run()
    assert len(world.frames) >= 10
    check(world.frames, world.refusals)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_frames_to_each_handler() -> None:
    sent: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for seed in (0, 3):  # between them, peers of these two say everything that there is to say
        world = HostileWorld(seed, frames_a_tick=10)
        world.run()
        sent, refused = sent + world.frames, refused + world.refusals
    assert set(sent) == KINDS
    assert min(sent.values()) >= 10_000, sent
    check(sent, refused)


def test_strangers_fill_no_memory() -> None:
    world = HostileWorld(3, frames_a_tick=1)
    while world.now < 15:
        world.step()
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        world._frames_a_tick = 20
        while world.now < 28:
            world.step()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert world.frames.total() > 5_000
    assert after - before < 25e6
    for peer in world.peers.values():
        assert len(peer.protocol.state.members._heard) < 400
        assert len(peer.protocol.state.branches._heads) < 400
