"""A node that trains by itself takes the built-in model only, and says so before anything starts."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from runnel.errors import ConfigError
from runnel.node.approach import approach
from runnel.node.config import LaunchPlan, MachineConfig
from runnel.node.manifest import make_spec, parse_overrides


def test_a_run_with_an_authors_model_is_launched_in_its_program(tmp_path: Path) -> None:
    spec = make_spec(parse_overrides(["run.name=own", "model.kind=custom"]), source="a test")
    plan = LaunchPlan(machine=MachineConfig.at(tmp_path / "home"), spec=spec)
    with pytest.raises(ConfigError, match="launch it from its author's program") as caught:
        approach(plan, threading.Event())
    assert "join" not in str(caught.value)
    assert not (tmp_path / "home").exists()
