"""The demo as a user runs it: real peers, daemons, training."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from runnel.node.checkpoint import read_checkpoint
from runnel.tools.demo import main

pytestmark = [pytest.mark.swarm, pytest.mark.slow]


def daemons() -> set[int]:
    found = set()
    for process in psutil.process_iter(["name", "status"]):
        if process.info["name"] == "p2pd" and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found


def outcome_of(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "outcome.json").read_text())
    return content


def check_folder(folder: Path) -> None:
    """What every sound demo leaves."""
    names = {path.name for path in folder.iterdir()}
    assert {"run.toml", "report.html", "sample.txt", "journals", "checkpoint"} <= names
    assert len((folder / "sample.txt").read_text()) > 100
    assert read_checkpoint(folder / "checkpoint").parameters


def test_two_peers_train_to_the_end_with_equal_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    options = "--peers 2 --no-faults --minutes 0.5 --model gpt:layers=1,width=32,context=32"
    code = main([*options.split(), "--out", str(folder)])
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    outcome = outcome_of(folder)
    assert outcome["problems"] == []
    roots = outcome["state_roots"]
    assert isinstance(roots, dict)
    assert set(roots) == {"peer 0", "peer 1"}
    assert len(set(roots.values())) == 1
    check_folder(folder)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_death_and_a_late_start_leave_equal_bits_and_no_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, folder = daemons(), tmp_path / "demo"
    code = main(["--minutes", "1.5", "--out", str(folder)])
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    outcome = outcome_of(folder)
    roots, killed, late = (outcome[key] for key in ("state_roots", "killed", "joined_late"))
    assert isinstance(roots, dict)
    assert isinstance(killed, dict)
    assert isinstance(late, dict)
    assert set(roots) == {"peer 0", "peer 1", "peer 3"}
    assert len(set(roots.values())) == 1
    assert killed["peer"] == "peer 2"
    assert late["first_round"] > 0
    check_folder(folder)
    assert daemons() <= before
