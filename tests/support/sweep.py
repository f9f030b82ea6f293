"""Thousands of random schedules, by hand: ``python -m tests.support.sweep FIRST COUNT [KIND ...]``.

Prints each seed as it is run. Kinds are those of `faults.SHAPES`, "quiet" (nothing fails) and "any" (a
kind drawn by the seed), which is what is run if none is named. What fails is written to `KEPT_FILE`,
whose schedules the unit tests run from then on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tests.support.faults import SHAPES
from tests.support.schedules import run_seed

KEPT_FILE = Path(__file__).with_name("kept_seeds.txt")
"""One schedule a line: ``SEED KIND``, and after a ``#`` what it is kept for."""
KINDS = ("any", "quiet", *SHAPES)


def kept(path: Path = KEPT_FILE) -> list[tuple[int, str]]:
    """The schedules of a file, seed and kind."""
    lines = (line.partition("#")[0].split() for line in path.read_text().splitlines())
    return [(int(words[0]), words[1]) for words in lines if words]


def keep(seed: int, kind: str, why: str, path: Path = KEPT_FILE) -> None:
    """Adds a schedule to a file, unless it is there."""
    if (seed, kind) not in kept(path):
        with path.open("a") as file:
            file.write(f"{seed} {kind}  # {why}\n")


def problem(seed: int, kind: str) -> str:
    """Why a schedule fails, or nothing."""
    try:
        run_seed(seed, calm=kind == "quiet", kind=kind if kind in SHAPES else "")
    except Exception as error:  # whatever the protocol raises is a finding
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    return ""


def sweep(first: int, count: int, kinds: list[str], path: Path = KEPT_FILE) -> Iterator[str]:
    """Runs schedules of each kind in turn; a line for each, and one with their number in the end."""
    failed = 0
    for seed in range(first, first + count):
        kind = kinds[seed % len(kinds)]
        why = problem(seed, kind)
        failed += bool(why)
        yield f"{seed} {kind} {why or 'ok'}"
        if why:
            keep(seed, kind, why, path)
    yield f"{count} schedules, {failed} failed"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    options = parser.parse_args()
    unknown = sorted(set(options.kinds) - set(KINDS))
    if unknown:
        parser.error(f"unknown kind {unknown[0]!r}, expected one of {', '.join(KINDS)}")
    for line in sweep(options.first, options.count, options.kinds or ["any"]):
        print(line, flush=True)


if __name__ == "__main__":
    main()
