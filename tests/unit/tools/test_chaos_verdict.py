"""The verdict of a chaos run, from made-up events: what fails it, and what does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from runnel.node.events import RoundDecided
from runnel.tools.chaos_ledger import Cell
from runnel.tools.chaos_plan import Kind, Strike
from runnel.tools.chaos_swarm import Blow, Course
from runnel.tools.chaos_verdict import Verdict, compared, pauses, returns

NAMES = {0: "aaaa", 1: "bbbb", 2: "cccc"}


def decided(
    number: int, unix_s: float, *, without: Sequence[int] = (), root: str = "r"
) -> RoundDecided:
    return RoundDecided(
        unix_s=unix_s,
        round=number,
        kind="record",
        fragment=0,
        contributors=tuple(name for index, name in NAMES.items() if index not in without),
        members=3,
        seconds=1.0,
        state_root=f"{root}{number}",
        deadline_s=0.5,
    )


def blow(at_s: float, back_s: float | None, *, peer: int = 2, kind: Kind = Kind.KILL) -> Blow:
    return Blow(Strike(at_s, kind, peer, 1.0), at_s, back_s)


def sound() -> Verdict:
    return Verdict(
        rounds=9,
        diverged=[],
        cells=[Cell(0, -3.0, -3.0, 2, 1.5, 2.0)],
        restarted={2: 1},
        pauses=[],
        returns=[(blow(1, 2), 4.0)],
        branches=0,
    )


def test_a_sound_run_holds() -> None:
    assert sound().held
    assert sound().as_json()["ok"] is True


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": 0},
        {"diverged": [4]},
        {"cells": []},
        {"cells": [Cell(0, -3.0, -2.0, 2, 1.5, 2.0)]},
        {"cells": [Cell(0, -3.0, -4.0, 2, 1.5, 2.0)]},
        {"cells": [Cell(2, -3.0, -2.0, 2, 1.5, 2.0)]},
        {"returns": [(blow(1, 2), None)]},
        {"branches": 1},
        {"problems": ["peer 1 ended by itself"]},
    ],
)
def test_each_broken_promise_fails_the_run(change: dict[str, object]) -> None:
    broken = sound()
    for name, value in change.items():
        setattr(broken, name, value)
    assert not broken.held
    assert sum(not row.held for row in broken.rows) == 1


def test_a_restarted_peer_may_bring_what_it_had_handed_over_before() -> None:
    verdict = sound()
    verdict.cells = [Cell(2, -3.0, -5.0, 2, 1.5, 2.0)]
    assert verdict.held
    verdict.cells = [Cell(2, -3.0, -5.1, 2, 1.5, 2.0)]
    assert not verdict.held


def test_rounds_are_compared_by_the_last_word_of_each_peer() -> None:
    agreed = [decided(n, n) for n in range(4)]
    given_up = decided(2, 1.5, root="other")
    assert compared({0: agreed, 1: [agreed[0], given_up, *agreed[1:]]}) == (4, [])
    assert compared({0: agreed, 1: [*agreed[:2], given_up]}) == (3, [2])
    assert compared({0: agreed}) == (0, [])


def test_a_strike_costs_the_longest_pause_of_those_left_alone() -> None:
    times = [1, 2, 3, 4, 6.5, 7.5, 8.5]
    others = [decided(n, t) for n, t in enumerate(times)]
    victim = [decided(n, t + 30) for n, t in enumerate(times)]
    (pause,) = pauses({0: others, 1: others, 2: victim}, Course(blows=[blow(4.2, 5.0)]))
    assert (pause.seconds, pause.usual_s, pause.deadline_s) == (2.5, 1.0, 0.5)
    assert pause.deadlines == pytest.approx(3.0)


def test_a_pause_after_the_next_strike_counts_for_that_one() -> None:
    times = [1, 2, 3, 4, 5, 6, 7, 11, 12]
    others = [decided(n, t) for n, t in enumerate(times)]
    course = Course(blows=[blow(2.5, 3), blow(7.5, 8)])
    first, second = pauses({0: others, 1: others, 2: []}, course)
    assert first.deadlines == 0
    assert second.deadlines == pytest.approx(6.0)


def test_the_costliest_pause_counts_and_not_the_longest() -> None:
    times = [1, 2, 3, 4, 9, 10, 14]
    others = [decided(n, t) for n, t in enumerate(times)]
    others[4] = replace(others[4], deadline_s=6.0)
    (pause,) = pauses({0: others, 1: others, 2: []}, Course(blows=[blow(4.2, 5.0)]))
    assert (pause.seconds, pause.deadlines) == (4.0, 6.0)


def test_a_long_pause_after_the_last_strike_counts_until_the_end() -> None:
    others = [decided(n, t) for n, t in enumerate([1, 2, 3, 4, 65, 66, 99])]
    course = Course(blows=[blow(4.2, 5.0)], ended_unix_s=70.0)
    (pause,) = pauses({0: others, 1: others, 2: []}, course)
    assert pause.seconds == 61


def test_where_everybody_was_struck_nobody_can_tell() -> None:
    others = [decided(n, t) for n, t in enumerate(range(1, 20))]
    strikes = [blow(4.0 + n, 4.5 + n, peer=n) for n in range(3)]
    found = pauses(dict.fromkeys(range(3), others), Course(blows=strikes))
    assert [pause.seconds is None for pause in found] == [False, True, True]


def test_a_peer_is_back_with_its_next_part_in_a_round_whoever_tells_of_it() -> None:
    course = Course(ids={name: index for index, name in NAMES.items()})
    course.blows = [blow(2.5, 3.0), blow(9.0, 9.5, peer=1)]
    told = [decided(n, n, without=[2] if n < 6 else []) for n in range(9)]
    replayed = [replace(told[1], unix_s=4.0, contributors=tuple(NAMES.values()))]
    found = returns({0: told, 2: replayed}, course)
    assert [took_s for _, took_s in found] == [3.0, None]
