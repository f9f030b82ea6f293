"""The learning benchmark's real peers: their run has the simulation's schedule, and its bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import learning, real_peers
from benchmarks.chars import Task, read_text
from benchmarks.learning import simulate
from benchmarks.real_peers import Job, RealRun, draw_of, run_real_peers
from benchmarks.simulated_rounds import Draw
from runnel.node.manifest_sections import OuterSection
from runnel.node.place import local

TASK = Task(steps=12, peers=3, batch_size=2, context=8)
OUTER = OuterSection(every_steps=4, fragments=2, overlap_steps=1)
NAMES = ("a", "b", "c")
RUN = RealRun(
    val_loss=2.02,
    states=("f0", "f0"),
    sent_bytes=(10, 30),
    payload_bytes=(5, 7),
    rounds=4,
    rounds_of_all=3,
    draws=(),
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


def test_figures_are_means_over_the_peers() -> None:
    facts = RUN.facts()
    assert (facts["sent_bytes_per_peer"], facts["payload_bytes_per_peer"]) == (20, 6)
    assert (facts["rounds"], facts["rounds_of_all"]) == (4, 3)
    assert facts["identical_bits"] is True


def test_one_peer_with_other_bits_is_told() -> None:
    assert replace(RUN, states=("f0", "0f")).facts()["identical_bits"] is False


def test_a_round_that_lacks_anything_has_no_draw() -> None:
    record = {"senders": ["b", "c", "a"], "reducers": ["c", "a"], "complete": [True, True]}
    assert draw_of(record, NAMES) == Draw((1, 2, 0), (2, 0))
    assert draw_of({**record, "senders": ["b", "c"]}, NAMES) is None
    assert draw_of({**record, "complete": [True, False]}, NAMES) is None


def test_a_replayed_simulation_is_compared_and_a_run_with_gaps_is_not(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, text = Job(TASK, OUTER, path), read_text(path)
    draws = (Draw((2, 0, 1), (1, 2, 0)),) * job.num_rounds
    simulated = simulate(TASK, text, OUTER, draws)
    state = simulated.states[0].hex()
    run = replace(RUN, val_loss=simulated.val_loss, states=(state,) * 3, draws=draws)
    lines: list[str] = []
    for real, gap, same in (
        (run, 0, True),
        (replace(run, states=(state, state, "f0")), 0, False),
        (replace(run, draws=()), None, False),
    ):
        monkeypatch.setattr(learning, "run_real_peers", lambda *_, real=real: real)
        row = learning.compare(job, text, simulated.val_loss / 2, lines.append)
        assert (row["gap_to_simulation"], row["bits_of_simulation"]) == (gap, same)
        assert row["gap_with_other_draws"] == pytest.approx(1)
    assert len(lines) == 3


@pytest.mark.slow
def test_draws_decide_bits_and_little_more(path: Path) -> None:
    text = read_text(path)
    rounds = Job(TASK, OUTER).num_rounds
    first, second = (
        simulate(TASK, text, OUTER, (Draw(order, order),) * rounds)
        for order in ((0, 1, 2), (2, 1, 0))
    )
    assert first.states != second.states
    assert first.val_loss == pytest.approx(second.val_loss, rel=0.01)


def test_real_peers_run_with_their_method_and_not_without(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    def compare(job: Job, _text: object, simulated_loss: float, _say: object) -> dict[str, float]:
        jobs.append(job)
        return {"simulated": simulated_loss}

    monkeypatch.setattr(learning, "QUICK_STEPS", 8)
    monkeypatch.setattr(
        learning,
        "METHODS",
        {learning.REAL: learning.Method(OUTER), "other": learning.Method(OUTER)},
    )
    monkeypatch.setattr(learning, "compare", compare)
    assert learning.main(["--quick", "--json", "--text", str(path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["methods_left_out"] == ["other"]
    loss = result["methods"][learning.REAL]["val_loss"]
    assert result["real_peers"] == {"simulated": loss}
    assert (jobs[0].outer, jobs[0].text, jobs[0].task.steps) == (OUTER, path, 8)
    assert learning.main(["--quick", "--json", "--text", str(path), "--methods", "other"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["real_peers"] is None
    assert result["methods_left_out"] == [learning.REAL]
    assert len(jobs) == 1


@pytest.mark.slow
@pytest.mark.swarm
def test_real_peers_end_with_the_bits_of_a_simulation_with_their_draws(
    tmp_path: Path, path: Path
) -> None:
    job, text = Job(TASK, OUTER, path), read_text(path)
    real = run_real_peers(job, tmp_path)
    assert real.rounds == real.rounds_of_all == job.num_rounds == 6
    simulated = simulate(TASK, text, OUTER, real.draws)
    assert {*real.states} == {state.hex() for state in simulated.states}
    assert real.val_loss == pytest.approx(simulated.val_loss, rel=1e-6)
    # Control messages come on top; each payload and each result is sent with a header.
    facts = real.facts()
    assert simulated.sent_bytes < facts["payload_bytes_per_peer"] < facts["sent_bytes_per_peer"]
