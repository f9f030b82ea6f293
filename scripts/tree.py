#!/usr/bin/env python3
"""Renews the tree at the end of README.md: one line per file, from its docstring, heading or comment."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tree: written by scripts/tree.py -->", "<!-- end of tree -->"
FOLDERS = {
    ".ci": "what continuous integration runs",
    "benchmarks": "figures, each `python -m benchmarks.NAME [--quick] [--json]`",
    "docs": "pages for people, built by scripts/docs",
    "docs/decisions": "one page per decision",
    "examples": "short programs; the tests run them",
    "runnel": "the package",
    "scripts": "commands of this repository",
    "tests": "claims about all of it",
    "tests/contracts": "what all code promises",
    "tests/swarm": "real daemons and processes",
    "tests/unit": "one file per module",
}
FILES = {
    ".gitignore": "what is made, not kept",
    ".pre-commit-config.yaml": "the checks of scripts/test before each commit",
    "ARCHITECTURE.md": "the picture, the round, the threads, where do I change what",
    "CHANGELOG.md": "what users notice, wire and manifest changes apart",
    "CONTRIBUTING.md": "how to work on it, and the house rules",
    "LICENSE": "Apache-2.0",
    "README.md": "this page",
    "constraints.txt": "the versions that are tested",
    "pyproject.toml": "package, dependencies, settings of all tools",
    "runnel/py.typed": "tells type checkers that the package is typed",
}
SKIPPED = {"__pycache__", "_build", ".git", ".venv", "runs", "dist", "build"}
WIDTH = 108


def description(path: Path) -> str:
    """What a file is for, in one line."""
    name = path.relative_to(ROOT).as_posix()
    if name in FILES:
        return FILES[name]
    text = path.read_text(errors="replace")
    if path.suffix == ".py":
        return sentence(ast.get_docstring(ast.parse(text)) or "")
    if path.suffix == ".md":
        return next(
            (
                re.sub(r"^# (\d+: )?", "", line)
                for line in text.splitlines()
                if line.startswith("#")
            ),
            "",
        )
    comment = re.search(r"^# (.+)$", text, re.MULTILINE)
    return sentence(comment.group(1)) if comment else ""


def sentence(text: str) -> str:
    """The first sentence, without its full stop."""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z0-9)`\"])[.;] ", first + " ")[0].strip().rstrip(".")


def lines(folder: Path, depth: int) -> list[str]:
    """The folder's entries, files first, each indented below its folder."""
    found = []
    for path in sorted(folder.iterdir(), key=lambda entry: (entry.is_dir(), entry.name)):
        name = path.relative_to(ROOT).as_posix()
        if path.name in SKIPPED or path.suffix == ".pyc" or is_hidden(path):
            continue
        if path.is_dir():
            below = lines(path, depth + 1)
            if below:
                text = FOLDERS.get(name) or face(path)
                found += [entry("  " * depth + path.name + "/", text), *below]
        else:
            found.append(entry("  " * depth + path.name, description(path)))
    return found


def is_hidden(path: Path) -> bool:
    """Caches and the like; the few hidden files that are ours have a description."""
    name = path.relative_to(ROOT).as_posix()
    return path.name.startswith(".") and name not in FILES and name not in FOLDERS


def face(folder: Path) -> str:
    """What a package says of itself."""
    init = folder / "__init__.py"
    return description(init) if init.exists() else ""


def entry(name: str, text: str) -> str:
    """One line of the tree, cut at a word if it is too long."""
    line = f"{name:<32} {text}".rstrip()
    return line if len(line) <= WIDTH else line[: WIDTH - 4].rsplit(" ", 1)[0] + " ..."


def main() -> int:
    """Writes the tree, or with --check only compares; returns an exit code."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tree = "\n".join(lines(ROOT, 0))
    renewed = f"{before}{BEGIN}\n```text\n{tree}\n```\n{END}{after}"
    if "--check" in sys.argv[1:]:
        return int(renewed != text)
    readme.write_text(renewed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
