"""A pool of seeds: its draws, its rounds, and a model that is the base and K numbers."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from runnel.optim.fedkseed import (
    POOL_COUNTER,
    LocalStep,
    SeedPool,
    pack_steps,
    pool_probe,
    unpack_steps,
)
from runnel.optim.fixed_point import MasterWeights

KEY = (1, 2)


def contributions(pool: SeedPool, peers: int, seed: int) -> dict[int, list[LocalStep]]:
    generator = np.random.default_rng([seed, pool.round_number])
    return {
        peer: [
            LocalStep(int(candidate), int(generator.integers(-127, 128)))
            for candidate in pool.draw(bytes([peer, seed]), 5, pro=True)
        ]
        for peer in range(peers)
    }


def test_the_model_is_the_base_and_what_the_pool_added_up() -> None:
    base = {"w": np.linspace(-1, 1, 5000, dtype=np.float32)}
    base["coarse"] = base["w"] * 1000
    walked, leaped = (MasterWeights.from_arrays(base, KEY) for _ in range(2))
    pool = SeedPool.empty(32)
    for round_number in range(7):
        updates, pool = pool.take_round(contributions(pool, 3, 0), lr=1e-3 / (round_number + 1))
        assert {(one.step, one.counter) for one in updates} == {(round_number, POOL_COUNTER)}
        walked.apply(updates)
    leaped.apply([pool.whole()])
    assert walked.digest() == leaped.digest()
    assert pool.round_number == 7


def test_a_round_of_4096_seeds_takes_less_than_18_kilobytes() -> None:
    pool = SeedPool.empty(4096)
    _, pool = pool.take_round(contributions(pool, 8, 1), lr=1e-3)
    assert len(msgpack.packb([pool.coefficients.tobytes(), pool.round_number])) < 18_000


def test_a_local_walk_goes_where_its_bytes_say_and_comes_back_exactly() -> None:
    base = {"w": np.zeros(100, np.float32), "coarse": np.full(100, 999, np.float32)}
    weights = MasterWeights.from_arrays(base, KEY)
    start = weights.digest()
    pool = SeedPool.empty(8)
    walk = [pool.local_update(LocalStep(k, 10 * k), lr=1e-2) for k in (1, 5, 1)]
    weights.apply(walk)
    assert weights.digest() != start
    weights.apply([update.undone() for update in walk])
    assert weights.digest() == start
    alone, _ = pool.take_round({0: [LocalStep(k, 10 * k) for k in (1, 5, 1)]}, lr=1e-2)
    fine = [MasterWeights.from_arrays({"w": base["w"]}, KEY) for _ in range(2)]
    fine[0].apply(walk)
    fine[1].apply(alone)
    assert fine[0].digest() == fine[1].digest()


def test_peers_weigh_the_same_and_their_order_does_not_matter() -> None:
    pool = SeedPool.empty(16)
    steps = {0: [LocalStep(3, 8)], 1: [LocalStep(3, 8), LocalStep(4, -2)]}
    one, after = pool.take_round(steps, lr=1e-3)
    other, other_after = pool.take_round(dict(reversed(steps.items())), lr=1e-3)
    unit = round(1e-3 * 2**28 / 64)
    assert after.coefficients.tolist()[3:5] == [-16 * unit, 2 * unit]
    assert [update.codes.tolist() for update in one] == [[0, 0], [16 * unit, -2 * unit]]
    assert [update.codes.tolist() for update in other] == [[0, 0], [16 * unit, -2 * unit]]
    assert after.coefficients.tolist() == other_after.coefficients.tolist()
    assert after.visits.tolist()[3:5] == [2, 1]
    nothing, _ = pool.take_round({}, lr=1e-3)
    assert [len(update) for update in nothing] == [0, 0]
    with pytest.raises(ValueError, match="candidate 16"):
        pool.take_round({0: [LocalStep(16, 1)]}, lr=1e-3)


def test_candidates_are_drawn_alike_by_all_and_evenly() -> None:
    pool = SeedPool.empty(10)
    drawn = pool.draw(b"beacon", 20_000, pro=False)
    assert drawn.tolist() == pool.draw(b"beacon", 20_000, pro=True).tolist()
    counts = np.bincount(drawn, minlength=10)
    assert counts.size == 10
    assert counts.min() > 1_700
    assert drawn.tolist() != pool.draw(b"other", 20_000, pro=False).tolist()


def test_pro_draws_seeds_with_larger_scalars_up_to_e_times_as_often() -> None:
    pool = SeedPool.empty(4)
    steps = {0: [LocalStep(0, 10), LocalStep(1, 60), LocalStep(2, 110), LocalStep(0, 10)]}
    _, pool = pool.take_round(steps, lr=1e-3)
    weights = pool.weights_of_candidates(pro=True).tolist()
    assert weights[0] == 65536
    assert weights[2] == 178145  # round(e * 65536)
    assert weights[0] < weights[3] < weights[1] < weights[2]
    counts = np.bincount(pool.draw(b"x", 40_000, pro=True), minlength=4)
    assert 2.4 < counts[2] / counts[0] < 3.0


def test_local_steps_take_three_bytes_and_bad_ones_are_refused() -> None:
    steps = (LocalStep(0, -127), LocalStep(65535, 127), LocalStep(258, 0))
    payload = pack_steps(steps)
    assert len(payload) == 9
    assert unpack_steps(payload, max_steps=3) == steps
    for bad, word in (
        (payload[:-1], "8 bytes"),
        (payload * 2, "18 bytes"),
        (b"\x00\x00\x80", "code -128"),
    ):
        with pytest.raises(ValueError, match=word):
            unpack_steps(bad, max_steps=3)
    with pytest.raises(ValueError, match="0 candidates"):
        SeedPool.empty(0)


def test_probes_of_a_pool_are_its_directions() -> None:
    assert pool_probe(9, 5) == (POOL_COUNTER, 9, 5)
