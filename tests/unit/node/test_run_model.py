"""A run's own model, and the weights of a base that are put into it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runnel.errors import InputFileError, RunMismatchError
from runnel.node.manifest import RunSpec, make_spec
from runnel.node.run_model import build_model, load_base


def spec_of(**model: int) -> RunSpec:
    sizes = {"layers": 1, "heads": 2, "width": 16, "context": 8}
    return make_spec({"run": {"name": "a"}, "model": sizes | model}, source="test")


def test_a_base_is_what_the_run_starts_from(tmp_path: Path) -> None:
    model = build_model(spec_of())
    wanted = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    save_file(wanted, tmp_path / "base.safetensors")
    load_base(model, tmp_path / "base.safetensors")
    assert all(torch.equal(value, wanted[name]) for name, value in model.named_parameters())


def test_a_base_of_another_model_is_refused_by_its_first_difference(tmp_path: Path) -> None:
    base = {name: v.detach() for name, v in build_model(spec_of(width=32)).named_parameters()}
    save_file(base, tmp_path / "base.safetensors")
    model = build_model(spec_of())
    before = [value.detach().clone() for value in model.parameters()]
    with pytest.raises(
        RunMismatchError, match=r"the run's model has \(.*16.*\).*has \(.*32.*\): set"
    ):
        load_base(model, tmp_path / "base.safetensors")
    assert all(map(torch.equal, before, model.parameters()))


def test_a_base_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="is no checkpoint"):
        load_base(build_model(spec_of()), tmp_path / "missing")
