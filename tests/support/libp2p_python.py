"""The interpreter that has libp2p for Python: another environment than that of the tests, if need be."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

PYTHON_VARIABLE = "RUNNEL_LIBP2P_PYTHON"


def libp2p_python() -> str:
    """The path of the interpreter; skips the test if there is none."""
    given = os.environ.get(PYTHON_VARIABLE)
    if given:
        return given
    if importlib.util.find_spec("libp2p") is None:
        pytest.skip(
            f"the extra libp2p is not installed here; {PYTHON_VARIABLE} names another Python"
        )
    return sys.executable
