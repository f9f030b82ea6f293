"""Coming in: what is loaded while the network starts."""

from __future__ import annotations

import pytest

from runnel.errors import ConfigError
from runnel.kernels import warm_up
from runnel.node.entrance import _load_kernels
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
