"""Coming in: what is told before anything starts, and what is loaded afterwards."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from torch import nn

import runnel
from runnel.clock import SystemClock
from runnel.errors import ConfigError, NetworkError
from runnel.node.entrance import enter


def test_arithmetic_that_cannot_be_had_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RUNNEL_KERNELS", "fortran")
    with pytest.raises(ConfigError, match="fortran"):
        enter(runnel.local(home=tmp_path / "home", host="127.0.0.1"))


def test_a_peer_trains_while_its_arithmetic_is_loading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loading, stepped = threading.Event(), threading.Event()

    def slow(*_: str) -> str:
        loading.set()
        assert stepped.wait(60)
        return "numba"

    monkeypatch.setattr("runnel.node.first_step.warm_up", slow)
    model = nn.Linear(3, 2)
    place = runnel.local("outer.every_steps=4", home=tmp_path / "home", host="127.0.0.1")
    with runnel.Peer(place, model=model) as peer:
        assert not loading.is_set()
        peer.step(1.0)
        assert loading.wait(60), "it begins after the first step"
        peer.step(1.0)
        stepped.set()
        clock = SystemClock()
        deadline_s = clock.monotonic_s() + 60
        while peer.round < 0 and clock.monotonic_s() < deadline_s:
            peer.step(1.0)
        assert peer.round >= 0, "what waited for the arithmetic was done once it was there"


def test_a_network_that_does_not_start_in_time_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("runnel.node.entrance.start_network", never)
    monkeypatch.setattr("runnel.node.entrance._START_S", 0.1)
    with pytest.raises(NetworkError, match=r"did not start within 0\.1 s"):
        enter(runnel.local(home=tmp_path / "home", host="127.0.0.1"))
