"""The whole protocol of several peers under random faults, checked for what it promises (tests/support)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import sweep
from tests.support.faults import KINDS, QUIET_AT, SHAPES
from tests.support.schedules import Broken, World, run_seed
from tests.support.sweep import kept

KEPT = kept()
"""Schedules of every kind of fault that take little time; what a sweep finds is added there."""


@pytest.mark.parametrize(("seed", "kind"), KEPT)
def test_a_schedule_keeps_every_promise(seed: int, kind: str) -> None:
    stats = run_seed(seed, kind=kind if kind in SHAPES else "")
    assert stats["round"] > 20


def test_the_kept_schedules_cover_every_kind_of_fault() -> None:
    kinds = {World(seed).kind for seed, kind in KEPT if kind == "any"}
    assert kinds >= set(KINDS) - {"calm"}


def test_a_sweep_prints_every_seed_and_keeps_what_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_at_odd_seeds(seed: int, **_: object) -> None:
        if seed % 2:
            raise Broken("S1 two outcomes")

    monkeypatch.setattr(sweep, "run_seed", fails_at_odd_seeds)
    found = tmp_path / "kept.txt"
    found.write_text("# none so far\n")
    lines = list(sweep.sweep(5, 4, ["any", "line"], found))
    assert lines == list(sweep.sweep(5, 4, ["any", "line"], found))  # and not kept twice
    assert lines == ["5 line Broken: S1 two outcomes", "6 any ok", *lines[2:4], lines[4]]
    assert lines[4] == "4 schedules, 2 failed"
    assert kept(found) == [(5, "line"), (7, "line")]


def test_a_calm_schedule_has_neither_aborts_nor_branches() -> None:
    stats = run_seed(14, calm=True)
    assert stats["round"] > 50
    assert not stats["abort"] + stats["branch"] + stats["given up"]


def test_equal_seeds_give_equal_runs() -> None:
    first, second = World(3), World(3)
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
    world = World(KEPT[0][0])
    late = [e for when, _, e in world.queue if e[0] == "fault" and when > QUIET_AT]
    assert late == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(1000, 1300, 50))
def test_hundreds_of_schedules_keep_every_promise(first: int) -> None:
    for kinds in (["any"], list(SHAPES)):
        seeds = [(seed, kinds[seed % len(kinds)]) for seed in range(first, first + 50)]
        broken = {place: why for place in seeds if (why := sweep.problem(*place))}
        assert broken == {}
