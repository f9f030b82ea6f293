"""What a field of a wire message may hold, as data: words for the protocol page, and values that must pass or fail.

`variants` changes a good message in one place at a time, so that the page's types and limits can be held
against the decoders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from runnel.types import PEER_ID_PREFIX

_NOTHING_LIKE_IT: tuple[Any, ...] = (None, [], "", b"", 0, 1.0, True)
"""One value of each type that messages have."""


@dataclass(frozen=True)
class Scalar:
    """One value.

    Attributes:
        words: what the page says of it.
        good: values at the edges of what passes.
        bad: values just beyond them.
    """

    words: str
    good: tuple[Any, ...]
    bad: tuple[Any, ...] = ()

    def refused(self) -> Iterator[Any]:
        """What must not pass: `bad`, and every other type."""
        types = {type(value) for value in self.good}
        yield from self.bad
        yield from (value for value in _NOTHING_LIKE_IT if type(value) not in types)


@dataclass(frozen=True)
class Row:
    """An array of named fields; `optional`: or an empty one, for none."""

    name: str
    fields: tuple[tuple[str, Kind], ...]
    optional: bool = False
    words: str = ""

    def __post_init__(self) -> None:
        text = f"[{self.name}](#{self.name.replace(' ', '-')})"
        object.__setattr__(self, "words", f"{text}, or `[]` for none" if self.optional else text)


@dataclass(frozen=True)
class Many:
    """An array of up to `limit` values of one kind."""

    kind: Kind
    limit: int
    words: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", f"array of up to {self.limit:,}: {self.kind.words}")


Kind = Scalar | Row | Many


def integer(low: int = 0) -> Scalar:
    high = (1 << 62) - 1
    return Scalar(f"integer, {low} to 2^62 - 1", (low, high), (low - 1, high + 1))


def up_to(limit: int, what: str = "bytes") -> Scalar:
    return Scalar(f"{what}, at most {limit}", (b"", bytes(limit)), (bytes(limit + 1),))


def one_of(*values: Any) -> Scalar:
    words = " or ".join(f'`"{v}"`' if isinstance(v, str) else f"`{v}`" for v in values)
    beyond = ("other",) if isinstance(values[0], str) else (min(values) - 1, max(values) + 1)
    return Scalar(words, values, beyond)


DIGEST = Scalar("digest, 32 bytes", (bytes(32), b"\xff" * 32), (b"", bytes(31), bytes(33)))
MAYBE_DIGEST = Scalar("digest, or 0 bytes for none", (bytes(32), b""), (bytes(31), bytes(33)))
PEER = Scalar(
    "peer id, 38 bytes", (PEER_ID_PREFIX + bytes(32),), (b"", bytes(32), PEER_ID_PREFIX + bytes(33))
)
SIGNATURE = up_to(64, "[signature](#what-is-signed): bytes")
NUMBER = Scalar("finite float", (0.0, -1.5, 1e300), (float("inf"), float("-inf")))
TICKET = up_to(512, "[ticket](#ticket): bytes")
NONCE = up_to(32)
PLACES = Scalar(
    "array of 1 to 64 integers, ascending, each 0 to 63",
    ([0], [63], list(range(64))),
    ([], [1, 0], [0, 0], [64], [-1], [True], [0.0], list(range(65))),
)


def variants(kind: Kind, value: Any) -> Iterator[tuple[Any, bool]]:
    """`value` with one thing changed each time, and whether it may pass."""
    if isinstance(kind, Scalar):
        yield from ((good, True) for good in kind.good)
        yield from ((bad, False) for bad in kind.refused())
    elif isinstance(kind, Many):
        yield from ((other, False) for other in _NOTHING_LIKE_IT if other != [])
        first = value[0] if value else sample(kind.kind)
        yield [first] * kind.limit, True
        yield [first] * (kind.limit + 1), False
        yield from (([one, *value[1:]], good) for one, good in variants(kind.kind, first))
    else:
        yield from _of_row(kind, value)


def sample(kind: Kind) -> Any:
    """A value that passes."""
    if isinstance(kind, Scalar):
        return kind.good[0]
    return [] if isinstance(kind, Many) else [sample(inner) for _, inner in kind.fields]


def _of_row(kind: Row, value: Sequence[Any]) -> Iterator[tuple[Any, bool]]:
    value = value or sample(kind)
    if kind.fields:
        yield [], kind.optional
    yield from ((other, False) for other in _NOTHING_LIKE_IT if other != [])
    yield [*value, 0], False
    yield from ((short, False) for short in (value[:-1],) if short)
    for place, (_, inner) in enumerate(kind.fields):
        for one, good in variants(inner, value[place]):
            yield [*value[:place], one, *value[place + 1 :]], good


def misfit(kind: Kind, value: Any, where: str = "") -> str:
    """Where a value has another shape than its kind, or nothing."""
    if isinstance(kind, Scalar):
        fits = type(value) in {type(good) for good in kind.good}
        return "" if fits else f"{where}: {value!r}"
    if not isinstance(value, list):
        return f"{where}: {value!r} is no array"
    if isinstance(kind, Many):
        found = (misfit(kind.kind, one, f"{where}[{i}]") for i, one in enumerate(value))
        return next(filter(None, found), "" if len(value) <= kind.limit else f"{where}: too long")
    if kind.optional and value == []:
        return ""
    if len(value) != len(kind.fields):
        return f"{where}: {len(value)} fields"
    found = (misfit(k, v, f"{where}.{n}") for (n, k), v in zip(kind.fields, value, strict=True))
    return next(filter(None, found), "")


def rows_in(kind: Kind) -> Iterator[Row]:
    """All rows within a kind, the outermost first."""
    if isinstance(kind, Many):
        yield from rows_in(kind.kind)
    elif isinstance(kind, Row):
        yield kind
        yield from chain.from_iterable(rows_in(inner) for _, inner in kind.fields)
