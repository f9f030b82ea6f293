"""What all benchmarks share: the options ``--quick`` and ``--json``, and the line of JSON at the end."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from runnel.errors import RunnelError

Say = Callable[[str], None]
"""Takes a line for people."""


def benchmark_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser for ``python -m benchmarks.NAME`` that knows ``--quick`` and ``--json``."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="less of everything, under a minute")
    parser.add_argument("--json", action="store_true", help="print the line of JSON and no table")
    return parser


def report(measure: Callable[[Say], Mapping[str, Any]], *, json_only: bool) -> int:
    """Measures, prints the result as one line of JSON, and gives the exit code.

    An error that a person can act on becomes one line on stderr, and its own exit code.

    Args:
        measure: takes a printer of lines for people (silent if `json_only`), gives the result.
        json_only: whether the line of JSON is all that stdout gets.
    """
    try:
        result = measure(_silent if json_only else _say)
    except RunnelError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(result, allow_nan=False))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    del line
