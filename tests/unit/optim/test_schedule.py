from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import ConfigError
from runnel.optim.schedule import WARMUP_START, WindowSchedule, lr_factor

SCHEDULES = st.integers(1, 12).flatmap(
    lambda fragments: st.builds(
        WindowSchedule, st.just(fragments), st.integers(fragments, 20 * fragments + 7)
    )
)


@given(SCHEDULES, st.integers(0, 500))
def test_over_any_window_of_h_steps_every_fragment_is_due_once(
    schedule: WindowSchedule, extra: int
) -> None:
    start = schedule.every_steps + extra
    due = [schedule.due(start + step) for step in range(schedule.every_steps)]
    assert sorted(one for one in due if one is not None) == list(range(schedule.fragments))


@given(SCHEDULES, st.integers(0, 60))
def test_rounds_commit_when_their_fragment_is_due(
    schedule: WindowSchedule, round_index: int
) -> None:
    step = schedule.commit_step(round_index)
    assert schedule.due(step) == schedule.fragment(round_index)
    position = (schedule.offset(schedule.fragment(round_index)) - schedule.offset(0)) % (
        schedule.every_steps
    )
    assert (step - schedule.commit_step(0)) % schedule.every_steps == position


@given(SCHEDULES)
def test_no_step_is_due_before_round_zero(schedule: WindowSchedule) -> None:
    assert all(schedule.due(step) is None for step in range(1, schedule.commit_step(0)))


@given(SCHEDULES, st.integers(0, 60))
def test_gaps_are_positive_and_a_cycle_takes_h_steps(schedule: WindowSchedule, first: int) -> None:
    gaps = [schedule.steps_before(first + k) for k in range(schedule.fragments)]
    assert min(gaps) >= 1
    assert sum(gaps) == schedule.every_steps
    assert max(gaps) - min(gaps) <= 1


def test_fifty_steps_over_four_fragments() -> None:
    schedule = WindowSchedule(4, 50)
    assert [schedule.offset(p) for p in range(4)] == [0, 13, 25, 38]
    assert [schedule.commit_step(r) for r in range(5)] == [12, 25, 37, 50, 62]
    assert [schedule.fragment(r) for r in range(5)] == [0, 1, 2, 3, 0]


def test_one_fragment_is_due_every_h_steps() -> None:
    schedule = WindowSchedule(1, 7)
    assert [schedule.commit_step(r) for r in range(3)] == [7, 14, 21]


@pytest.mark.parametrize(("fragments", "every_steps"), [(0, 5), (4, 3), (-1, 0)])
def test_impossible_schedules_are_config_errors(fragments: int, every_steps: int) -> None:
    with pytest.raises(ConfigError, match="every_steps"):
        WindowSchedule(fragments, every_steps)


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    def factor(progress: float) -> float:
        return lr_factor(progress, warmup_share=0.1, final_share=0.2)

    assert factor(0.0) == WARMUP_START
    assert math.isclose(factor(0.05), 0.55)
    assert factor(0.1) == 1.0
    assert math.isclose(factor(0.55), 0.6)
    assert math.isclose(factor(1.0), 0.2)
    assert factor(7.0) == factor(1.0)
    assert factor(-1.0) == factor(0.0)
    assert lr_factor(1.0, warmup_share=1.0, final_share=0.2) == 1.0


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_factor_stays_between_its_ends(
    progress: float, warmup_share: float, final_share: float
) -> None:
    factor = lr_factor(progress, warmup_share=warmup_share, final_share=final_share)
    assert min(WARMUP_START, final_share) - 1e-12 <= factor <= 1 + 1e-12


@pytest.mark.parametrize(
    ("progress", "warmup_share", "final_share"),
    [(math.nan, 0.1, 0.1), (0.5, 1.1, 0.1), (0.5, -0.1, 0.1), (0.5, 0.1, 1.1)],
)
def test_shares_out_of_range_are_config_errors(
    progress: float, warmup_share: float, final_share: float
) -> None:
    with pytest.raises(ConfigError, match="warmup_share"):
        lr_factor(progress, warmup_share=warmup_share, final_share=final_share)


def test_public_windows_end_for_all_fragments_at_one_step() -> None:
    schedule = WindowSchedule(4, 50, together=True)
    assert [schedule.commit_step(r) for r in range(9)] == [50] * 4 + [100] * 4 + [150]
    assert [schedule.steps_before(r) for r in range(6)] == [50, 0, 0, 0, 50, 0]
    assert [step for step in range(1, 160) if schedule.due(step) is not None] == [50, 100, 150]
