"""What local steps did, projected onto directions that everybody knows, and back."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from runnel.errors import ConfigError
from runnel.kernels.perturbation import direction, random_signs
from runnel.optim.ferret import BlockScalars, Sketch, budgets, round_updates
from runnel.optim.fixed_point import MasterWeights, Spread, Task
from runnel.protocols import Float32

KEY = (9, 8)


def delta(size: int, seed: int, deviation: float = 1e-3) -> Float32:
    values = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    return values * np.float32(deviation)


def test_blocks_that_moved_more_get_more_directions() -> None:
    assert budgets([1.0, 0.5, 0.001, 0.0], 64) == (64, 32, 2, 0)
    assert budgets([0.0], 64) == (0,)
    assert budgets([], 64) == ()
    for bad in (1, 1 << 17):
        with pytest.raises(ConfigError, match="directions"):
            budgets([1.0], bad)


def test_scalars_are_projections_on_the_peers_own_directions() -> None:
    one = delta(6000, 0)
    (block,) = Sketch(4, 2, KEY, 8).contribution([(0, one)])
    codes = np.frombuffer(block.codes, np.int8)
    assert codes.size == 8
    for k, code in enumerate(codes.tolist()):
        z = random_signs(6000, direction(0, 4, 2 * 65536 + k, KEY)).astype(np.float64)
        wanted = float(one.astype(np.float64) @ z) / 2 ** (block.exponent / 4) * 32
        assert abs(max(-127.0, min(127.0, wanted)) - code) <= 0.51


def test_the_reconstruction_is_unbiased_and_goes_against_the_delta() -> None:
    size, directions = 200, 2048
    one = delta(size, 1)
    weights = MasterWeights.from_arrays({"w": np.zeros(size, np.float32)}, KEY)
    contribution = Sketch(0, 0, KEY, directions).contribution([(0, one)])
    weights.apply(round_updates({0: contribution}, round_number=0, lr=1.0))
    found = -weights.arrays()["w"].astype(np.float64)
    scale = float(found @ one) / float(one @ one)
    assert scale == pytest.approx(1.0, abs=0.1)
    spread = float(np.square(found - one).sum()) / float(np.square(one).sum())
    assert spread == pytest.approx((size - 1) / directions, rel=0.4)


def test_a_round_is_the_mean_over_peers_whatever_their_order() -> None:
    contributions = {
        peer: Sketch(3, peer, KEY, 16).contribution([(0, delta(5000, peer)), (1, delta(30, 9))])
        for peer in (0, 5)
    }
    one = round_updates(contributions, round_number=3, lr=0.5)
    other = round_updates(dict(reversed(contributions.items())), round_number=3, lr=0.5)
    assert [len(update) for update in one] == [16, 2, 16, 2]
    assert [update.tensor for update in one] == [0, 1, 0, 1]
    states = set()
    for updates in (one, other, one[::-1]):
        weights = MasterWeights.from_arrays(
            {"a": np.zeros(5000, np.float32), "b": np.zeros(30, np.float32)}, KEY
        )
        weights.apply(updates)
        states.add(weights.digest())
    assert len(states) == 1


def test_threads_and_blocks_that_did_not_move_change_nothing() -> None:
    def run(tasks: Sequence[Task]) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda task: task(), tasks))

    deltas = [(0, delta(3 * 2**20 + 5, 0)), (1, np.zeros(10, np.float32))]
    sketch = Sketch(0, 0, KEY, 3)
    alone = sketch.contribution(deltas)
    assert alone == sketch.contribution(deltas, spread=Spread(3, run))
    assert alone[1] == BlockScalars(0, b"")
    assert len(round_updates({0: alone}, round_number=0, lr=1.0)) == 1


def test_one_peers_scale_cannot_outweigh_the_others() -> None:
    honest = BlockScalars(4, bytes([10, 246]))
    liar = BlockScalars(300, bytes([127, 127]))
    updates = round_updates({0: (honest,), 1: (honest,), 2: (liar,)}, round_number=0, lr=1.0)
    assert updates[2].unit == pytest.approx(updates[0].unit * 2 ** (9 / 4), abs=3)


@pytest.mark.parametrize(
    "bad",
    [
        (BlockScalars(401, b"\x01"),),
        (BlockScalars(0, b"\x80"),),
        (BlockScalars(0, bytes(65537)),),
        (BlockScalars(0, b"\x01"), BlockScalars(0, b"\x01")),
    ],
)
def test_bad_contributions_are_refused(bad: tuple[BlockScalars, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        round_updates({0: (BlockScalars(0, b"\x01"),), 1: bad}, round_number=0, lr=1.0)


def test_steps_that_blew_up_are_told() -> None:
    bad = delta(10, 0)
    bad[3] = np.nan
    with pytest.raises(ConfigError, match=r"tensor 1.*learning rate"):
        Sketch(0, 0, KEY, 4).contribution([(0, delta(10, 0)), (1, bad)])
