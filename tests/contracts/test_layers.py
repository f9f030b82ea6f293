"""The import contracts hold, and they bite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("tools", "node", "dht", "optim", "verification", "kernels")
ADAPTERS = ("hivemind", "libp2p")
MODULES = ("__main__", "protocols", "errors", "types", "clock", "hashing", "files")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = "import sys; from importlinter.cli import lint_imports_command as c; c()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--config", str(ROOT / "pyproject.toml")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """A package with our folders and nothing in them."""
    for name in PACKAGES:
        (tmp_path / "runnel" / name).mkdir(parents=True)
        (tmp_path / "runnel" / name / "__init__.py").touch()
    for name in ADAPTERS:
        (tmp_path / "runnel" / "dht" / name).mkdir()
        for module in ("__init__", "new"):
            (tmp_path / "runnel" / "dht" / name / f"{module}.py").touch()
    for name in ("__init__", *MODULES):
        (tmp_path / "runnel" / f"{name}.py").touch()
    return tmp_path


def test_the_package_keeps_its_contracts() -> None:
    outcome = lint_imports(ROOT)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_an_empty_package_keeps_them(skeleton: Path) -> None:
    outcome = lint_imports(skeleton)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("kernels/new.py", "import runnel.node"),
        ("optim/new.py", "import runnel.dht"),
        ("types.py", "import runnel.errors"),
        ("dht/transport.py", "import hivemind"),
        ("dht/transport.py", "import libp2p"),
        ("node/new.py", "import trio"),
        ("dht/libp2p/new.py", "import runnel.dht.hivemind.new"),
        ("dht/hivemind/new.py", "import runnel.dht.libp2p.new"),
        ("dht/new.py", "import numpy"),
        ("hashing.py", "import torch"),
        ("optim/new.py", "import threading"),
        ("verification/new.py", "import asyncio"),
        ("surprise.py", ""),
    ],
)
def test_a_forbidden_import_or_an_unplaced_module_is_found(
    skeleton: Path, module: str, line: str
) -> None:
    (skeleton / "runnel" / module).write_text(line + "\n")
    outcome = lint_imports(skeleton)
    assert outcome.returncode != 0
    assert "BROKEN" in outcome.stdout or "surprise" in outcome.stdout, outcome.stdout


def test_each_network_is_imported_by_its_adapter(skeleton: Path) -> None:
    for library in ADAPTERS:
        module = skeleton / "runnel" / "dht" / library / "new.py"
        module.write_text(f"import {library}\n")
    outcome = lint_imports(skeleton)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
