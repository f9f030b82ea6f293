"""One peer's vault over a real log, with a trainer and a chain whose records a test decides."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runnel.dht.blobs import tree_root
from runnel.hashing import digest
from runnel.node.actions import Prepare, RoundKey, WantHandover
from runnel.node.chain import Chain
from runnel.node.durable import DurableLog
from runnel.node.mailbox import HandedOver
from runnel.node.moves import Landing
from runnel.node.records import Record, RecordKind, Share, SliceResult
from runnel.node.rounds import SLICE_ALIGNMENT
from runnel.node.storage_keys import HEAD
from runnel.node.vault import Vault
from runnel.optim.codecs import codec_named
from runnel.optim.outer import Momentum
from runnel.optim.store import OuterStore, StoreParts
from runnel.protocols import Float32, OuterOptimizer
from runnel.types import Digest
from runnel.verification.aggregators import WeightedMean
from tests.support.crash_images import memory_folder
from tests.support.members import PEERS, following_record, genesis, name

ME, OTHER = PEERS[0], PEERS[1]
FRAGMENTS, NUMEL, EVERY = 2, SLICE_ALIGNMENT + 700, 6
GENESIS = genesis(2)
TOKENS = 7
"""Behind each share of ours."""


NESTEROV = Momentum(lr=0.7, momentum=0.8)


def store_of(
    codec: str = "e3m0", optimizer: OuterOptimizer = NESTEROV, *, public: bool = False
) -> OuterStore:
    rng = np.random.default_rng(5)
    values = [rng.standard_normal(NUMEL, dtype=np.float32) for _ in range(FRAGMENTS)]
    parts = StoreParts(
        codec=codec_named(codec),
        result_codec=codec_named("int8"),
        aggregator=WeightedMean(),
        optimizer=optimizer,
        root_of=tree_root,
        public_start=public,
    )
    return OuterStore(values, parts)


@dataclass
class Bench:
    """One peer with a vault and a trainer, and a chain whose records this test decides."""

    folder: Path
    every: int = EVERY
    chain: Chain = field(default_factory=lambda: Chain(GENESIS, open_rounds=1))
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    start: list[Float32] = field(default_factory=list)
    tokens: list[int] = field(default_factory=lambda: [0] * FRAGMENTS)
    optimizer: OuterOptimizer = NESTEROV
    public: bool = False
    scale: float = 0.01
    """Of what rounds give; 0 for rounds whose results are all the same."""

    def __post_init__(self) -> None:
        self.log = DurableLog(self.folder)
        self.store = store_of(optimizer=self.optimizer, public=self.public)
        self.vault = Vault(self.store, self.log, ME, snapshot_every=self.every)
        self.log.write({**self.vault.write_all([-1] * FRAGMENTS), HEAD: GENESIS.hash})
        self.w = [self.store.parameters(f).copy() for f in range(FRAGMENTS)]
        self.learned = [np.zeros(NUMEL, dtype=np.float32) for _ in range(FRAGMENTS)]

    def round(self, included: Sequence[bool], *, give: bool, reducer: bool) -> Record:
        """Trains, contributes if `give`, and decides a record that includes those slices of ours."""
        key = self._train(give=give)
        record = self._record(
            key.number, key, included if give else (False, False), reducer=reducer
        )
        self.follow(record)
        return record

    def _train(self, *, give: bool) -> RoundKey:
        number = self.chain.number + 1
        fragment, key = number % FRAGMENTS, RoundKey(number, self.chain.base_of(number))
        learned = self.rng.standard_normal(NUMEL, dtype=np.float32) * np.float32(0.01)
        self.w[fragment] -= learned
        self.learned[fragment] += learned
        if give:
            want = WantHandover(key, fragment, 2, urgent=False)
            snapshot = self.w[fragment].copy()
            version = self.store.version(fragment)
            handover = self.vault.contribute(HandedOver(want, snapshot, version, 1, 1, 0.0))
            assert handover is not None
            self.log.write(handover.updates)
            if handover.start is not None:
                self.w[fragment] += handover.start.delta
                started = self.store.parameters(fragment) - self.sent(handover.key)
                np.testing.assert_allclose(self.w[fragment], started, atol=1e-6)
        return key

    def sent(self, key: RoundKey) -> Float32:
        """What our payloads of a round hold."""
        contribution = self.vault.contributions.get(key)
        assert contribution is not None
        parts = zip(contribution.payloads, (SLICE_ALIGNMENT, NUMEL - SLICE_ALIGNMENT), strict=True)
        values = [np.empty(numel, dtype=np.float32) for _, numel in parts]
        for payload, out in zip(contribution.payloads, values, strict=True):
            self.store.codec.decode(payload, out)
        return np.concatenate(values)

    def _record(
        self, number: int, key: RoundKey, included: Sequence[bool], *, reducer: bool
    ) -> Record:
        slices = []
        for index, (low, high) in enumerate(((0, SLICE_ALIGNMENT), (SLICE_ALIGNMENT, NUMEL))):
            mean = self.rng.standard_normal(high - low, dtype=np.float32) * np.float32(self.scale)
            loss = np.empty_like(mean)
            payload = codec_named("int8").encode(mean, loss)
            root = digest(payload)
            self.vault.results.keep(root, payload, loss if reducer else None)
            self.log.write({f"result/{root.hex()}": b""})
            mine = (0,) if included[index] else ()
            slices.append(SliceResult(root, ME if reducer else OTHER, (*mine, 1)))
        shares = (Share(ME, name("mine"), TOKENS), Share(OTHER, name("other"), 1))
        state_root = self.vault.prepare(Prepare(key, tuple(slices), shares, final=False))
        empty = following_record(self.chain.head, RecordKind.ROUND)
        fields = {f: getattr(empty, f) for f in empty.__dataclass_fields__}
        return Record(
            **{**fields, "shares": shares, "slices": tuple(slices), "state_root": state_root}
        )

    def abort(self, *, give: bool = False) -> None:
        """After a share of ours, if `give`."""
        if give:
            self._train(give=True)
        self.follow(following_record(self.chain.head))

    def give_up(self, count: int, record: Record) -> None:
        """Another path after the record `count` before our head."""
        path = self.chain.path[: len(self.chain.path) - count]
        self._move([*path, self.chain.add(record)])

    def follow(self, record: Record) -> None:
        self._move([*self.chain.path, self.chain.add(record)])

    def _move(self, path: list[Digest]) -> None:
        fork = self.chain.fork_to(path)
        self.chain.follow(path)
        merges, updates = self.vault.follow(self.chain, fork, path)
        self.log.write({**updates, HEAD: path[-1]})
        for merge in merges:
            self.w[merge.merge.fragment] += merge.merge.delta
            self.tokens[merge.merge.fragment] += merge.tokens

    def owed(self, fragment: int) -> Float32:
        """What this peer has learned of a fragment that is not on its chain."""
        store, ahead = self.store, self.store._fragments[fragment].ahead
        counted = self.w[fragment] if ahead is None else self.w[fragment] - ahead
        owed: Float32 = store.residual(fragment) + store.parameters(fragment) - counted
        return owed

    def land_on(self, other: Bench) -> None:
        """Takes up the chain of another peer by the state at its head."""
        for record in other.chain.path[1:]:
            self.chain.add(other.chain.record(record))
        states = {
            f: (other.store.parameters(f).copy(), other.store.momentum(f).copy())
            for f in range(FRAGMENTS)
        }
        path = list(other.chain.path)
        self.vault.land(Landing(path[-1], len(path) - 2, states))
        self._move(path)

    # -- what a restart would find

    @contextmanager
    def restarted(self) -> Iterator[Vault]:
        """What comes up from a copy of the folder."""
        with memory_folder() as place:
            shutil.copytree(self.folder, place / "copy")
            with self.resumed(place / "copy") as (vault, _):
                yield vault

    @contextmanager
    def resumed(self, folder: Path) -> Iterator[tuple[Vault, Digest]]:
        """What comes up from a folder that this bench wrote at some time, and the head it stands at."""
        log = DurableLog(folder)
        try:
            store = store_of(optimizer=self.optimizer, public=self.public)
            vault = Vault(store, log, ME, snapshot_every=self.every)
            stored, chain = log.load(), Chain(GENESIS, open_rounds=1)
            path = self.chain.lineage(Digest(stored[HEAD]))
            for name_of_record in path[1:]:
                chain.add(self.chain.record(name_of_record))
            chain.follow(path)
            log.write(vault.resume(stored, chain, lambda _: False))
            yield vault, path[-1]
        finally:
            log.close()

    def check_restart(self) -> None:
        """Same shared bits; what this peer owes is what it owed and what its trainer had handed over."""
        with self.restarted() as found:
            for f in range(FRAGMENTS):
                assert found.store.root(f) == self.store.root(f)
                owed = found.store.residual(f)
                # handed over and not taken out; the newest steps of all are lost, and none were made
                np.testing.assert_allclose(owed, self.owed(f), atol=2e-4)
