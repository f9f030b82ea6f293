"""Damaged and repeated traffic of a living swarm, sent to it by strangers: refused, and nothing else changes."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from itertools import count

import pytest

from tests.support.hostile_world import HostileWorld

KINDS = {
    "Hello", "Commit", "ProposeSet", "ProposeOutcome", "Cast", "SetDecided", "ResultReady",
    "WantRecords", "Records", "Join", "Leave", "BranchCall", "BranchSign",
}  # fmt: skip


def attack(frames: int, *, frames_a_tick: int) -> tuple[Counter[str], Counter[str], int]:
    """Worlds until every kind of message was sent so often; frames and refusals, and the worlds."""
    sent: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for seed in count():
        world = HostileWorld(seed, frames_a_tick=frames_a_tick)
        world.run()
        sent += world.frames
        refused += world.refusals
        if all(sent[kind] >= frames for kind in KINDS):
            return sent, refused, seed + 1
    raise AssertionError("unreachable")


def check(sent: Counter[str], refused: Counter[str]) -> None:
    assert refused["malformed"] > sent.total() / 4
    assert refused.total() > sent.total() / 2


def test_no_frame_of_a_stranger_ends_or_sways_a_peer() -> None:
    world = HostileWorld(16, frames_a_tick=1)  # a seed in which a bystander once repeated results
    world.run()
    assert len(world.frames) >= 12
    check(world.frames, world.refusals)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ten_thousand_frames_to_each_handler() -> None:
    sent, refused, worlds = attack(10_000, frames_a_tick=8)
    assert set(sent) == KINDS
    check(sent, refused)
    print(f"{sent.total():,} frames in {worlds} worlds, {refused.total():,} refused: {refused}")


def test_strangers_fill_no_memory() -> None:
    world = HostileWorld(3, frames_a_tick=1)
    while world.now < 15:
        world.step()
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        world._frames_a_tick = 20
        while world.now < 40:
            world.step()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert world.frames.total() > 5_000
    assert after - before < 50e6
    for peer in world.peers.values():
        assert len(peer.protocol.state.members._heard) < 400
        assert len(peer.protocol.state.branches._heads) < 400
