"""Machines without POSIX: the package imports, and its storage and whole peers work, with Windows' rules.

This is Linux with names taken away and rules put in (`tests/support/windows.py`), not Windows.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc/self/fd")
STORAGE = ("test_journal", "test_durable", "test_blobs", "test_atomic", "test_checkpoint")
BOTH = """
from tests.support.windows import make_windows
make_windows()
import importlib, pkgutil, runpy, sys, runnel
absent = {"hivemind", "libp2p", "trio", "triton"}
for module in pkgutil.walk_packages(runnel.__path__, "runnel."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        assert str(error.name).split(".")[0] in absent, error
print("all is imported", flush=True)
sys.argv[0] = "simulate"
sys.modules.pop("runnel.tools.simulate")  # what is run is not there yet
runpy.run_module("runnel.tools.simulate", run_name="__main__", alter_sys=True)
"""
"""Imports every module, then runs a simulation: what both need first takes longer than either."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    out = str(tmp_path_factory.mktemp("windows") / "sim")
    arguments = ("--peers", "2", "--minutes", "1", "--seed", "3", "--out", out)
    return run("-X", "warn_default_encoding", "-c", BOTH, *arguments)


@LINUX
@pytest.mark.timeout(300)
def test_every_module_imports_where_posix_is_missing(
    done: subprocess.CompletedProcess[str],
) -> None:
    assert "all is imported" in done.stdout, done.stderr[-3000:]


@LINUX
@pytest.mark.timeout(300)
def test_whole_peers_store_and_learn_where_open_files_cannot_be_moved(
    done: subprocess.CompletedProcess[str],
) -> None:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "EVERYTHING HELD" in done.stdout


@LINUX
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tests_of_the_storage_pass_where_posix_is_missing() -> None:
    files = [f"tests/unit/node/{name}.py" for name in STORAGE]
    done = run(
        *("-m", "pytest", "-p", "tests.support.windows", "-p", "no:cacheprovider", "-q"),
        *(
            "--timeout-method=thread",
            "-k",
            "not another_process",
            *files,
        ),  # one that is not so changed
    )
    assert done.returncode == 0, done.stdout[-3000:]
