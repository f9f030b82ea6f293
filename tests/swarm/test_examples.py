"""The examples run as they are, each a process of its own, and say what their docstrings promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 100.0

pytestmark = pytest.mark.swarm


def output_of(example: str, tmp_path: Path) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RUNNEL_HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / example],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("runnel-*")) == [], "what was made for the run is gone"
    return done.stdout


def test_a_custom_model_learns_alone(tmp_path: Path) -> None:
    said = output_of("custom_model.py", tmp_path)
    losses = [float(text) for text in re.findall(r"loss ([\d.]+)", said)]
    assert len(losses) >= 4
    assert losses[-1] < losses[0] / 4
    assert "100% done" in said
    assert "the run is over after round 23" in said


def test_two_peers_end_with_equal_parameters(tmp_path: Path) -> None:
    said = output_of("two_peers.py", tmp_path)
    hashes = re.findall(r"peer ends with +([0-9a-f]{16})", said)
    assert len(hashes) == 2
    assert len(set(hashes)) == 1
    assert "members at the end: 2" in said


def test_the_learning_rate_follows_the_run(tmp_path: Path) -> None:
    said = output_of("learning_rate.py", tmp_path)
    rates = [float(text) for text in re.findall(r"learning rate ([\d.]+)", said)]
    assert rates[0] < max(rates)
    assert rates[-1] == min(rates)
    assert said.splitlines()[-1] == "100% done after round 29"


def test_checking_a_model_names_what_is_special_about_it(tmp_path: Path) -> None:
    good, bad = output_of("check_model.py", tmp_path).split("... and one that cannot:")
    for finding in ("embed.weight = head.weight", "frozen", "float buffers", "split"):
        assert finding in good
    assert "can train in a swarm" in good
    assert "0.weight: has no shape yet" in bad
    assert "1.weight: has type complex64" in bad


def test_a_peer_works_inside_a_running_loop(tmp_path: Path) -> None:
    said = output_of("notebook_cell.py", tmp_path)
    assert re.search(r"round 15, left> - loss 0\.0", said)
    assert "a table of" in said


def test_shared_seeds_tune_without_gradients(tmp_path: Path) -> None:
    said = output_of("shared_seeds.py", tmp_path)
    losses = [float(text) for text in re.findall(r"loss ([\d.]+)", said)]
    assert len(losses) >= 5
    assert losses[-1] < 0.8 * losses[0]
    assert "the run is over after round 79" in said


def test_each_example_is_tried() -> None:
    tried = set(re.findall(r'output_of\("(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == tried
