"""A short chaos run as a user starts it: real peers are struck, come back, and all accounts balance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from runnel.errors import ConfigError
from runnel.tools.chaos import main
from runnel.tools.peer_processes import MARK

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(400)]


def marked() -> list[int]:
    """Processes that a swarm of these tools left."""
    found = []
    for process in psutil.process_iter():
        try:
            if MARK in process.environ():
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.slow
def test_peers_that_are_killed_and_frozen_come_back_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = set(marked()), tmp_path / "chaos"
    options = "--peers 3 --minutes 0.45 --seed 4 --kinds kill,freeze --json"
    main([*options.split(), "--out", str(out)])
    said = capsys.readouterr()
    verdict: dict[str, Any] = json.loads((out / "verdict.json").read_text())
    # how long the others wait is for a quiet machine: `python -m benchmarks.faults`
    held = {name: verdict[name] for name in ("diverged", "lost_contributions", "not_back")}
    assert held == {"diverged": 0, "lost_contributions": 0, "not_back": 0}, said.out
    assert verdict["problems"] == []
    assert verdict["branches"] == 0
    assert verdict["strikes"] == 2
    assert verdict["rounds"] > 5
    assert json.loads(said.out.splitlines()[-1])["event"] == "ChaosEnded"
    assert set(marked()) <= before


def test_a_bad_option_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--peers", "2"]) == ConfigError.exit_code
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "--peers is 2" in said.err
