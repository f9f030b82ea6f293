"""The learning benchmark's real peers: their run has the simulation's schedule, and learns as much."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import learning, real_peers
from benchmarks.chars import Task, read_text
from benchmarks.learning import simulate
from benchmarks.real_peers import Job, RealRun, run_real_peers
from runnel.node.manifest_spec import OuterSection
from runnel.node.place import local

TASK = Task(steps=12, peers=3, batch_size=2, context=8)
OUTER = OuterSection(every_steps=4, fragments=2, overlap_steps=1)
RUN = RealRun(
    val_loss=2.02,
    states=("a", "a"),
    sent_bytes=(10, 30),
    payload_bytes=(5, 7),
    rounds=4,
    rounds_of_all=3,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A text of 80 kB in which one letter follows another."""
    path = tmp_path / "letters.txt"
    path.write_bytes((np.arange(80_000) ** 2 % 23 + ord("a")).astype(np.uint8).tobytes())
    return path


def test_children_get_exactly_the_job(path: Path) -> None:
    for text in (path, None):
        job = Job(TASK, OUTER, text)
        assert Job.decode(job.encode()) == job


@pytest.mark.parametrize("fragments", [1, 2, 4])
def test_the_run_has_the_schedule_of_the_simulation(fragments: int) -> None:
    outer = OUTER.model_copy(update={"fragments": fragments})
    job = Job(TASK, outer)
    spec = local(*job.settings()).spec
    assert spec.outer.model_copy(update={"wait_s": outer.wait_s}) == outer
    assert spec.outer.wait_s > 0
    assert spec.end.rounds == TASK.steps // outer.every_steps * fragments
    assert spec.rounds.deadline_floor_s == real_peers.DEADLINE_S


def test_a_gap_is_a_share_of_the_simulations_loss() -> None:
    row = RUN.row(2.0)
    assert row["gap_to_simulation"] == pytest.approx(0.01)
    assert (row["sent_bytes_per_peer"], row["payload_bytes_per_peer"]) == (20, 6)
    assert (row["rounds"], row["rounds_of_all"]) == (4, 3)
    assert row["identical_bits"] is True


def test_one_peer_with_other_bits_is_told() -> None:
    different = RealRun(2.02, ("a", "b"), (1, 1), (1, 1), rounds=4, rounds_of_all=4)
    assert different.row(2.0)["identical_bits"] is False


def test_real_peers_run_with_their_method_and_not_without(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    def compare(job: Job, simulated_loss: float, _say: object) -> dict[str, float]:
        jobs.append(job)
        return {"simulated": simulated_loss}

    monkeypatch.setattr(learning, "QUICK_STEPS", 8)
    monkeypatch.setattr(learning, "METHODS", {learning.REAL: OUTER, "other": OUTER})
    monkeypatch.setattr(learning, "compare", compare)
    assert learning.main(["--quick", "--json", "--text", str(path)]) == 0
    result = json.loads(capsys.readouterr().out)
    loss = result["methods"][learning.REAL]["val_loss"]
    assert result["real_peers"] == {"simulated": loss}
    assert (jobs[0].outer, jobs[0].text, jobs[0].task.steps) == (OUTER, path, 8)
    assert learning.main(["--quick", "--json", "--text", str(path), "--methods", "other"]) == 0
    assert json.loads(capsys.readouterr().out)["real_peers"] is None
    assert len(jobs) == 1


@pytest.mark.swarm
def test_real_peers_learn_what_a_simulation_does(tmp_path: Path, path: Path) -> None:
    job = Job(TASK, OUTER, path)
    real = run_real_peers(job, tmp_path)
    simulated = simulate(TASK, read_text(path), OUTER)
    row = real.row(simulated.val_loss)
    assert row["identical_bits"] is True
    assert row["rounds"] == row["rounds_of_all"] == job.num_rounds == 6
    assert abs(row["gap_to_simulation"]) < 0.005
    # Control messages come on top; each payload and each result is sent with a header.
    assert simulated.sent_bytes < row["payload_bytes_per_peer"] < row["sent_bytes_per_peer"]
