"""Every codec in rounds of real stores, both ways: equal bits everywhere, and nothing of what was learned lost."""

from __future__ import annotations

import numpy as np
import pytest

from runnel.hashing import digest
from runnel.kernels import Float32
from runnel.optim.codecs import codec_named
from runnel.optim.outer import Momentum
from runnel.optim.store import Outcome, OuterStore, StoreParts
from runnel.verification.aggregators import aggregator_named
from tests.support.codecs import every_codec, values_of

PEERS = 3
SIZE = 2 * 4096 + 700
BOUNDS = ((0, 4096), (4096, SIZE))
WEIGHTS = np.array([3, 1, 2], np.float32)


class Replicas:
    """Peers that hand over, reduce and adopt; each outer step subtracts the weighted mean."""

    def __init__(self, codec: str, result_codec: str) -> None:
        parts = StoreParts(
            codec=codec_named(codec),
            result_codec=codec_named(result_codec),
            aggregator=aggregator_named("weighted-mean"),
            optimizer=Momentum(lr=1.0, momentum=0.0),
            root_of=lambda buffers: digest(*buffers),
            seed_of=hash,
        )
        self.start = values_of(SIZE, seed=1)
        self.stores = [OuterStore([self.start.copy()], parts) for _ in range(PEERS)]
        self.w = [self.start.copy() for _ in range(PEERS)]
        self.learned = np.zeros((PEERS, SIZE))

    def train(self, peer: int, change: Float32) -> None:
        before = self.w[peer].copy()
        self.w[peer] -= change
        self.learned[peer] += before.astype(np.float64) - self.w[peer]

    def round(self, number: int) -> None:
        sent = []
        for store, w in zip(self.stores, self.w, strict=True):
            encoded = store.encode(number, 0, w.copy(), version=store.version(0), bounds=BOUNDS)
            assert encoded is not None
            sent.append(encoded)
        norms = np.array([np.hypot.reduce(one.norms) for one in sent], np.float32)
        results = []
        for index, (low, high) in enumerate(BOUNDS):
            reducer = (number + index) % PEERS
            results.append(
                self.stores[reducer].reduce(
                    [one.payloads[index] for one in sent],
                    WEIGHTS,
                    norms,
                    numel=high - low,
                    own=reducer,
                    key=number,
                )
            )
        roots = set()
        for peer, store in enumerate(self.stores):
            payloads = [result.payload for result in results]
            roots.add(store.prepare(number, 0, BOUNDS, payloads, final=False))
            losses = tuple(
                result.loss if (number + index) % PEERS == peer else None
                for index, result in enumerate(results)
            )
            outcome = Outcome(number, 0, BOUNDS, sent[peer].payloads, (True, True), losses, False)
            self.w[peer] += store.adopt(number, outcome).delta
        assert len(roots) == 1

    def unaccounted(self) -> Float32:
        """What was learned, weighed, less what is in the outer parameters and what is still owed."""
        share = WEIGHTS.astype(np.float64) / WEIGHTS.sum()
        theta = self.stores[0].parameters(0).astype(np.float64)
        owed = np.array([store.residual(0) for store in self.stores], np.float64)
        missing: Float32 = share @ (self.learned - owed) - (self.start - theta)
        return missing


@every_codec
def test_rounds_leave_equal_bits_and_lose_nothing(name: str) -> None:
    replicas = Replicas(name, name)
    for number in range(6):
        for peer in range(PEERS):
            replicas.train(peer, values_of(SIZE, seed=10 * number + peer, scale=0.01))
        replicas.round(number)
    for peer in range(1, PEERS):
        assert np.array_equal(replicas.stores[peer].parameters(0), replicas.stores[0].parameters(0))
    assert np.abs(replicas.unaccounted()).max() < 1e-5
    moved = np.linalg.norm(replicas.stores[0].parameters(0) - replicas.start)
    assert moved > 0


@pytest.mark.parametrize("name", ["two-bit", "sign", "top-k", "random-k"])
def test_what_all_learn_alike_arrives_in_the_end(name: str) -> None:
    replicas = Replicas(name, "e3m0")
    steady = values_of(SIZE, seed=3, scale=1e-3)
    for number in range(60):
        for peer in range(PEERS):
            replicas.train(peer, steady)
        replicas.round(number)
    arrived = replicas.start - replicas.stores[0].parameters(0)
    wanted = 60 * steady
    assert np.linalg.norm(arrived - wanted) < 0.5 * np.linalg.norm(wanted)
    assert np.abs(replicas.unaccounted()).max() < 1e-5
