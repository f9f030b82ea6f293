"""Unit tests by name, called directly: so a test can say which others must fail."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from itertools import product
from typing import Any


def run_test(where: str) -> None:
    """Calls ``folder.file:test``, below ``tests.unit``, with all its parameters; it may need no fixtures."""
    place, _, name = where.partition(":")
    test = getattr(importlib.import_module(f"tests.unit.{place}"), name)
    for arguments in _arguments(test):
        test(**arguments)


def _arguments(test: Any) -> Iterator[dict[str, Any]]:
    """Each combination of what its `parametrize` marks give."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    for rows in product(*(mark.args[1] for mark in marks)):
        arguments: dict[str, Any] = {}
        for mark, row in zip(marks, rows, strict=True):
            names = mark.args[0]
            several = not isinstance(names, str)
            arguments |= zip(names, row, strict=True) if several else {names: row}
        yield arguments
