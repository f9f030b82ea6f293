"""Who starts and who is killed when."""

from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from runnel.tools.demo_plan import JOIN_SHARE, KILL_SHARE, DemoPlan, Kill, Start, Step

EVERYBODY = frozenset(range(16))


def course(plan: DemoPlan, seconds: list[float], contributed: frozenset[int]) -> list[list[Step]]:
    return [plan.due(second, contributed) for second in seconds]


def test_four_peers_start_three_kill_one_and_let_one_join_late() -> None:
    plan = DemoPlan(4, 100.0, faults=True)
    assert course(plan, [0, 1, 39.9, 40, 49.9, 50, 99], EVERYBODY) == [
        [Start(1), Start(2)],
        [],
        [],
        [Kill(2)],
        [],
        [Start(3)],
        [],
    ]


def test_without_faults_all_start_at_once_and_nothing_else_happens() -> None:
    plan = DemoPlan(4, 100.0, faults=False)
    assert course(plan, [0, 40, 50, 99], EVERYBODY) == [[Start(1), Start(2), Start(3)], [], [], []]


def test_the_victim_dies_only_after_it_took_part() -> None:
    plan = DemoPlan(4, 100.0, faults=True)
    plan.due(0, frozenset())
    assert plan.due(45, frozenset({0, 1})) == []
    assert plan.due(46, frozenset({0, 1, 2})) == [Kill(2)]


def test_nobody_is_killed_when_little_time_is_left() -> None:
    plan = DemoPlan(4, 100.0, faults=True)
    plan.due(60, frozenset())
    assert plan.due(90, EVERYBODY) == []


@given(
    peers=st.integers(3, 16),
    seconds=st.lists(st.floats(0, 100), min_size=1).map(sorted),
    contributed=st.frozensets(st.integers(0, 15)),
)
def test_each_peer_starts_once_and_only_a_started_one_is_killed(
    peers: int, seconds: list[float], contributed: frozenset[int]
) -> None:
    told = course(DemoPlan(peers, 100.0, faults=True), seconds, contributed)
    steps = list(chain.from_iterable(told))
    started = [step.index for step in steps if isinstance(step, Start)]
    killed = [step.index for step in steps if isinstance(step, Kill)]
    late = seconds[-1] >= JOIN_SHARE * 100
    assert sorted(started) == list(range(1, peers if late else peers - 1))
    assert set(killed) <= set(started) & contributed
    assert len(killed) <= (seconds[-1] >= KILL_SHARE * 100)
