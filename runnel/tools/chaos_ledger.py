"""Whether anything that peers learned got lost or counted twice, read from a chain and the state it led to.

In each inner step a peer of a chaos run lowers its own cell of a vector by `UNIT` and counts one token.
Its contribution to a round is then ``-UNIT * tokens`` in that cell, tokens and all being since the last
round that included it; nobody else has anything there. With plain averaging by tokens, learning rate 1
and no momentum, a record moves the cell by ``-UNIT * tokens**2 / sum(tokens)``, tokens those of the
shares that its slice includes. A share that is lost, or taken twice, leaves the cell elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from runnel.errors import BugError
from runnel.node.durable import read_snapshot
from runnel.node.outcomes import genesis_record
from runnel.node.outer_state import STATE_FOLDER, blobs_of, plan_of, read_outer_state
from runnel.node.records import Record, RecordKind
from runnel.node.rounds import slice_bounds
from runnel.node.storage_keys import restore

if TYPE_CHECKING:
    from pathlib import Path

    from runnel.optim.fragments import FragmentPlan
    from runnel.types import PeerId

LEDGER = "ledger"
"""The parameter's name."""

CELLS = 16
UNIT = 2.0**-10
SETTINGS = (
    "outer.lr=1.0",
    "outer.momentum=0.0",
    "outer.mixing=0.0",
    "outer.aggregator=weighted-mean",
    "outer.codec=fp32",
    "outer.result_codec=fp32",
    "outer.max_weight_tokens=1000000",
)
"""What a run needs for its ledger to add up."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One peer's cell.

    Attributes:
        slot: which.
        expected: where the chain's records must have moved it.
        found: where it is.
        shares: records that moved it.
        usual: what one of them moved it by, the median.
        largest: the most that one of them moved it.
    """

    slot: int
    expected: float
    found: float
    shares: int
    usual: float
    largest: float

    @property
    def missing(self) -> float:
        """What it lacks, in parts of a usual share: 1 for such a share lost, -1 for one too many."""
        return (self.found - self.expected) / self.usual if self.usual else -self.found

    @property
    def largest_share(self) -> float:
        """The largest share in parts of a usual one."""
        return self.largest / self.usual if self.usual else 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where the ledger is: which of how many fragments, its first value there, the fragment's size."""

    fragment: int
    fragments: int
    offset: int
    size: int


def read_cells(folder: Path, slots: Mapping[PeerId, int]) -> list[Cell]:
    """Every peer's cell by what the peer of a run's `folder` has on disk; it does not run any more.

    Raises:
        RunnelError: the folder holds no sound state.
    """
    manifest, content = read_outer_state(folder)
    stored = read_snapshot(folder / STATE_FOLDER)
    genesis = genesis_record(manifest.genesis.members, manifest.genesis.state_root)
    chain = restore(
        stored, genesis, open_rounds=manifest.spec.open_rounds, read=blobs_of(folder)
    ).chain
    place = _place(plan_of(manifest, stored))
    return balance(chain.walk(), content.parameters[LEDGER].tolist(), slots, place)


def _place(plan: FragmentPlan) -> Place:
    cells = next((shape.numel for shape in plan.shapes if shape.name == LEDGER), 0)
    for fragment, pieces in enumerate(plan.fragments):
        for piece in pieces:
            if piece.parameter == LEDGER and piece.numel == cells:
                return Place(fragment, plan.num_fragments, piece.offset, plan.sizes[fragment])
    raise BugError("the ledger is not in one fragment")


def balance(
    records: Iterable[Record], values: Sequence[float], slots: Mapping[PeerId, int], place: Place
) -> list[Cell]:
    """Every peer's cell.

    Args:
        records: of the chain, in order.
        values: of the ledger, as they are after the last of them.
        slots: each peer's cell.
        place: where the ledger is.
    """
    moves: dict[int, list[float]] = {slot: [] for slot in slots.values()}
    for record in records:
        if record.kind is not RecordKind.ROUND or record.number % place.fragments != place.fragment:
            continue
        bounds = slice_bounds(place.size, len(record.slices))
        for piece, (low, high) in zip(record.slices, bounds, strict=True):
            shares = [record.shares[index] for index in piece.included]
            total = sum(share.tokens for share in shares)
            for share in shares:
                slot = slots[share.peer]
                if low <= place.offset + slot < high:
                    moves[slot].append(UNIT * share.tokens**2 / total)
    return [
        Cell(
            slot,
            -sum(moved),
            float(values[slot]),
            len(moved),
            median(moved) if moved else 0.0,
            max(moved, default=0.0),
        )
        for slot, moved in sorted(moves.items())
    ]
