"""What is compiled is told of once, and what the cache has is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import runnel

FUNCTIONS = """
from numba import njit, types


@njit(types.int64(types.int64), cache=True)
def one_more(x):
    return x + 1


@njit(types.int64(types.int64), cache=True)
def two_more(x):
    return x + 2
"""

PROGRAM = """
import logging
import sys
import runnel
from runnel.kernels.first_compile import tell_when_compiling

logging.basicConfig(level="INFO", format="%(message)s")
tell_when_compiling()
tell_when_compiling()
import somebodys
logging.info("ours")
runnel.__path__.append(sys.argv[1])
import runnel.ours
"""


def said_by(folder: Path) -> list[str]:
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(Path(runnel.__file__).parents[1]), str(folder)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stderr.splitlines()


def test_the_first_function_of_ours_that_is_compiled_is_told_of(tmp_path: Path) -> None:
    for name in ("ours", "somebodys"):
        (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    ours, line = said_by(tmp_path)
    assert ours == "ours"
    assert line.startswith("compiling arithmetic, once")
    assert said_by(tmp_path) == ["ours"]
