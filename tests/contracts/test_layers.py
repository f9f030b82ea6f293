"""The import contracts hold, and they bite."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("tools", "node", "dht", "optim", "verification", "kernels")
ADAPTERS = ("hivemind", "libp2p")
MODULES = ("__main__", "protocols", "errors", "types", "clock", "hashing", "files")


LINT = """
import contextlib, importlib, io, json, sys
from importlinter.cli import lint_imports

found = []
for folder in sys.argv[2:]:
    sys.path[0] = folder
    importlib.invalidate_caches()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = lint_imports(config_filename=sys.argv[1], no_cache=True)
    found.append((code, out.getvalue()))
print(json.dumps(found))
"""
"""Looks at the package of each folder in turn: what the linter imports takes longer than what it does."""

FORBIDDEN = [
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
]
ALLOWED = [(f"dht/{library}/new.py", f"import {library}") for library in ADAPTERS]


def skeleton(folder: Path, *lines: tuple[str, str]) -> Path:
    """A package with our folders and nothing in them but these lines of modules."""
    for name in PACKAGES:
        (folder / "runnel" / name).mkdir(parents=True)
        (folder / "runnel" / name / "__init__.py").touch()
    for name in ADAPTERS:
        (folder / "runnel" / "dht" / name).mkdir()
        for module in ("__init__", "new"):
            (folder / "runnel" / "dht" / name / f"{module}.py").touch()
    for name in ("__init__", *MODULES):
        (folder / "runnel" / f"{name}.py").touch()
    for module, line in lines:
        (folder / "runnel" / module).write_text(line + "\n")
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What the linter says of the package, of an empty one, and of those with a line more; and its exit code."""
    folders = {
        "package": ROOT,
        "empty": skeleton(tmp_path_factory.mktemp("empty")),
        "allowed": skeleton(tmp_path_factory.mktemp("allowed"), *ALLOWED),
    }
    for module, line in FORBIDDEN:
        folders[f"{module} {line}"] = skeleton(tmp_path_factory.mktemp("bad"), (module, line))
    outcome = subprocess.run(
        [sys.executable, "-c", LINT, str(ROOT / "pyproject.toml"), *map(str, folders.values())],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert outcome.returncode == 0, outcome.stderr
    return dict(zip(folders, json.loads(outcome.stdout), strict=True))


@pytest.mark.parametrize("package", ["package", "empty"])
def test_the_package_keeps_its_contracts_and_so_does_an_empty_one(
    found: dict[str, tuple[int, str]], package: str
) -> None:
    code, said = found[package]
    assert code == 0, said


@pytest.mark.parametrize(("module", "line"), FORBIDDEN)
def test_a_forbidden_import_or_an_unplaced_module_is_found(
    found: dict[str, tuple[int, str]], module: str, line: str
) -> None:
    code, said = found[f"{module} {line}"]
    assert code != 0
    assert "BROKEN" in said or "surprise" in said, said


def test_each_network_is_imported_by_its_adapter(found: dict[str, tuple[int, str]]) -> None:
    code, said = found["allowed"]
    assert code == 0, said
