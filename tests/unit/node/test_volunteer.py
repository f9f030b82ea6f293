"""A node that trains by itself takes the built-in model only, and says so before anything starts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from runnel.errors import ConfigError
from runnel.node.config import LaunchPlan, MachineConfig
from runnel.node.manifest import make_spec, parse_overrides
from runnel.node.volunteer import run_peer


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_run_with_an_authors_model_is_launched_in_its_program(tmp_path: Path) -> None:
    spec = make_spec(parse_overrides(["run.name=own", "model.kind=custom"]), source="a test")
    plan = LaunchPlan(machine=MachineConfig.at(tmp_path / "home"), spec=spec)
    with pytest.raises(ConfigError, match="launch it from its author's program") as caught:
        run_peer(plan, stop=threading.Event(), on_event=print, on_invite=print)
    assert "join" not in str(caught.value)
    assert not (tmp_path / "home").exists()
