"""Cache-sized parts: vectors on which several operations follow each other are worked through in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

PART = 1 << 16
"""Values handled at once; a multiple of every codec's block."""

Bounds = Sequence[tuple[int, int]]
"""First value and end of each slice of a fragment."""


def parts_of(low: int, high: int) -> Iterator[slice]:
    """The cache-sized parts of a range."""
    for start in range(low, high, PART):
        yield slice(start, min(start + PART, high))
