"""Simulated swarms: real peers in virtual time, their faults, what is told of them, and the picture."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from runnel.errors import ConfigError
from runnel.tools.sim_faults import Weather, read_faults
from runnel.tools.sim_options import SimOptions, parse_options
from runnel.tools.sim_watch import Phase
from runnel.tools.simulate import Outcome, main, simulate

FAULTS = """
[[fault]]
do = "crash"
peer = 2
round = 1
after_bytes = 2000

[[fault]]
do = "restart"
peer = 2
second = 45

[[fault]]
do = "freeze"
peer = 1
second = 30
lasts_s = 12
"""


def simulated(folder: Path, *, seed: int = 5, minutes: float = 1.25) -> Outcome:
    path = folder / "faults.toml"
    path.write_text(FAULTS)
    return simulate(
        SimOptions(peers=4, minutes=minutes, seed=seed, loss=0.01, faults=path), lambda _: None
    )


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return simulated(tmp_path_factory.mktemp("faults"))


def test_a_swarm_with_faults_ends_with_equal_bits_and_whole_accounts(outcome: Outcome) -> None:
    summary = outcome.summary
    assert summary.course.problems == []
    assert sorted(summary.course.heads) == [0, 1, 2, 3]
    assert summary.course.agree
    assert len(summary.cells) == 4
    assert all(cell.shares for cell in summary.cells)
    assert summary.held
    assert summary.kinds["record"] >= 3


def test_every_fault_is_carried_out_where_it_was_told(outcome: Outcome) -> None:
    struck = {type(s.fault.do).__name__: s for s in outcome.summary.course.struck}
    assert set(struck) == {"Crash", "Restart", "Freeze"}
    starts = [e.unix_s for i, e in outcome.summary.course.events if i == 2 and _is_start(e)]
    assert len(starts) == 2, "the crashed peer started once more"
    still = [
        span
        for span in outcome.spans
        if span.peer == 1 and span.start_s < 41.5 and span.end_s > 30.5 and span.seconds < 11
    ]
    assert not still, "a frozen peer does nothing"


def _is_start(event: object) -> bool:
    return type(event).__name__ == "PeerStarted"


def test_equal_seeds_have_equal_traces_and_others_have_not(
    outcome: Outcome, tmp_path: Path
) -> None:
    assert simulated(tmp_path).summary.course.trace == outcome.summary.course.trace
    assert simulated(tmp_path, seed=6).summary.course.trace != outcome.summary.course.trace


@pytest.mark.slow
def test_traces_are_equal_in_processes_that_hash_differently(tmp_path: Path) -> None:
    """Sets of bytes are in another order there: nothing may depend on it."""
    path = tmp_path / "faults.toml"
    path.write_text(FAULTS)
    command = [sys.executable, "-m", "runnel.tools.simulate", "--peers", "4", "--minutes", "1.5"]
    command += ["--json", "--churn", "40", "--faults", str(path)]
    traces = []
    for salt in ("1", "2"):
        done = subprocess.run(
            command, env={"PYTHONHASHSEED": salt}, capture_output=True, check=True, timeout=110
        )
        traces.append(json.loads(done.stdout)["trace"])
    assert traces[0] == traces[1]


def test_the_picture_says_who_waited_for_whom(outcome: Outcome) -> None:
    waits = [s for s in outcome.spans if s.phase is Phase.COMMIT and s.waited_for]
    assert waits
    assert all(span.peer not in span.waited_for for span in waits)
    assert {s.phase for s in outcome.spans} >= {Phase.TRAIN, Phase.COMMIT, Phase.GATHER}
    for peer in range(4):
        ends = 0.0
        for span in sorted((s for s in outcome.spans if s.peer == peer), key=lambda s: s.start_s):
            assert span.start_s >= ends - 1e-9, "a peer is in one phase at a time"
            ends = span.end_s


def test_the_command_leaves_pictures_events_and_faults_that_can_be_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--peers", "3", "--minutes", "1", "--slow", "0.4", "--out", str(out)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    for word in ("rounds", "faults", "agreement", "accounts", "bytes", "trace", "EVERYTHING HELD"):
        assert word in told
    for name in ("waterfall.svg", "waterfall-all.svg"):
        picture = ET.fromstring((out / name).read_text())
        words = [element.text for element in picture.iter() if element.tag.endswith("text")]
        assert {"00", "01", "02", "slow", "commitments", "outcome"} <= set(words)
    assert [type(f.do).__name__ for f in read_faults(out / "faults.toml").all] == ["Slow"]
    assert json.loads((out / "summary.json").read_text())["held"] is True
    assert len(list(out.glob("peer-*.jsonl"))) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peers", "1"], "--peers is 1, expected 2 to 64"),
        (["--peers", "65"], "--peers is 65"),
        (["--minutes", "nan"], "--minutes is nan"),
        (["--churn", "-1"], "--churn is -1"),
        (["--freeze", "nan"], "--freeze is nan"),
        (["--step", "0"], "--step is 0"),
        (["--slow", "1.5"], "--slow is 1.5"),
        (["--loss", "2"], "--loss is 2"),
        (["--partition", "-1"], "--partition is -1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--nonsense"], "--help"),
    ],
)
def test_bad_options_end_in_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_options(arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_peers_agree_through_churn_losses_slow_links_and_a_partition() -> None:
    weather = Weather(churn=6.0, freeze=3.0, slow=0.1, partition=1)
    options = SimOptions(peers=16, minutes=4, seed=7, weather=weather, loss=0.01)
    summary = simulate(options, lambda _: None).summary
    assert summary.held, summary.lines()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_halves_that_meet_after_hundreds_of_rounds_hold_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text("[[fault]]\ndo = 'partition'\npeers = [0]\nsecond = 20\nlasts_s = 210\n")
    options = SimOptions(peers=2, minutes=4.2, seed=3, step_s=0.05, faults=path)
    outcome = simulate(options, lambda _: None)
    course = outcome.summary.course
    assert outcome.summary.held, outcome.summary.lines()
    assert len({index for _, index, _ in course.branches}) == 2
    during = [number for second, number, _ in course.decisions if 60 < second < 225]
    assert max(during) - min(during) > 300
