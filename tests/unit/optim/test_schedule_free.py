"""Schedule-free AdamW against its three sequences written out, and moved from outside as a merge does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from runnel.errors import ConfigError
from runnel.optim import ScheduleFreeAdamW, inner_optimizer, set_learning_rates


def gradients(steps: int, size: int = 5) -> Tensor:
    return torch.randn(steps, size, generator=torch.Generator().manual_seed(1))


def made(start: Tensor, **more: float) -> tuple[nn.Parameter, ScheduleFreeAdamW]:
    value = nn.Parameter(start.clone())
    return value, ScheduleFreeAdamW([{"params": [value], **more}], lr=0.1, betas=(0.8, 0.95))


def test_steps_are_those_of_the_three_sequences_written_out() -> None:
    rates = [0.02, 0.1, 0.1, 0.1, 0.05, 0.1, 0.1]
    start = torch.linspace(-1, 1, 5)
    y, optimizer = made(start, weight_decay=0.3)
    x, z, v = start.double(), start.double(), torch.zeros(5).double()
    highest, weights = 0.0, 0.0
    for t, (lr, g) in enumerate(zip(rates, gradients(len(rates)), strict=True), 1):
        set_learning_rates_to(optimizer, lr)
        y.grad = g.clone()
        optimizer.step()
        g, between = g.double(), 0.2 * z + 0.8 * x
        v = 0.95 * v + 0.05 * g * g
        u = g / ((v / (1 - 0.95**t)).sqrt() + 1e-8) + 0.3 * between
        highest = max(highest, lr)
        weights += highest**2
        z = z - lr * u
        x = (1 - highest**2 / weights) * x + highest**2 / weights * z
        torch.testing.assert_close(y.detach().double(), 0.2 * z + 0.8 * x, atol=1e-6, rtol=1e-5)
        with optimizer.averaged():
            torch.testing.assert_close(y.detach().double(), x, atol=1e-6, rtol=1e-5)


def set_learning_rates_to(optimizer: ScheduleFreeAdamW, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def test_what_a_merge_adds_moves_all_sequences_alike() -> None:
    start, moved = torch.linspace(-1, 1, 5), torch.tensor([0.5, -2.0, 0.0, 1.0, 3.0])
    one, first = made(start)
    other, second = made(start + moved)
    for t, g in enumerate(gradients(12)):
        if t == 6:
            with torch.no_grad():
                one.add_(moved)
        for value, optimizer in ((one, first), (other, second)):
            value.grad = g.clone()
            optimizer.step()
    torch.testing.assert_close(one, other)
    with first.averaged(), second.averaged():
        torch.testing.assert_close(one, other)


def test_evaluating_leaves_every_bit_as_it_was_also_after_an_error() -> None:
    value, optimizer = made(torch.linspace(-1, 1, 5))
    with optimizer.averaged():
        pass  # before the first step there is no average
    for g in gradients(3):
        value.grad = g.clone()
        optimizer.step()
    before = value.detach().clone()

    def fail() -> None:
        with optimizer.averaged():
            assert not torch.equal(value, before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(value, before)


def test_it_goes_on_from_its_state() -> None:
    value, optimizer = made(torch.linspace(-1, 1, 5))
    for g in gradients(4):
        value.grad = g.clone()
        optimizer.step()
    twin, again = made(value.detach())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for g in gradients(3):
        for one, its in ((value, optimizer), (twin, again)):
            one.grad = g.clone()
            its.step()
    assert torch.equal(value, twin)


def test_the_average_is_nearer_to_the_minimum_of_a_noisy_bowl_than_the_last_step() -> None:
    generator = torch.Generator().manual_seed(2)
    value, optimizer = made(torch.full((64,), 3.0))
    for _ in range(400):
        value.grad = value.detach() + torch.randn(64, generator=generator)
        optimizer.step()
    z = value.detach() + optimizer.state[value]["ahead"]
    with optimizer.averaged():
        assert value.norm() < 0.7 * z.norm()


def test_a_manifest_chooses_it_by_name_and_matrices_alone_decay() -> None:
    model = nn.Linear(3, 3)
    found = inner_optimizer("schedule-free", model.named_parameters(), lr=0.1, weight_decay=0.5)
    assert isinstance(found, ScheduleFreeAdamW)
    assert [group["weight_decay"] for group in found.param_groups] == [0.5, 0.0]
    set_learning_rates(found, 0.5)
    assert {group["lr"] for group in found.param_groups} == {0.05}


def test_without_beta1_there_is_no_average_to_tell() -> None:
    with pytest.raises(ConfigError, match="0 < beta1"):
        inner_optimizer("schedule-free", nn.Linear(1, 1).named_parameters(), lr=0.1, betas=(0, 0.9))
