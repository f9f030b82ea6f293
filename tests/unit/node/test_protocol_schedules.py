"""The whole protocol of several peers under random faults, checked for what it promises (tests/support)."""

from __future__ import annotations

import pytest

from tests.support.faults import KINDS, QUIET_AT
from tests.support.schedules import Broken, World, run_seed

KEPT = (67, 80, 111, 146, 160, 190, 201, 203, 208, 256)
"""Seeds of every kind of fault that take little time; a seed that fails is added here."""


@pytest.mark.parametrize("seed", KEPT)
def test_a_schedule_keeps_every_promise(seed: int) -> None:
    stats = run_seed(seed)
    assert stats["round"] > 20


def test_the_kept_schedules_cover_every_kind_of_fault() -> None:
    assert {World(seed).kind for seed in KEPT} >= set(KINDS) - {"calm"}


def test_a_calm_schedule_has_neither_aborts_nor_branches() -> None:
    for seed in (3, 9):
        stats = run_seed(seed, calm=True)
        assert stats["round"] > 50
        assert not stats["abort"] + stats["branch"] + stats["given up"]


def test_equal_seeds_give_equal_runs() -> None:
    first, second = World(14), World(14)
    assert first.run() == second.run()
    heads = [{i: p.chain.path for i, p in world.peers.items()} for world in (first, second)]
    assert heads[0] == heads[1]


def test_the_checks_see_a_record_applied_twice() -> None:
    world = World(2, calm=True)
    peer = world.peers[0]
    while peer.chain.number < 3:
        world.step()
    peer.store.residual(0)[:] += 1
    with pytest.raises(Broken, match="S3"):
        world.checks.conserved(peer)


def test_the_checks_see_two_outcomes_of_one_round() -> None:
    world = World(2, calm=True)
    peer = world.peers[0]
    while peer.chain.number < 3:
        world.step()
    record = peer.chain.head
    world.checks.outcomes[record.number, record.parent] = record.parent
    with pytest.raises(Broken, match="S1"):
        world.checks.moved(peer, peer.chain.path)


def test_faults_end_before_the_schedule_does() -> None:
    world = World(KEPT[0])
    late = [e for when, _, e in world.queue if e[0] == "fault" and when > QUIET_AT]
    assert late == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(1000, 1300, 50))
def test_hundreds_of_schedules_keep_every_promise(first: int) -> None:
    broken = []
    for seed in range(first, first + 50):
        try:
            run_seed(seed)
        except Broken as error:
            broken.append(str(error))
    assert broken == []
