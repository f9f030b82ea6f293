"""Churn drawn from a seed, and a small run in virtual time whose peers go and come back."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.chars import Task, Text
from benchmarks.churn import (
    AWAY_HOURS,
    ENDS,
    STEP_S,
    Outcome,
    Trial,
    draw_churn,
    run_trial,
    summary,
)
from runnel.tools.sim_faults import Crash, Fault, Faults, Leave, Restart

TEXT = Text("digits", 10, np.arange(4_000) % 10, np.arange(400) % 10)
TASK = Task(peers=3, steps=40, batch_size=2, context=8)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def of_peer(faults: Faults, peer: int) -> list[Fault]:
    return [fault for fault in faults.all if fault.peer == peer]


def test_equal_seeds_draw_equal_churn_and_more_hours_only_add_to_it() -> None:
    some = draw_churn(3, 2, hours=100, hour_s=1)
    assert some == draw_churn(3, 2, hours=100, hour_s=1)
    assert some != draw_churn(4, 2, hours=100, hour_s=1)
    assert of_peer(some, 0) != of_peer(some, 1)
    more = draw_churn(3, 2, hours=200, hour_s=1)
    assert of_peer(more, 1)[: len(of_peer(some, 1))] == of_peer(some, 1)
    seconds = [float(fault.second or 0) for fault in more.all]
    assert seconds == sorted(seconds)


def test_a_peer_that_is_there_goes_at_thirty_percent_an_hour() -> None:
    hours, hour_s = 20_000.0, 7.0
    churn = of_peer(draw_churn(0, 1, hours=hours, hour_s=hour_s), 0)
    goes, returns = churn[::2], churn[1::2]
    away_h = [
        (float(b.second or 0) - float(a.second or 0)) / hour_s
        for a, b in zip(goes, returns, strict=True)
    ]
    assert len(goes) / (hours - sum(away_h)) == pytest.approx(0.3, rel=0.05)
    assert sum(isinstance(f.do, Crash) for f in goes) / len(goes) == pytest.approx(0.5, abs=0.03)
    assert all(isinstance(f.do, Crash | Leave) for f in goes)
    assert all(isinstance(f.do, Restart) for f in returns)
    shortest, longest = AWAY_HOURS
    assert shortest <= min(away_h) < 0.2 * longest
    assert 0.8 * longest < max(away_h) <= longest + 1e-6


def test_a_run_ends_by_what_it_is_told_to() -> None:
    by_tokens, by_rounds = (Trial(TASK, TEXT, end).spec.end for end in ENDS)
    assert (by_tokens.tokens, by_tokens.rounds) == (3 * 40 * 2 * 8, 0)
    assert (by_rounds.tokens, by_rounds.rounds) == (0, 8)


def _small() -> Trial:
    faults = (
        Faults()
        .at(do=Crash(), peer=1, second=8 * STEP_S)
        .at(do=Restart(), peer=1, second=14 * STEP_S)
        .at(do=Leave(), peer=2, second=16 * STEP_S)
        .at(do=Restart(), peer=2, second=17 * STEP_S)  # while it says goodbye
    )
    return Trial(TASK, TEXT, "rounds", chance=1, faults=faults)


@pytest.fixture(scope="module")
def done() -> Outcome:
    return run_trial(_small())


@pytest.mark.timeout(600)
def test_peers_that_crash_and_leave_come_back_and_the_run_comes_to_its_end(done: Outcome) -> None:
    assert done.struck == {"crash": 1, "leave": 1, "restart": 2}
    assert done.peers == 3
    assert sum(done.kinds.values()) >= 8
    assert (
        done.steps * TASK.batch_size * TASK.context > done.tokens
    )  # some were lost with the crash
    assert done.val_loss < 0.9 * math.log(TEXT.vocab)


@pytest.mark.timeout(600)
def test_equal_trials_have_equal_histories(done: Outcome) -> None:
    assert run_trial(_small()) == done


def test_the_gap_is_the_larger_one_of_the_two_ends() -> None:
    rows = [
        {"equal_tokens": {"loss_gap": -0.02, "noise": 0.03}, "equal_rounds": {"loss_gap": 0.01}},
        {"equal_tokens": {"loss_gap": -0.01, "noise": -0.01}, "equal_rounds": {"loss_gap": 0.03}},
    ]
    assert summary(rows, ENDS) == {
        "loss_gap": 0.02,
        "loss_gap_equal_tokens": -0.015,
        "loss_gap_equal_rounds": 0.02,
        "loss_gap_worst": 0.03,
        "noise": 0.02,
    }
