"""Records that were told of and never followed: how much room they take, and whose they are. Pure.

Anybody with a ticket can sign a branch from any record, and records on it, without end. Honest members
bring few: those of a path that does not beat ours are asked for no further than where they part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from runnel.types import Digest, PeerId

MAX_ASIDE_BYTES = 4 << 20
"""Encoded records that are kept aside: the first ones of some paths of the largest swarm.

What is forgotten of an honest member's is told again when it is asked for.
"""


@dataclass(slots=True)
class Aside:
    """The books of it, oldest first; a record comes after the one that it follows."""

    _sizes: dict[Digest, tuple[int, PeerId]] = field(default_factory=dict)
    _total: int = 0

    @property
    def total_bytes(self) -> int:
        """The encoded size of all."""
        return self._total

    def put(self, name: Digest, size_bytes: int, source: PeerId) -> None:
        """Notes a record that `source` told of."""
        if name not in self._sizes:
            self._sizes[name] = size_bytes, source
            self._total += size_bytes

    def take(self, name: Digest) -> None:
        """Notes that a record is followed, or forgotten."""
        size_bytes, _ = self._sizes.pop(name, (0, PeerId(b"")))
        self._total -= size_bytes

    def excess(
        self, parent_of: Callable[[Digest], Digest], wanted: Collection[Digest]
    ) -> tuple[list[Digest], PeerId]:
        """What to forget so that half of the room is free, and who told of most of what is kept aside.

        The oldest go first, each with all that follow it; `wanted`, a path we are about to follow, stay.
        """
        shares: Counter[PeerId] = Counter()
        gone: dict[Digest, None] = {}
        left = self._total
        for name, (size_bytes, source) in self._sizes.items():
            if name in wanted:
                continue
            shares[source] += size_bytes
            if left > MAX_ASIDE_BYTES // 2 or parent_of(name) in gone:
                gone[name] = None
                left -= size_bytes
        return list(gone), max(shares, key=shares.__getitem__) if shares else PeerId(b"")
