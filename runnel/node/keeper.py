"""What keeps a run's state through contributions, results and records, as the driver sees it.

Two do: `Vault` for runs that exchange values, `SeedVault` for runs of shared seeds. Both work in the
codec thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from runnel.node.actions import Handover, Prepare, Reduce, RoundKey
from runnel.node.chain import Chain, Fork
from runnel.node.keepsakes import Contributions, Results
from runnel.node.mailbox import DecidedMerge, HandedOver
from runnel.node.moves import Landing
from runnel.node.records import SliceResult
from runnel.node.storage_keys import Updates
from runnel.optim.exchange import StateStore
from runnel.types import Digest, Verdict


class Keeper(Protocol):
    """One peer's state, tied to its disk and to the chain's records."""

    @property
    def store(self) -> StateStore:
        """What all peers share."""
        ...

    @property
    def contributions(self) -> Contributions:
        """What this peer gave to recent rounds and sends in slices."""
        ...

    @property
    def results(self) -> Results:
        """Results of recent rounds."""
        ...

    @property
    def fragments(self) -> int:
        """How many fragments there are."""
        ...

    def state_roots(self) -> list[Digest]:
        """The names of all fragments' shared states."""
        ...

    def contribute(self, handed: HandedOver) -> Handover | None:
        """Encodes and durably keeps a contribution; None if the trainer must look again first.

        Raises:
            ValueError: it cannot be used.
        """
        ...

    def judge(self, payload: bytes | memoryview, numel: int, claimed: float, /) -> Verdict:
        """Whether a payload slice that somebody sent may be reduced."""
        ...

    def reduce(
        self, action: Reduce, payloads: Sequence[bytes | memoryview]
    ) -> tuple[SliceResult, int]:
        """Makes and durably keeps a result; it and its size in bytes."""
        ...

    def prepare(self, action: Prepare) -> Digest:
        """The name of the state after these results.

        Raises:
            PeerError: one of them is no result.
        """
        ...

    def follow(
        self, chain: Chain, fork: Fork, path: Sequence[Digest]
    ) -> tuple[list[DecidedMerge], Updates]:
        """Gives up and adopts records; what the trainer must merge and what to write with the head."""
        ...

    def land(self, landing: Landing) -> None:
        """Takes what a step to a record further on needs in place of results."""
        ...

    def write_all(self, numbers: Sequence[int]) -> Updates:
        """Durably keeps the whole state; `numbers[f]` is the record that fragment f comes from."""
        ...

    def resume(
        self, stored: Mapping[str, bytes], chain: Chain, is_open: Callable[[RoundKey], bool], /
    ) -> Updates:
        """Reads everything back after a restart; returns what to write in one step."""
        ...
