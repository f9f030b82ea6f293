"""What a step of the chain needs in place of results, and what it changes on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runnel.node.storage_keys import Updates
from runnel.optim.exchange import Merge
from runnel.protocols import Float32
from runnel.types import Digest


@dataclass(frozen=True, slots=True)
class Landing:
    """A record further on, its number, and the states that change up to it.

    States are parameters and momentum, by fragment.
    """

    record: Digest
    number: int
    states: Mapping[int, tuple[Float32, Float32]]


@dataclass(slots=True)
class Moves:
    """What a step of the chain changes on disk.

    `changed` tells, by fragment, the record its state comes from, and whether results and
    contributions on disk lead there.
    """

    updates: Updates = field(default_factory=dict)
    changed: dict[int, tuple[int, bool]] = field(default_factory=dict)

    def to(self, number: int, merge: Merge, *, plain: bool) -> None:
        """A fragment is now at the state after record `number`."""
        _, before = self.changed.get(merge.fragment, (number, True))
        self.changed[merge.fragment] = (number, before and plain)
