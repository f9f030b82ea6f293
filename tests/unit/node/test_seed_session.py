"""An author's session in a run of shared seeds: each method alone on this machine, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import runnel
from runnel.errors import ConfigError, InputFileError, RunMismatchError
from runnel.node.events import ContributionWithheld, Event, InnerProgress
from runnel.node.sampling import step_seed, window_seed
from runnel.node.seed_entries import ENTRIES_NAME
from runnel.node.seed_export import export_log
from runnel.node.seed_history import apply_log
from runnel.node.seed_parts import run_key
from runnel.optim.fixed_point_model import FixedPointModel, master_of
from runnel.optim.just_one_byte import ByteState, probes_of, take_step
from runnel.optim.spsa_loss import differences, epsilon_amount

INPUTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
WANTED = INPUTS.sum(dim=1, keepdim=True).tanh()


def model_of(*, frozen: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    if frozen:
        model[0].requires_grad_(False)
    return model.eval()


def loss_of(model: nn.Module) -> Callable[[], torch.Tensor]:
    return lambda: nn.functional.mse_loss(model(INPUTS), WANTED)


def value_of(model: nn.Module) -> float:
    return float(loss_of(model)().detach())


def alone(model: nn.Module, home: Path, *settings: str, **options: object) -> runnel.Peer:
    place = runnel.local("seeds.lr=0.02", "rounds.snapshot_every=4", *settings, home=home)
    return runnel.Peer(place, model=model, **options)  # type: ignore[arg-type]


def values(model: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


@pytest.mark.parametrize("method", ["spsa", "fedkseed"])
def test_losses_alone_teach_and_the_frozen_part_stays(method: str, tmp_path: Path) -> None:
    model = model_of(frozen=True)
    before, first = values(model), value_of(model)
    with alone(model, tmp_path / "home", f"seeds.method={method}", "seeds.local_steps=3") as peer:
        for _ in range(30):
            peer.spsa_step(loss_of(model))
        assert peer.status()["parameters"] == 13
    changed = values(model) != before
    assert not changed[: 6 * 12 + 12].any()
    assert changed[6 * 12 + 12 :].any()
    assert value_of(model) < 0.8 * first


@pytest.mark.parametrize("method", ["spsa", "fedkseed"])
def test_a_public_seed_decides_each_step_and_a_step_only(method: str, tmp_path: Path) -> None:
    model, seeds = model_of(), list[bytes]()

    def seen(seed: bytes) -> Callable[[], torch.Tensor]:
        seeds.append(seed)
        return loss_of(model)

    settings = (f"seeds.method={method}", "seeds.local_steps=3")
    with alone(model, tmp_path / "home", *settings) as peer:
        genesis = peer.node.mailbox.chain.beacon
        for _ in range(6):
            peer.seeded_step(seen)
        steps = 3 if method == "fedkseed" else 1
        assert peer.round == 6 // steps - 1
        first = window_seed(genesis, peer.node.peer, 0)
        assert seeds[:steps] == [step_seed(first, step) for step in range(steps)]
    assert len(set(seeds)) == 6


def test_local_steps_with_gradients_teach_through_their_projections(tmp_path: Path) -> None:
    model = model_of()
    first = value_of(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    settings = ("seeds.method=ferret", "seeds.local_steps=4", "seeds.directions=64", "seeds.lr=0.5")
    with alone(model, tmp_path / "home", *settings, optimizer=optimizer) as peer:
        for _ in range(24):
            loss = loss_of(model)()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            peer.step(loss)
        assert peer.round == 5
    assert value_of(model) < 0.9 * first


def test_a_run_is_the_same_bits_as_one_process_without_a_network(tmp_path: Path) -> None:
    swarm, single = model_of(), model_of()
    with alone(swarm, tmp_path / "home", "seeds.method=spsa", "seeds.probes=2") as peer:
        for _ in range(9):
            peer.spsa_step(loss_of(swarm))
        spec = peer.node.spec
        bound = FixedPointModel(single, master_of(single, run_key(spec)))
        state, amount = ByteState(), epsilon_amount(spec.seeds.epsilon)
        for _ in range(9):
            probes = probes_of(state, 0, 2, amount)
            found = differences(bound, loss_of(single), probes)
            codes = {
                probe.slot: state.scale.code_of(one.scalar) or 0
                for probe, one in zip(probes, found, strict=True)
            }
            update, state = take_step(state, codes, lr=0.02)
            bound.apply([update])
        assert peer.node.store.shared(0)[0].tobytes() == b"".join(
            tensor.values.tobytes() for tensor in bound.weights.tensors
        )
    assert np.array_equal(values(swarm), values(single))


def test_the_log_of_a_run_and_its_base_are_the_run(tmp_path: Path) -> None:
    model, base = model_of(), tmp_path / "base.safetensors"
    save_file({k: v.detach().clone() for k, v in model.named_parameters()}, base)
    with alone(model, tmp_path / "home", "seeds.method=spsa") as peer:
        for _ in range(6):
            peer.spsa_step(loss_of(model))
        folder = peer.node.folder
    with alone(model_of(), tmp_path / "home", "seeds.method=spsa") as peer:  # it goes on
        assert peer.round == 5
        again = model
        peer.take_last_state()
    said = export_log(folder, tmp_path / "log.seeds")
    assert "6 steps" in said
    made = apply_log(base, tmp_path / "log.seeds", tmp_path / "out.safetensors")
    assert said.endswith(made.state.hex())
    tuned = runnel_arrays(tmp_path / "out.safetensors")
    assert all(np.array_equal(tuned[k], v.detach().numpy()) for k, v in again.named_parameters())
    with pytest.raises(ConfigError, match="exists, expected no such file"):
        export_log(folder, tmp_path / "log.seeds")
    entries = folder / ENTRIES_NAME
    entries.write_bytes(entries.read_bytes()[60:])
    with pytest.raises(InputFileError, match="history lacks 6 rounds from 0 to 5"):
        export_log(folder, tmp_path / "other.seeds")


def runnel_arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def test_a_run_that_exchanges_values_has_no_log(tmp_path: Path) -> None:
    with runnel.Peer(runnel.local(home=tmp_path / "home"), model=model_of()) as peer:
        folder = peer.node.folder
        with pytest.raises(ConfigError, match=r"this run exchanges values, expected seeds\.method"):
            peer.spsa_step(lambda: 1.0)
    with pytest.raises(ConfigError, match="expected one with"):
        export_log(folder, tmp_path / "log.seeds")


def test_what_a_loss_must_not_do_is_named_and_nothing_is_sent(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 1), nn.Dropout(0.5))
    events: list[Event] = []
    with alone(model, tmp_path / "home", "seeds.method=spsa", on_event=events.append) as peer:
        with pytest.raises(ConfigError, match=r"call model\.eval\(\) before the first step"):
            peer.spsa_step(lambda: model(INPUTS).mean())
        model.eval()
        with pytest.raises(ConfigError, match="draws random numbers"):
            peer.spsa_step(lambda: model(torch.randn(4, 6)).mean())
        with pytest.raises(ConfigError, match=r"peer\.spsa_step\(loss_fn\) with a function"):
            peer.step(1.0)
        assert peer.round == -1
        peer.spsa_step(lambda: float("nan"))
        assert peer.round == 0
        for _ in range(9):
            peer.spsa_step(lambda: model(INPUTS).square().mean())
    reasons = [event.reason for event in events if isinstance(event, ContributionWithheld)]
    assert len(reasons) == 1
    assert "the loss is nan" in reasons[0]
    assert [event.step for event in events if isinstance(event, InnerProgress)] == [1, 10]


def test_a_method_with_gradients_wants_no_function(tmp_path: Path) -> None:
    with alone(model_of(), tmp_path / "home", "seeds.method=ferret") as peer:
        with pytest.raises(ConfigError, match="takes local steps with gradients"):
            peer.spsa_step(lambda: 1.0)


def test_too_many_directions_for_a_commitment_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seeds.directions is 4096 .* expected at most 2044"):
        alone(model_of(), tmp_path / "home", "seeds.method=ferret", "seeds.directions=4096")


def test_another_model_is_refused(tmp_path: Path) -> None:
    with alone(model_of(), tmp_path / "home", "seeds.method=spsa"):
        pass
    with pytest.raises(RunMismatchError, match="the model's parameters have fingerprint"):
        alone(nn.Linear(6, 1), tmp_path / "home", "seeds.method=spsa")
