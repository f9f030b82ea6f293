"""A shared-seed run of the built-in model, taken out as a log: what gives its weights, from which base."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from runnel.node.approach import approach
from runnel.node.checkpoint import read_checkpoint
from runnel.node.config import LaunchPlan, MachineConfig
from runnel.node.export import save_checkpoint
from runnel.node.manifest import RunSpec, make_spec
from runnel.node.run_model import build_model
from runnel.node.seed_export import export_log, is_drawn
from runnel.node.seed_history import apply_log, read_base
from runnel.node.volunteer import run_peer
from runnel.optim.fixed_point_model import master_of
from runnel.optim.seed_log import LogHead
from tests.support.swarm import write_text

ROUNDS = 3


def spec_of(folder: Path, seed: int = 0) -> RunSpec:
    return make_spec(
        {
            "run": {"name": "tune", "seed": seed},
            "model": {"layers": 1, "heads": 2, "width": 16, "context": 16},
            "data": {"text": str(folder / "text.txt"), "batch_size": 2, "chunk_bytes": 4096},
            "seeds": {"method": "spsa", "lr": 0.01},
            "end": {"rounds": ROUNDS},
        },
        source="test",
    )


def tuned(folder: Path) -> Path:
    """The folder of a run that has ended."""
    write_text(folder / "text.txt")
    machine = MachineConfig.at(folder / "home", host="127.0.0.1")
    plan, stop = LaunchPlan(machine=machine, spec=spec_of(folder)), threading.Event()
    done = run_peer(
        plan,
        approach(plan, stop),
        stop=stop,
        on_event=lambda _: None,
        on_invite=lambda _: None,
    )
    return done.folder


@pytest.mark.swarm
def test_a_run_whose_seed_drew_its_base_gives_it_beside_the_log(tmp_path: Path) -> None:
    run, log = tuned(tmp_path), tmp_path / "tune.seeds"
    base = tmp_path / "tune.base.safetensors"
    assert f"{base} is that base" in export_log(run, log)
    made = apply_log(base, log, tmp_path / "made.safetensors")
    assert made.steps == ROUNDS
    wanted = read_checkpoint(save_checkpoint(run, tmp_path / "checkpoints")).parameters
    found, began = read_base(made.path), read_base(base)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert np.array_equal(found[name].view(np.int32), values.view(np.int32)), name
    assert any(not np.array_equal(began[name], values) for name, values in wanted.items())


def test_weights_that_somebody_gave_are_not_what_a_seed_drew(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    drawn = LogHead.of(master_of(build_model(spec), (1, 2)))
    assert is_drawn(spec, drawn)
    assert not is_drawn(spec_of(tmp_path, seed=1), drawn)
