"""The public interface is what `__all__` says, and asking for it costs little."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import runnel

ROOT = Path(__file__).parents[2]
FACES = sorted((ROOT / "runnel").glob("*/__init__.py"))


def cpu_and_modules(code: str, *, limit_s: float, tries: int = 5) -> tuple[float, set[str]]:
    """CPU seconds and what was imported; tried again if it took too long: other processes can only add."""
    script = (
        f"import json, sys, time\nstart = time.process_time()\n{code}\n"
        "print(json.dumps([time.process_time() - start, sorted(sys.modules)]), file=sys.stderr)"
    )
    seconds, modules = limit_s, list[str]()
    for _ in range(tries):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        seconds, modules = json.loads(done.stderr.splitlines()[-1])
        if seconds < limit_s:
            break
    return seconds, set(modules)


def test_the_public_names_are_few_and_each_one_is_there() -> None:
    assert len(runnel.__all__) <= 20
    assert len(set(runnel.__all__)) == len(runnel.__all__)
    assert [name for name in runnel.__all__ if getattr(runnel, name, None) is None] == []


def test_the_names_for_editors_are_the_names_at_run_time() -> None:
    """Type checkers read the TYPE_CHECKING block, Python reads `_HOMES`: they must agree."""
    tree = ast.parse((ROOT / "runnel" / "__init__.py").read_text())
    seen_by_editors = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("runnel")
        for alias in node.names
    }
    assert seen_by_editors == runnel._HOMES
    assert set(runnel.__all__) - {"__version__"} == set(runnel._HOMES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pear'"):
        _ = runnel.Pear


def test_dir_names_what_is_not_imported_yet() -> None:
    assert set(runnel.__all__) <= set(dir(runnel))


@pytest.mark.parametrize("face", FACES, ids=lambda path: path.parent.name)
def test_each_folder_says_what_is_public(face: Path) -> None:
    module = importlib.import_module(f"runnel.{face.parent.name}")
    names = module.__all__
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(module, name)] == []


def test_importing_runnel_is_light() -> None:
    seconds, modules = cpu_and_modules("import runnel", limit_s=0.05)
    assert modules.isdisjoint({"torch", "numpy", "hivemind", "numba", "typer", "pydantic"})
    assert seconds < 0.05


def test_help_is_quick_and_imports_no_torch() -> None:
    seconds, modules = cpu_and_modules(
        "from runnel.tools.cli import main\n"
        "sys.argv = ['runnel', '--help']\n"
        "try:\n    main()\nexcept SystemExit as exit:\n    assert not exit.code",
        limit_s=0.4,
    )
    assert modules.isdisjoint({"torch", "hivemind", "numba"})
    assert seconds < 0.4
