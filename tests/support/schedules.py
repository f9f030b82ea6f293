"""Random schedules of crashes, partitions, joiners, freezes and losses over the real protocol and store.

Peers are real `RoundProtocol` and `OuterStore` objects; network, disk, trainers and time are simulated
from one seed. All values are integers, so that the ledger is checked exactly.
"""

from __future__ import annotations

from collections import Counter

from tests.support.checks import Broken
from tests.support.world import World

__all__ = ["Broken", "World", "run_seed"]


def run_seed(seed: int, *, calm: bool = False, kind: str = "") -> Counter[str]:
    """Runs one schedule; of one of `faults.SHAPES` if a `kind` is given.

    Raises:
        Broken: with the seed and the first promise that did not hold.
    """
    try:
        return World(seed, calm=calm, kind=kind).run()
    except Broken as error:
        raise Broken(f"seed {seed} {kind}: {error}") from error
