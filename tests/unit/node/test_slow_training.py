"""Healthy swarms whose training, transfers or arithmetic take long: nothing is given up, nobody goes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runnel.node.records import RecordKind
from tests.support.sim_peer import peer_name
from tests.support.slow_world import SlowWorld

CEILING_S, STALL_S = 4.0, 20.0
"""Of the simulated peers."""


def expect_rounds_only(world: SlowWorld, at_least: int) -> None:
    kinds = world.kinds()
    assert set(kinds) == {RecordKind.ROUND}, kinds
    assert kinds[RecordKind.ROUND] >= at_least
    assert all(len(record.view) == world.count for record in world.path())


@pytest.mark.parametrize("share_s", [8.0, STALL_S - 1, 3 * STALL_S])
def test_steps_may_take_as_long_as_they_like(share_s: float) -> None:
    world = SlowWorld(4, share_s=share_s).run_until(12 * share_s)
    expect_rounds_only(world, at_least=8)


def test_slow_arithmetic_is_learned_from() -> None:
    world = SlowWorld(4, share_s=2.0, work_s=1.5).run_until(100)
    late = world.path()[-20:]
    assert all(record.kind is RecordKind.ROUND for record in late)


def test_transfers_near_the_ceiling_do_not_end_in_branches() -> None:
    world = SlowWorld(4, share_s=10.0, transfer_s=CEILING_S - 1).run_until(250)
    assert world.kinds()[RecordKind.BRANCH] == 0
    assert world.kinds()[RecordKind.ROUND] > 15


@pytest.mark.parametrize("share_s", [0.05, 0.2])
def test_who_fell_behind_takes_part_again_however_short_the_rounds(share_s: float) -> None:
    world = SlowWorld(2, share_s=share_s, transfer_s=0.02, work_s=0.03, open_rounds=1)
    world.slow = {1: 1.2}
    world.links = replace(world.links, late=0.0)
    world.blocked = frozenset({(0, 1)})
    world.run_until(21)
    world.blocked = frozenset()
    world.run_until(41)
    newest = world.path()[-20:]
    # the draws of one in ten such worlds leave one of them out once
    assert sum(len(record.shares) == 2 for record in newest) >= len(newest) - 1


def test_a_peer_that_was_cut_off_does_not_take_the_others_along() -> None:
    world = SlowWorld(5, share_s=18.0).run_until(100)
    world.blocked = frozenset((other, 4) for other in range(4))
    world.run_until(130)
    world.blocked = frozenset()
    world.run_until(260)
    heads = {peer.chain.head.hash for peer in world.peers.values()}
    view = world.path()[-1].view
    assert len(heads) == 1
    assert {peer_name(index) for index in range(4)} <= set(view)
