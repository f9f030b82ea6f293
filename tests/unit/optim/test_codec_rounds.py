"""Every codec in rounds of real stores, both ways: equal bits everywhere, and nothing of what was learned lost."""

from __future__ import annotations

import numpy as np
import pytest

from runnel.hashing import digest
from runnel.kernels import Float32
from runnel.optim.codec_layers import LayersCodec
from runnel.optim.codecs import codec_named, planned_bytes
from runnel.optim.exchange import Payload
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

    def __init__(self, codec: str, result_codec: str, edges: tuple[int, ...] = ()) -> None:
        parts = StoreParts(
            codec=codec_named(codec),
            result_codec=codec_named(result_codec),
            aggregator=aggregator_named("weighted-mean"),
            optimizer=Momentum(lr=1.0, momentum=0.0),
            root_of=lambda buffers: digest(*buffers),
            seed_of=hash,
            edges=(edges,),
        )
        self.start = values_of(SIZE, seed=1)
        self.stores = [OuterStore([self.start.copy()], parts) for _ in range(PEERS)]
        self.w = [self.start.copy() for _ in range(PEERS)]
        self.learned = np.zeros((PEERS, SIZE))
        self.results: list[Payload] = []

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
        self.results = [result.payload for result in results]
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


@pytest.mark.parametrize("results", ["l-greco+e3m0", "e3m0"])
def test_layers_with_bits_of_their_own_leave_equal_bits_and_lose_nothing(
    results: str,
) -> None:
    edges = (0, 2_048, 4_608)
    replicas = Replicas("l-greco+e3m0", results, edges)
    codec, loud = codec_named("l-greco+e3m0"), np.full(SIZE, 0.003, np.float32)
    assert isinstance(codec, LayersCodec)
    loud[2_048:4_608] = 0.1
    for number in range(6):
        for peer in range(PEERS):
            replicas.train(peer, values_of(SIZE, seed=10 * number + peer) * loud)
        replicas.round(number)
        sizes = [len(payload) for payload in replicas.results]
        if results == "e3m0":
            assert sizes == [planned_bytes(results, high - low) for low, high in BOUNDS]
            continue
        assert sum(sizes) < 0.9 * sum(codec.uniform_bytes(high - low) for low, high in BOUNDS)
        cells = [
            cell
            for payload, (low, high) in zip(replicas.results, BOUNDS, strict=True)
            for cell in codec.cells_in(payload, high - low)
        ]
        assert [cell.numel for cell in cells] == [2_048, 2_048, 512, 3_584, 700]
        choices = [cell.choice for cell in cells]
        assert min(choices[1:3]) > max(choices[0], *choices[3:])
    for store in replicas.stores[1:]:
        assert np.array_equal(store.parameters(0), replicas.stores[0].parameters(0))
    assert np.abs(replicas.unaccounted()).max() < 1e-5
