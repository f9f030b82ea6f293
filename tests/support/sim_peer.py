"""A simulated peer: the real protocol and store, a disk that survives crashes, a trainer of integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runnel.dht.identity import NullSigner
from runnel.hashing import digest
from runnel.node import storage_keys
from runnel.node.actions import RoundKey
from runnel.node.chain import Chain
from runnel.node.deadlines import Limits
from runnel.node.protocol import RoundProtocol
from runnel.node.protocol_state import ProtocolSettings
from runnel.node.records import Record
from runnel.optim.exchange import Payload
from runnel.optim.store import OuterStore
from runnel.types import PEER_ID_PREFIX, Digest, PeerId
from tests.support.integers import integer_parts

RUN = digest(b"schedules")
FRAGMENT_VALUES = 8192  # two slices for two or more members; each slice stands for one integer here
VALUES = 2
KEPT_RECORDS, BLOCK_RECORDS = 12, 5
"""So few that schedules part, meet and restart far behind what is at hand."""


def peer_name(index: int) -> PeerId:
    return PeerId(PEER_ID_PREFIX + bytes([index + 1]) * 32)


def bounds_of(slices: int) -> tuple[tuple[int, int], ...]:
    return ((0, 2),) if slices == 1 else ((0, 1), (1, 2))


@dataclass
class Disk:
    """What survives a crash. `in_w` is drift that was handed over and is still in the trainer's values."""

    keys: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    results: dict[Digest, Payload] = field(default_factory=dict)
    losses: dict[Digest, Any] = field(default_factory=dict)
    payloads: dict[RoundKey, tuple[Payload, ...]] = field(default_factory=dict)
    pending: set[RoundKey] = field(default_factory=set)
    in_w: dict[int, Any] = field(default_factory=dict)
    state: dict[int, tuple[Any, Any, Any]] = field(default_factory=dict)

    def save(self, store: OuterStore) -> None:
        for f in range(len(store.sizes)):
            values = (store.parameters(f), store.momentum(f), store.residual(f))
            self.state[f] = tuple(part.copy() for part in values)  # type: ignore[assignment]


class SimPeer:
    """One peer: protocol, store, and trainer's parameters `w`, built from its disk alone."""

    def __init__(
        self,
        index: int,
        disk: Disk,
        genesis: Record,
        *,
        open_rounds: int,
        fragments: int,
        carried: bool,
        now: float,
    ) -> None:
        self.index, self.disk, self.name = index, disk, peer_name(index)
        zero = [np.zeros(VALUES, dtype=np.int64) for _ in range(fragments)]
        self.store = OuterStore(zero, integer_parts())
        self._resume()
        self.w = [self.store.parameters(f).copy() for f in range(fragments)]
        saved = storage_keys.restore(
            disk.keys,
            genesis,
            open_rounds=open_rounds,
            read=disk.blobs.__getitem__,
            block=BLOCK_RECORDS,
        )
        settings = ProtocolSettings(
            run=RUN,
            fragment_sizes=(FRAGMENT_VALUES,) * fragments,
            max_weight_tokens=1 << 30,
            limits=Limits(floor_s=1.0, ceiling_s=4.0, stall_s=20.0),
            admits=lambda peer, ticket: ticket == b"ticket",
            deepest_fork=1 << 30,  # its disk keeps everything
            kept_records=KEPT_RECORDS,
            ticket=b"ticket",
            carries=(lambda payload: "" if len(payload) == 8 * VALUES else "its size")
            if carried
            else None,
        )
        self.protocol = RoundProtocol(NullSigner(self.name), settings, saved, now=now)
        self.busy: set[RoundKey] = set()

    @property
    def chain(self) -> Chain:
        return self.protocol.state.chain

    def owed(self) -> Any:
        """U = e + (theta - w) by fragment: what this peer has learned that is not on its chain."""
        s = self.store
        return np.array([s.residual(f) + s.parameters(f) - self.w[f] for f in range(len(self.w))])

    def _resume(self) -> None:
        disk, store = self.disk, self.store
        for f, (theta, momentum, residual) in disk.state.items():
            store.load(f, theta, momentum, residual)
        for f, drift in disk.in_w.items():
            store.residual(f)[:] += drift
        for key in sorted(disk.pending, key=lambda k: k.number):
            nothing = np.zeros(VALUES, dtype=np.int64)
            store.recall(key, key.number % len(store.sizes), disk.payloads[key], nothing)
        disk.save(store)
        disk.in_w.clear()
