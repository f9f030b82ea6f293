"""What an inner optimizer remembers: copied, named and put back without the loss of a bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from runnel.optim.inner import INNER_OPTIMIZERS, inner_optimizer
from runnel.optim.inner_state import InnerState, Remembered, copy_inner_state, put_inner_state


def model_and_optimizer(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, inner_optimizer(name, model.named_parameters(), lr=0.01)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        model(torch.randn(5, 3, generator=drawn)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def bits(model: nn.Module) -> list[list[float]]:
    return [parameter.flatten().tolist() for parameter in model.parameters()]


@pytest.mark.parametrize("name", INNER_OPTIMIZERS)
def test_an_optimizer_goes_on_from_a_copy_bit_for_bit(name: str) -> None:
    model, optimizer = model_and_optimizer(name)
    learn(model, optimizer, 3, seed=2)
    state, values = copy_inner_state(optimizer), [p.detach().clone() for p in model.parameters()]
    assert state is not None
    learn(model, optimizer, 3, seed=3)
    after = copy_inner_state(optimizer)
    again, other = model_and_optimizer(name)
    learn(again, other, 1, seed=9)  # what it remembers of this is forgotten
    with torch.no_grad():
        for parameter, value in zip(again.parameters(), values, strict=True):
            parameter.copy_(value)
    put_inner_state(state, other)
    learn(again, other, 3, seed=3)
    assert bits(again) == bits(model)
    found = copy_inner_state(other)
    assert found is not None
    assert after is not None
    assert found.name == after.name != state.name


def test_a_copy_is_none_of_the_optimizers_memory() -> None:
    model, optimizer = model_and_optimizer("adamw")
    learn(model, optimizer, 1, seed=1)
    state = copy_inner_state(optimizer)
    assert state is not None
    before = state.name
    learn(model, optimizer, 1, seed=2)
    assert state.name == before
    put_inner_state(state, optimizer)
    learn(model, optimizer, 1, seed=2)
    assert state.name == before


def test_every_part_of_a_state_is_in_its_name() -> None:
    one = Remembered(0, "mean", torch.tensor([1.0, 2.0]))
    others = [
        replace(one, parameter=1),
        replace(one, key="square"),
        replace(one, value=torch.tensor([1.0, 2.5])),
        replace(one, value=torch.tensor([[1.0, 2.0]])),
        replace(one, value=torch.tensor([1.0, 2.0]).view(torch.int32)),
        replace(one, value=1.0),
        replace(one, value=1),
        replace(one, value=True),
    ]
    names = [InnerState((value,)).name for value in (one, *others)]
    names += [InnerState().name, InnerState((one, one)).name]
    assert len(set(names)) == len(names)


def test_what_is_neither_tensor_nor_number_has_no_name() -> None:
    model, optimizer = model_and_optimizer("adamw")
    optimizer.state[next(iter(model.parameters()))]["kind"] = "text"
    assert copy_inner_state(optimizer) is None
    assert copy_inner_state(None) is None
    assert copy_inner_state(object()) is None


def test_a_state_of_more_parameters_is_refused() -> None:
    _, optimizer = model_and_optimizer("adamw")
    with pytest.raises(IndexError):
        put_inner_state(InnerState((Remembered(9, "mean", torch.zeros(1)),)), optimizer)
