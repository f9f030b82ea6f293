"""What README.md names exists, and what exists in the package is named there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TREE = re.search(r"<!-- tree.*?-->\n```text\n(.*?)\n```\n<!-- end of tree -->", README, re.DOTALL)
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README.split("## Files")[0], re.DOTALL | re.MULTILINE)
SHELL = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]


def tree_paths() -> list[str]:
    """Full paths of the tree's entries; folders end with a slash."""
    assert TREE, "README.md has no tree: run scripts/tree.py"
    folders: list[str] = []
    paths = []
    for line in TREE.group(1).splitlines():
        name = line.split()[0]
        folders = folders[: (len(line) - len(line.lstrip())) // 2]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def test_each_entry_of_the_tree_exists() -> None:
    assert [path for path in tree_paths() if not (ROOT / path).exists()] == []


def test_each_file_is_in_the_tree() -> None:
    folders = ("runnel", "scripts", "benchmarks", "examples", "docs", "tests")
    suffixes = {".py", ".md", ".typed", ""}
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in suffixes and "_build" not in path.parts
    }
    assert sorted(files - set(tree_paths())) == [], "run scripts/tree.py"


def test_each_module_of_the_package_says_what_it_is_for() -> None:
    assert TREE
    inside = TREE.group(1).split("\nrunnel/")[1].split("\nscripts/")[0].splitlines()[1:]
    assert [line.strip() for line in inside if len(line.split()) < 3] == []


@pytest.mark.parametrize("script", sorted({w for w in SHELL if w.startswith("scripts/")}))
def test_each_script_is_there_and_runs(script: str) -> None:
    path = ROOT / script.split()[0]
    assert path.is_file()
    assert os.access(path, os.X_OK)


def test_the_two_commands_are_on_the_first_screen() -> None:
    first = README.splitlines()[:25]
    assert any(line.startswith("scripts/demo") for line in first)
    assert any(line.startswith("scripts/test") for line in first)


VERBS = sorted({w.split()[1] for w in SHELL if w.startswith("runnel ") and len(w.split()) > 1})
HELP = """
import contextlib, io, json, sys
from runnel.tools.cli import main

said = {}
for verb in sys.argv[1:]:
    sys.argv = ["runnel", verb, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code
    said[verb] = code, out.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helped() -> dict[str, tuple[int, str]]:
    """By the verb: the exit code of `--help`, and what it printed; all in one process, asked in turn."""
    outcome = subprocess.run(
        [sys.executable, "-c", HELP, *VERBS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert outcome.returncode == 0, outcome.stderr
    answers: dict[str, tuple[int, str]] = json.loads(outcome.stdout)
    return answers


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_exists(helped: dict[str, tuple[int, str]], verb: str) -> None:
    code, said = helped[verb]
    assert code == 0
    assert verb in said


@pytest.mark.parametrize(
    "link", sorted({t for t in re.findall(r"\]\(([^)#]+)\)", README) if ":" not in t})
)
def test_each_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
