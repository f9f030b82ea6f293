"""The examples run as they are and say what their docstrings promise.

They run one after the other in one process: what they import takes longer than what they do.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 200.0

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(450)]

IN_TURN = """
import contextlib, io, json, os, pathlib, runpy, sys

said = {}
for path in map(pathlib.Path, sys.argv[1:]):
    sys.argv = [str(path)]
    os.environ["RUNNEL_HOME"] = str(pathlib.Path(path.stem).absolute() / "home")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(path), run_name="__main__")
    said[path.name] = out.getvalue()
print(json.dumps(said))
"""


def output_of(folder: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RUNNEL_HOME": str(folder / "home"),
        "TMPDIR": str(folder),
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert list(folder.glob("runnel-*")) == [], "what was made for the run is gone"
    return done.stdout


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each example printed, by its file's name."""
    paths = map(str, sorted((ROOT / "examples").glob("*.py")))
    folder = tmp_path_factory.mktemp("examples")
    outputs: dict[str, str] = json.loads(output_of(folder, "-c", IN_TURN, *paths))
    return outputs


def test_a_custom_model_learns_alone(said: dict[str, str]) -> None:
    text = said["custom_model.py"]
    losses = [float(number) for number in re.findall(r"loss ([\d.]+)", text)]
    assert len(losses) >= 4
    assert losses[-1] < losses[0] / 4
    assert "100% done" in text
    assert "the run is over after round 23" in text


def test_two_peers_end_with_equal_parameters(said: dict[str, str]) -> None:
    text = said["two_peers.py"]
    hashes = re.findall(r"peer ends with +([0-9a-f]{16})", text)
    assert len(hashes) == 2
    assert len(set(hashes)) == 1
    assert "members at the end: 2" in text


def test_the_learning_rate_follows_the_run(said: dict[str, str]) -> None:
    text = said["learning_rate.py"]
    rates = [float(number) for number in re.findall(r"learning rate ([\d.]+)", text)]
    assert rates[0] < max(rates)
    assert rates[-1] == min(rates)
    assert text.splitlines()[-1] == "100% done after round 29"


def test_checking_a_model_names_what_is_special_about_it(said: dict[str, str]) -> None:
    good, bad = said["check_model.py"].split("... and one that cannot:")
    for finding in ("embed.weight = head.weight", "frozen", "float buffers", "split"):
        assert finding in good
    assert "can train in a swarm" in good
    assert "0.weight: has no shape yet" in bad
    assert "1.weight: has type complex64" in bad


def test_a_peer_works_inside_a_running_loop(said: dict[str, str]) -> None:
    text = said["notebook_cell.py"]
    assert re.search(r"round 15, left> - loss 0\.0", text)
    assert "a table of" in text


def test_shared_seeds_tune_without_gradients(said: dict[str, str]) -> None:
    text = said["shared_seeds.py"]
    losses = [float(number) for number in re.findall(r"loss ([\d.]+)", text)]
    assert len(losses) >= 5
    assert losses[-1] < 0.8 * losses[0]
    assert "the run is over after round 79" in text


def test_each_example_is_looked_at(said: dict[str, str]) -> None:
    looked_at = set(re.findall(r'said\["(\w+\.py)"\]', Path(__file__).read_text()))
    assert said.keys() == looked_at
