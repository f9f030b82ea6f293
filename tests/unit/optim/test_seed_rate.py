"""The learning rate that follows from how much a loss bends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from runnel.errors import ConfigError
from runnel.optim.fixed_point_model import FixedPointModel, master_of
from runnel.optim.just_one_byte import ByteState, probes_of, take_step
from runnel.optim.seed_methods import MOST_MEMBERS, LearningRate, OneByteMethod
from runnel.optim.seed_rate import measure_bend, rate_for
from runnel.optim.spsa_loss import differences, epsilon_amount

KEY = (5, 6)
HEIGHTS = torch.linspace(0.5, 3.0, 300)


class Bowl(nn.Module):
    """The sum of h_i w_i^2 / 2: its second derivatives are h, whatever the direction."""

    def __init__(self, heights: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full(heights.shape, 0.1, dtype=torch.float64))
        self.heights = heights.double()

    def forward(self) -> torch.Tensor:
        return (self.heights * self.weight**2).sum() / 2


def test_the_bend_of_a_bowl_is_the_sum_of_its_second_derivatives() -> None:
    bowl = Bowl(HEIGHTS)
    before = bowl.weight.detach().clone()
    found = measure_bend(bowl, [bowl.forward] * 3, key=KEY, epsilon=1e-2)
    assert found == pytest.approx(float(HEIGHTS.sum()), rel=1e-4)
    assert torch.allclose(bowl.weight, before, atol=2.0**-28)


def test_frozen_parameters_do_not_count() -> None:
    pair = nn.ModuleList([Bowl(torch.ones(10)), Bowl(torch.ones(90))])
    pair[1].requires_grad_(requires_grad=False)
    found = measure_bend(pair, [lambda: pair[0]() + pair[1]()], key=KEY, epsilon=1e-2)
    assert found == pytest.approx(10.0, rel=1e-4)


def test_a_rate_grows_with_the_scalars_and_falls_with_the_bend() -> None:
    assert rate_for(1284.4, 16) == 1.6e-3
    assert rate_for(1284.4, 4) == 3.9e-4
    assert rate_for(1e7, 4) == 5e-8


@pytest.mark.parametrize("bend", [0.0, -3.0, math.nan, math.inf])
def test_a_loss_that_has_no_floor_in_sight_gives_no_rate(bend: float) -> None:
    with pytest.raises(ConfigError, match=r"expected more than 0.*set seeds\.lr"):
        rate_for(bend, 4)


def test_a_random_loss_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    with pytest.raises(ConfigError, match=r"model\.eval\(\)"):
        measure_bend(model, [lambda: model(torch.ones(1, 4)).sum()], key=KEY, epsilon=1e-2)


def loss_after_steps(factor: float) -> float:
    """The loss after 200 steps of 4 probes at so many times the rate that was found."""
    bowl, amount, probes = Bowl(HEIGHTS), epsilon_amount(1e-2), 4
    lr = factor * rate_for(measure_bend(bowl, [bowl.forward], key=KEY, epsilon=1e-2), probes)
    bound, state = FixedPointModel(bowl, master_of(bowl, KEY)), ByteState()
    for _ in range(200):
        points = probes_of(state, 0, probes, amount)
        found = differences(bound, bowl.forward, points)
        codes = {
            point.slot: state.scale.code_of(one.scalar) or 0
            for point, one in zip(points, found, strict=True)
        }
        update, state = take_step(state, codes, lr=lr)
        bound.apply([update])
    return float(bowl().detach())


def test_steps_at_the_rate_that_was_found_go_down_and_far_longer_ones_do_not() -> None:
    start = float(Bowl(HEIGHTS)().detach())
    assert loss_after_steps(1.0) < 0.8 * start
    assert loss_after_steps(40.0) > start


def test_a_step_of_more_members_is_longer_where_the_rate_is_for_each() -> None:
    def unit(members: int, *, per_member: bool) -> float:
        method = OneByteMethod(2, LearningRate(1e-3), per_member)
        (update,), _ = method.take(method.first(), dict.fromkeys(range(members), b"\x10 "), 0)
        return float(update.unit)

    assert unit(4, per_member=True) == pytest.approx(unit(1, per_member=True), rel=1e-3)
    assert unit(4, per_member=False) == pytest.approx(unit(1, per_member=False) / 4, rel=1e-3)
    many = 2 * MOST_MEMBERS
    assert unit(many, per_member=True) == pytest.approx(unit(1, per_member=True) / 2, rel=1e-2)
