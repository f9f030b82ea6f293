"""Which values of a model travel together: a pure plan from names and shapes, equal on all peers.

The rule, in this order:

1. The parameters are sorted by name (code points), which fixes every order below.
2. Home: a parameter whose name has a number among its dotted parts (``blocks.3.norm.weight``)
   belongs to that layer, and layer l goes to fragment l mod P, so that each fragment holds layers of
   all depths (*Streaming DiLoCo*, section 3.2, its strided pattern). Embeddings go to fragment 0,
   final norm and head to fragment P - 1.
3. Parameters with neither go, largest first, to the fragment that is smallest by then.
4. Balance: while a fragment is more than 10 % off the mean, the fullest gives its largest part to
   the emptiest, but no more than brings one of the two to the mean: of a larger part only the tail
   moves, so a huge parameter may lie in several fragments.

Values keep the order of their names inside a fragment. Every value of every parameter is in exactly
one fragment; `FragmentPlan` refuses anything else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from runnel.errors import BugError, ConfigError
from runnel.hashing import digest
from runnel.types import Digest

TOLERANCE = 0.1
"""Largest deviation of a fragment from the mean size that is left as it is."""

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_FIRST = re.compile(r"embed|(?:^|[._])(?:wte|wpe|emb)(?:[._]|$)")
_LAST = re.compile(
    r"unembed|(?:^|[._])(?:head|classifier|output|norm|final|ln_f|lnf|fc_out)(?:[._]|$)"
)


@dataclass(frozen=True, slots=True)
class ParameterShape:
    """A parameter's name and shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """Values ``start:stop`` of the flattened `parameter`, at `offset` of a fragment."""

    parameter: str
    start: int
    stop: int
    offset: int

    @property
    def numel(self) -> int:
        """Number of values."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class FragmentPlan:
    """All parameters and the pieces of each fragment, in order.

    Raises:
        BugError: a value is in no fragment or in two, or a piece is not where its fragment says.
    """

    shapes: tuple[ParameterShape, ...]
    fragments: tuple[tuple[Piece, ...], ...]
    sizes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Derives the sizes and checks that every value occurs exactly once."""
        sizes = tuple(sum(piece.numel for piece in pieces) for pieces in self.fragments)
        object.__setattr__(self, "sizes", sizes)
        _check_offsets(self.fragments)
        _check_cover(self.shapes, self.fragments)

    @property
    def num_fragments(self) -> int:
        """P."""
        return len(self.fragments)

    @property
    def numel(self) -> int:
        """Values in all fragments."""
        return sum(self.sizes)

    @property
    def edges(self) -> tuple[tuple[int, ...], ...]:
        """Where the pieces of each fragment begin in it, ascending."""
        return tuple(tuple(piece.offset for piece in pieces) for pieces in self.fragments)

    def homes(self, parameter: str) -> tuple[int, ...]:
        """The fragments that hold values of `parameter`, ascending; empty for an unknown name."""
        return tuple(
            index
            for index, pieces in enumerate(self.fragments)
            if any(piece.parameter == parameter for piece in pieces)
        )

    def fingerprint(self) -> Digest:
        """Digest of names, shapes and pieces: peers can exchange fragments if it is equal."""
        pieces = [
            [[piece.parameter, piece.start, piece.stop, piece.offset] for piece in fragment]
            for fragment in self.fragments
        ]
        shapes = [[shape.name, list(shape.shape)] for shape in self.shapes]
        text = json.dumps(["runnel.fragments.1", shapes, pieces], separators=(",", ":"))
        return digest(text.encode())


def plan_fragments(shapes: Sequence[ParameterShape], num_fragments: int) -> FragmentPlan:
    """Cuts parameters into `num_fragments` fragments of about equal size by the module's rule.

    Args:
        shapes: names (distinct) and shapes, in any order; empty parameters are allowed.
        num_fragments: P, at least 1 and at most the number of values.

    Raises:
        ConfigError: nothing to exchange, more fragments than values, or a name twice.
    """
    ordered = tuple(sorted(shapes, key=lambda shape: shape.name))
    _check_request(ordered, num_fragments)
    parts = _place(ordered, num_fragments)
    _balance(parts)
    return FragmentPlan(ordered, tuple(_laid_out(fragment) for fragment in parts))


def layer_of(name: str) -> int | None:
    """The layer number in a parameter's name: its first dotted part that is a number, or None."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece that has no offset yet."""

    name: str
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return self.stop - self.start

    def split(self, tail: int) -> tuple[_Part, _Part]:
        """This part without its last `tail` values, and those."""
        cut = self.stop - tail
        return _Part(self.name, self.start, cut), _Part(self.name, cut, self.stop)


def _check_request(ordered: Sequence[ParameterShape], num_fragments: int) -> None:
    total = sum(shape.numel for shape in ordered)
    if total == 0:
        raise ConfigError(
            "the model has 0 trainable values, expected at least 1;"
            " set requires_grad on the parameters that the swarm should train"
        )
    if not 1 <= num_fragments <= total:
        raise ConfigError(
            f"fragments is {num_fragments}, expected 1 to {total} (the model's number of values):"
            " use --set outer.fragments=1 --set rounds.open=1, in a program"
            ' runnel.local("outer.fragments=1", "rounds.open=1")'
        )
    for before, after in pairwise(ordered):
        if before.name == after.name:
            raise ConfigError(f"parameter {after.name!r} is named twice, expected distinct names")


def _place(ordered: Sequence[ParameterShape], num_fragments: int) -> list[list[_Part]]:
    parts: list[list[_Part]] = [[] for _ in range(num_fragments)]
    homeless: list[_Part] = []
    for shape in ordered:
        if shape.numel == 0:
            continue
        part = _Part(shape.name, 0, shape.numel)
        home = _home(shape.name, num_fragments)
        (homeless if home is None else parts[home]).append(part)
    for part in sorted(homeless, key=lambda part: (-part.numel, part.name)):
        min(parts, key=_size).append(part)
    return parts


def _home(name: str, num_fragments: int) -> int | None:
    layer = layer_of(name)
    if layer is not None:
        return layer % num_fragments
    lowered = name.lower()
    if _FIRST.search(lowered) and "unembed" not in lowered:
        return 0
    return num_fragments - 1 if _LAST.search(lowered) else None


def _balance(parts: list[list[_Part]]) -> None:
    """Moves parts from the fullest to the emptiest fragment until all are near the mean.

    Each move lowers the summed distance to the mean, and either empties a part out of the fullest
    fragment or brings one of the two within one value of the mean, so it ends.
    """
    total = sum(_size(fragment) for fragment in parts)
    low, high = total // len(parts), -(-total // len(parts))
    least = min(low, math.ceil((1 - TOLERANCE) * total / len(parts)))
    most = max(high, math.floor((1 + TOLERANCE) * total / len(parts)))
    while True:
        fullest, emptiest = max(parts, key=_size), min(parts, key=_size)
        if _size(fullest) <= most and _size(emptiest) >= least:
            return
        _move(fullest, emptiest, min(_size(fullest) - low, high - _size(emptiest)))


def _move(giver: list[_Part], taker: list[_Part], numel: int) -> None:
    """Moves the giver's largest part, or the last `numel` values of it if it has more."""
    chosen = min(giver, key=lambda part: (-part.numel, part.name, part.start))
    giver.remove(chosen)
    if chosen.numel > numel:
        kept, chosen = chosen.split(numel)
        giver.append(kept)
    taker.append(chosen)


def _size(parts: Iterable[_Part]) -> int:
    return sum(part.numel for part in parts)


def _laid_out(parts: Iterable[_Part]) -> tuple[Piece, ...]:
    """Pieces in name order; neighbouring ranges of one parameter become one."""
    pieces: list[Piece] = []
    offset = 0
    for part in sorted(parts, key=lambda part: (part.name, part.start)):
        last = pieces[-1] if pieces else None
        if last and (last.parameter, last.stop) == (part.name, part.start):
            pieces[-1] = Piece(part.name, last.start, part.stop, last.offset)
        else:
            pieces.append(Piece(part.name, part.start, part.stop, offset))
        offset += part.numel
    return tuple(pieces)


def _check_offsets(fragments: Sequence[Sequence[Piece]]) -> None:
    for index, pieces in enumerate(fragments):
        offset = 0
        for piece in pieces:
            if piece.offset != offset or piece.numel <= 0:
                raise BugError(f"fragment {index}: {piece} seen, expected offset {offset}")
            offset += piece.numel


def _check_cover(shapes: Sequence[ParameterShape], fragments: Sequence[Sequence[Piece]]) -> None:
    reached = {shape.name: 0 for shape in shapes}
    for piece in sorted(piece for pieces in fragments for piece in pieces):
        if reached.get(piece.parameter) != piece.start:
            raise BugError(f"{piece} seen, expected a start at {reached.get(piece.parameter)}")
        reached[piece.parameter] = piece.stop
    for shape in shapes:
        if reached[shape.name] != shape.numel:
            raise BugError(
                f"{shape.name}: {reached[shape.name]} of {shape.numel} values are in a fragment"
            )
