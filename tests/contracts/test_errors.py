"""Every way to fail is documented, and the documentation names nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from runnel import errors

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| *(\d+) *\| *([^|]+?) *\|", re.MULTILINE)


def documented() -> dict[int, str]:
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    return {int(code): name.strip("`") for code, name in ROW.findall(page)}


def kinds() -> list[type[errors.RunnelError]]:
    """The errors of errors.py that end a command; others inherit the code of one of them."""
    named = (getattr(errors, name) for name in dir(errors))
    found = [kind for kind in named if isinstance(kind, type) and kind is not errors.PeerError]
    return [kind for kind in found if issubclass(kind, errors.RunnelError)]


def raised() -> dict[int, str]:
    return {kind.exit_code: kind.__name__ for kind in kinds()}


def test_each_exit_code_is_documented_under_its_error() -> None:
    page = documented()
    assert {code: page.get(code) for code in raised()} == raised()


def test_the_page_names_no_code_that_nothing_uses() -> None:
    assert set(documented()) == {0, *raised(), errors.EXIT_INTERRUPTED}


def test_no_two_errors_share_a_code() -> None:
    assert len(raised()) == len(kinds())
