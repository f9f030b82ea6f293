"""The hooks before a commit run what scripts/test runs, with the same arguments."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_hooks_are_the_commands_of_scripts_test() -> None:
    script = (ROOT / "scripts" / "test").read_text()
    commands = re.findall(r'^(?:exec )?"\$bin/([\w-]+)"(.*)$', script, re.MULTILINE)
    expected = [f".venv/bin/{name}{arguments.removesuffix(' &')}" for name, arguments in commands]
    assert len(expected) == 6
    # A commit must not take minutes: the tests are those of one folder.
    expected[-1] = expected[-1].replace('"$@"', "tests/contracts")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"entry: (.*)", hooks) == expected
    assert hooks.count("pass_filenames: false") == len(expected)
