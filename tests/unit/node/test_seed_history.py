"""Logs of seeds as files: saved, applied to their base, refused for another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from runnel.errors import ConfigError, InputFileError, RunMismatchError
from runnel.node.seed_history import apply_log, read_base, save_log
from runnel.optim.fixed_point_model import FixedPointModel, master_of
from runnel.optim.seed_log import LogHead
from runnel.optim.seed_updates import SeedUpdate
from runnel.tools.cli import main

KEY = (3, 4)


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(70, 70), nn.Linear(70, 5)).to(dtype)
    found[0].weight.requires_grad_(False)
    return found


def updates(steps: int) -> list[SeedUpdate]:
    generator = np.random.default_rng(1)
    return [
        SeedUpdate(
            step=step,
            counter=step,
            unit=4000,
            slots=np.arange(3, dtype=np.uint32),
            codes=generator.integers(-127, 128, 3, dtype=np.int32),
        )
        for step in range(steps)
    ]


def tuned(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Path, nn.Module]:
    """A base file, a log, and the model after it."""
    trained = model(dtype)
    base, log = folder / "base.safetensors", folder / "tuned.seeds"
    save_file(trained.state_dict(), base)
    weights = master_of(trained, KEY)
    assert save_log(log, LogHead.of(weights), updates(20)) == log.stat().st_size < 1000
    FixedPointModel(trained, weights).apply(updates(20))
    return base, log, trained


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_base_and_its_log_give_the_tuned_weights_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    base, log, trained = tuned(tmp_path, dtype)
    made = apply_log(base, log, tmp_path / "new" / "out.safetensors")
    assert (made.steps, made.directions) == (20, 60)
    found = load_file(made.path)
    assert found.keys() == trained.state_dict().keys()
    for name, value in trained.state_dict().items():
        assert torch.equal(found[name].to(dtype), value)
    assert torch.equal(found["0.weight"].to(dtype), model(dtype).state_dict()["0.weight"])


def test_the_command_says_what_it_wrote_and_replaces_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, log, _ = tuned(tmp_path)
    assert main(["apply", str(base), str(log)]) == 0
    written = tmp_path / "tuned.safetensors"
    before = written.read_bytes()
    assert f"wrote {written}: 20 steps, 60 directions, state " in capsys.readouterr().out
    assert main(["apply", str(base), str(log)]) == ConfigError.exit_code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "choose another --out" in lines[0]
    assert written.read_bytes() == before


def test_another_base_is_refused_and_the_right_one_named(tmp_path: Path) -> None:
    base, log, _ = tuned(tmp_path)
    weights = master_of(model(), KEY)
    other = dict(model().state_dict())
    other["1.bias"] = other["1.bias"] + 1e-6
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(RunMismatchError, match=weights.digest().hex()):
        apply_log(tmp_path / "other.safetensors", log, tmp_path / "out")
    del other["1.bias"]
    save_file(other, tmp_path / "less.safetensors")
    with pytest.raises(
        RunMismatchError, match=r"lacks tensor '1\.bias'.*" + weights.digest().hex()
    ):
        apply_log(tmp_path / "less.safetensors", log, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert base.exists()


def test_missing_and_damaged_files_are_told_in_one_line(tmp_path: Path) -> None:
    base, log, _ = tuned(tmp_path)
    whole = log.read_bytes()
    for name, content in (("cut", whole[:-20]), ("bent", whole[:60] + b"\x00" + whole[61:])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputFileError, match=name):
            apply_log(base, tmp_path / name, tmp_path / "out")
    with pytest.raises(InputFileError, match="no such file"):
        apply_log(base, tmp_path / "none", tmp_path / "out")
    with pytest.raises(InputFileError, match="is no checkpoint"):
        read_base(tmp_path / "none")
    with pytest.raises(InputFileError, match="is no safetensors file"):
        read_base(log)
    with pytest.raises(ConfigError, match="exists"):
        save_log(log, LogHead(master_of(model(), KEY).digest(), KEY), [])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["base.safetensors", "bent", "cut", "tuned.seeds"]
    )
