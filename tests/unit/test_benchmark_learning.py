"""The learning benchmark on a task of seconds: what it promises of its data, its bytes and its bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import learning
from benchmarks.chars import CharGpt, Task, Text, batch_of, losses, read_text, validation_loss
from benchmarks.learning import Method, measure, simulate
from benchmarks.simulated_rounds import SimulatedRounds
from runnel.errors import BugError, ConfigError
from runnel.node.manifest_sections import OuterSection
from runnel.optim import ModelBinding, plan_model

TASK = Task(steps=8, peers=3, batch_size=2, context=8)
E3M0 = OuterSection(every_steps=4, fragments=2, overlap_steps=1)
FP32 = E3M0.model_copy(update={"codec": "fp32", "result_codec": "fp32"})
WHOLE = FP32.model_copy(update={"fragments": 1})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 80 kB with 26 characters, each word in a drawn order."""
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, 80_000, dtype=np.uint8)
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    path.write_bytes(letters.tobytes())
    return path


@pytest.fixture(scope="module")
def text(path: Path) -> Text:
    return read_text(path)


def outer_parameters(rounds: SimulatedRounds, model: CharGpt) -> np.ndarray:
    """The outer parameters, by way of `model`, which belongs to peer 0 and keeps its own."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    rounds.write_outer(0)
    outer = values_of(model)
    model.load_state_dict(kept)
    return outer


def values_of(model: CharGpt) -> np.ndarray:
    binding = ModelBinding(model, plan_model(model, 1))
    values = binding.new_buffer(0)
    binding.read(0, values)
    return values


def move(model: CharGpt, change: np.ndarray) -> None:
    ModelBinding(model, plan_model(model, 1)).add(0, change)


def whole_model_rounds(text: Text) -> tuple[list[CharGpt], SimulatedRounds]:
    """Three equal models before the only round of a run, plainly averaged in fp32."""
    models = [CharGpt(TASK, text.vocab) for _ in range(TASK.peers)]
    return models, SimulatedRounds(models, plan_model(models[0], 1), WHOLE, 1)


@pytest.mark.slow
def test_the_result_names_loss_gap_and_bytes_of_each_method(text: Text) -> None:
    lines: list[str] = []
    result = measure(TASK, text, {"e3m0": Method(E3M0), "fp32": Method(FP32)}, lines.append)
    assert list(result["methods"]) == ["data_parallel", "e3m0", "fp32"]
    assert result["identical_bits"] is True
    assert result["steps"] == TASK.steps
    base = result["methods"]["data_parallel"]
    assert (base["loss_gap"], base["bytes_ratio"]) == (0, 1)
    for name in ("e3m0", "fp32"):
        row = result["methods"][name]
        assert row["bytes_ratio"] > 1
        assert row["loss_gap"] == pytest.approx(row["val_loss"] / base["val_loss"] - 1, abs=1e-4)
    assert len(lines) == 2 + len(result["methods"])


def test_bytes_are_those_of_the_payloads_sent(text: Text) -> None:
    numel = sum(p.numel() for p in CharGpt(TASK, text.vocab).parameters())
    exchanges = TASK.steps // FP32.every_steps
    sent = simulate(TASK, text, FP32).sent_bytes * TASK.peers
    # Each value goes to its reducer from all others, and back to all others.
    assert sent == exchanges * 2 * (TASK.peers - 1) * 4 * numel
    assert simulate(TASK, text, E3M0).sent_bytes * TASK.peers < sent / 7.5


def test_all_peers_end_with_the_same_outer_state_and_runs_repeat(text: Text) -> None:
    done = simulate(TASK, text, E3M0)
    assert len(done.states) == TASK.peers
    assert len(set(done.states)) == 1
    assert simulate(TASK, text, E3M0) == done
    assert simulate(TASK, text, FP32).states[0] != done.states[0]


def test_peers_whose_states_differ_stop_the_run(text: Text) -> None:
    models = [CharGpt(TASK, text.vocab) for _ in range(TASK.peers)]
    with torch.no_grad():
        models[1].norm[0] += 1
    rounds = SimulatedRounds(models, plan_model(models[0], 1), WHOLE, 1)
    rounds.after_step(WHOLE.every_steps, tokens=100)
    with pytest.raises(BugError, match="round 0 left states"):
        rounds.finish()


def test_a_task_shorter_than_a_window_is_refused(text: Text) -> None:
    with pytest.raises(ConfigError, match="has 8 steps, expected at least every_steps 9"):
        simulate(TASK, text, FP32.model_copy(update={"every_steps": 9}))


def test_a_closing_round_moves_everybody_by_what_all_have_learned(text: Text) -> None:
    models, rounds = whole_model_rounds(text)
    before = values_of(models[0])
    learned = np.full_like(before, 0.25)
    for model in models:
        move(model, learned)
    rounds.after_step(WHOLE.every_steps, tokens=100)
    rounds.finish()
    np.testing.assert_allclose(outer_parameters(rounds, models[0]), before + learned, atol=1e-6)


def test_what_is_learned_between_hand_over_and_merge_stays_with_its_peer(text: Text) -> None:
    models, rounds = whole_model_rounds(text)
    before = values_of(models[0])
    learned, late = np.full_like(before, 0.25), np.full_like(before, 0.5)
    for model in models:
        move(model, learned)
    rounds.after_step(WHOLE.every_steps, tokens=100)
    move(models[1], late)
    rounds.after_step(WHOLE.every_steps + WHOLE.overlap_steps, tokens=100)
    np.testing.assert_allclose(values_of(models[0]), before + learned, atol=1e-6)
    np.testing.assert_allclose(values_of(models[1]), before + learned + late, atol=1e-6)


def test_public_windows_start_from_what_was_sent_and_are_merged_piece_by_piece(text: Text) -> None:
    models = [CharGpt(TASK, text.vocab) for _ in range(TASK.peers)]
    before = values_of(models[0])
    outer = E3M0.model_copy(update={"windows": "public"})
    rounds = SimulatedRounds(models, plan_model(models[0], 2), outer, 4, late=(1, 3))
    learned = np.random.default_rng(0).standard_normal(before.size, dtype=np.float32) / 8
    for model in models:
        move(model, learned)
    rounds.after_step(outer.every_steps, tokens=100)
    started = values_of(models[0]) - before
    assert not np.array_equal(started, learned)
    assert len(np.unique(np.abs(started).round(6))) < before.size / 8, "few levels for each scale"
    assert 0.1 < np.linalg.norm(started - learned) / np.linalg.norm(learned) < 0.25
    moved = []
    for step in range(1, 4):
        held = values_of(models[0])
        rounds.after_step(outer.every_steps + step, tokens=100)
        moved.append(np.count_nonzero(values_of(models[0]) != held))
    assert moved[0] > 0
    assert moved[1] == 0
    assert moved[2] > 0
    assert moved[0] + moved[2] <= before.size
    assert len(set(rounds.finish())) == 1


def test_optimizers_start_public_windows_anew_where_they_shall(
    text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = E3M0.model_copy(update={"windows": "public"})
    fresh = kept.model_copy(update={"inner_state": "fresh"})
    done = [simulate(TASK, text, outer, late=(1, 2)) for outer in (kept, fresh)]
    assert all(len(set(one.states)) == 1 for one in done)
    assert done[0].states != done[1].states
    monkeypatch.setattr(learning, "forget", lambda optimizer: None)
    assert simulate(TASK, text, fresh, late=(1, 2)).states == done[0].states


def test_batches_follow_from_seed_peer_and_step_alone(text: Text) -> None:
    first = batch_of(text, TASK, peer=1, step=5)
    batch_of(text, TASK, peer=2, step=9)
    assert torch.equal(batch_of(text, TASK, peer=1, step=5), first)
    assert first.shape == (TASK.batch_size, TASK.context + 1)
    other_seed = Task(steps=8, peers=3, batch_size=2, context=8, seed=1)
    for other in (
        batch_of(text, TASK, peer=2, step=5),
        batch_of(text, TASK, peer=1, step=6),
        batch_of(text, other_seed, peer=1, step=5),
    ):
        assert not torch.equal(other, first)


def test_models_trained_together_learn_as_each_would_alone(text: Text) -> None:
    models = [CharGpt(Task(steps=8, context=8, seed=seed), text.vocab) for seed in range(3)]
    batches = torch.stack([batch_of(text, TASK, peer=peer, step=1) for peer in range(3)])
    together = losses(models, batches)
    together.sum().backward()
    for model, batch, loss in zip(models, batches, together, strict=True):
        gradients = [p.grad for p in model.parameters()]
        alone = model(batch)
        expected = torch.autograd.grad(alone, list(model.parameters()))
        torch.testing.assert_close(alone, loss)
        torch.testing.assert_close(gradients, list(expected), atol=1e-6, rtol=1e-4)


def test_an_untrained_model_knows_the_alphabet_and_no_more(text: Text) -> None:
    assert text.vocab == 26
    assert text.training.size + text.validation.size == 80_000
    model = CharGpt(TASK, text.vocab)
    assert validation_loss(model, text, TASK) == pytest.approx(np.log(26), abs=0.05)


def test_the_command_ends_with_one_line_of_json(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "QUICK_STEPS", 8)
    monkeypatch.setattr(learning, "METHODS", {"tiny": Method(WHOLE)})
    assert learning.main(["--quick", "--json", "--text", str(path)]) == 0
    only_json = capsys.readouterr().out.splitlines()
    assert len(only_json) == 1
    result = json.loads(only_json[0])
    assert (result["quick"], result["steps"]) == (True, 8)
    assert list(result["methods"]) == ["data_parallel", "tiny"]
    assert learning.main(["--quick", "--text", str(path)]) == 0
    with_table = capsys.readouterr().out.splitlines()
    assert len(with_table) == 5
    assert json.loads(with_table[-1]) == result


def test_a_missing_text_is_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert learning.main(["--quick", "--text", "no-such.txt"]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert "no-such.txt" in printed.err


def test_methods_are_named_with_commas_or_not_at_all(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = learning.methods_named("muon_e3m0,sparseloco")
    assert list(named) == ["muon_e3m0", "sparseloco"]
    assert named["muon_e3m0"].applied_to(TASK).inner.optimizer == "muon"
    assert learning.main(["--quick", "--text", str(path), "--methods", "whole_e3m0,magic"]) == 2
    assert capsys.readouterr().err.startswith("error: --methods has 'magic', expected some")


def test_a_method_may_train_with_muon_and_with_gradients_every_step(text: Text) -> None:
    methods = {"dp_muon": Method(None, "muon"), "muon": Method(WHOLE, "muon")}
    result = measure(TASK, text, methods, lambda _: None)
    losses = [row["val_loss"] for row in result["methods"].values()]
    assert len(set(losses)) == 3
    assert result["methods"]["dp_muon"]["bytes_ratio"] == 1
