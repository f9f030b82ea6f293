"""What a step of the chain needs in place of results, and what it changes on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from runnel.node.actions import RoundKey
from runnel.node.records import Record, RecordKind
from runnel.node.storage_keys import Updates
from runnel.optim.exchange import Merge
from runnel.protocols import Float32
from runnel.types import Digest, PeerId

logger = logging.getLogger(__name__)


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


def rounds_by_fragment(records: Iterable[Record], fragments: int) -> dict[int, list[Record]]:
    """Those of rounds that were not aborted, by the fragment that they are of."""
    rounds: dict[int, list[Record]] = {}
    for record in records:
        if record.kind is RecordKind.ROUND:
            rounds.setdefault(record.number % fragments, []).append(record)
    return rounds


def warn_of_forgotten(given_up: Sequence[Record], me: PeerId, kept: Iterable[RoundKey]) -> None:
    """Contributions are kept for some windows: beyond, what the swarm took from them is lost with it."""
    known = {key.number for key in kept}
    ours = [record.number for record in given_up if me in {share.peer for share in record.shares}]
    forgotten = [number for number in ours if number not in known]
    if forgotten:
        logger.warning(
            "the chain gives up %d rounds with contributions of this peer that are not kept any"
            " more, up to round %d: what it gave to them is lost",
            len(forgotten),
            max(forgotten),
        )
