"""Coming in: what is loaded while the network starts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import runnel
from runnel.errors import ConfigError, NetworkError
from runnel.kernels import warm_up
from runnel.node.entrance import _load_kernels, enter
from runnel.node.runtime import Runtime


def test_arithmetic_that_cannot_be_had_is_told_when_it_is_needed_and_ends_nothing_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUNNEL_KERNELS", "fortran")
    runtime = Runtime().start()
    try:
        runtime.call(_load_kernels, runtime, timeout_s=60)
        assert runtime.failure is None
        with pytest.raises(ConfigError, match="fortran"):
            runtime.call(runtime.codec, warm_up, timeout_s=60)
    finally:
        runtime.close()


def test_a_network_that_does_not_start_in_time_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("runnel.node.entrance.start_network", never)
    monkeypatch.setattr("runnel.node.entrance._START_S", 0.1)
    with pytest.raises(NetworkError, match=r"did not start within 0\.1 s"):
        enter(runnel.local(home=tmp_path / "home", host="127.0.0.1"))
