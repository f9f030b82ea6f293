"""Progress: what of a run's end is reached, by rounds, tokens and minutes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from runnel.clock import SystemClock
from runnel.node.chain import Chain
from runnel.node.outcomes import genesis_record
from runnel.node.place import local
from runnel.node.progress import Progress
from runnel.node.records import FULL_PROGRESS
from runnel.types import Digest, PeerId

STARTED_UNIX_S = 1_000_000.0


@dataclass
class At(SystemClock):
    """A clock that stands still."""

    now_s: float = STARTED_UNIX_S

    def unix_s(self) -> float:
        return self.now_s


def chain(tokens: int = 0) -> Chain:
    genesis = genesis_record((PeerId(bytes(38)),), Digest(bytes(32)))
    return Chain(replace(genesis, tokens=tokens), open_rounds=2)


def share(*settings: str, number: int = 0, tokens: int = 0, minutes: float = 0.0) -> float:
    clock = At(STARTED_UNIX_S + 60 * minutes)
    progress = Progress(local(*settings).spec, STARTED_UNIX_S, clock)
    return progress.at(number, chain(tokens)) / FULL_PROGRESS


def test_a_run_without_an_end_never_progresses() -> None:
    assert share(number=10**6, tokens=10**12, minutes=10**6) == 0.0


def test_a_run_is_done_when_only_its_closing_rounds_are_left() -> None:
    # 4 closing rounds, one per fragment, follow those that are open by then (2)
    assert share("end.rounds=10", number=4) == 1.0
    assert share("end.rounds=10", number=3) < 1.0
    assert share("end.rounds=10", number=0) == pytest.approx(0.2)


def test_each_token_counts_once_though_every_fragment_is_weighed_by_it() -> None:
    assert share("end.tokens=1000", tokens=4 * 500) == pytest.approx(0.5)
    assert share("end.tokens=1000", "outer.fragments=8", tokens=8 * 1000) == 1.0


def test_minutes_are_those_since_the_launch() -> None:
    assert share("end.minutes=10", minutes=2.5) == pytest.approx(0.25)
    assert share("end.minutes=10", minutes=30) == 1.0


def test_the_first_end_counts() -> None:
    assert share("end.rounds=1000", "end.minutes=10", minutes=5) == pytest.approx(0.5)


def test_a_clock_before_the_launch_is_no_progress() -> None:
    assert share("end.minutes=10", minutes=-5) == 0.0
