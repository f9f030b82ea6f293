from __future__ import annotations

import subprocess
import sys

import pytest

import runnel.optim


def test_every_public_name_can_be_imported() -> None:
    assert sorted(runnel.optim.__all__) == sorted(runnel.optim._HOMES)
    for name in runnel.optim.__all__:
        assert getattr(runnel.optim, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = runnel.optim.no_such_name


def test_planning_and_schedules_load_no_torch() -> None:
    code = (
        "import sys, runnel.optim as optim;"
        "optim.plan_fragments, optim.WindowSchedule;"
        "raise SystemExit(int('torch' in sys.modules or 'numpy' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
