from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from runnel.errors import ConfigError
from runnel.optim.inner import clip_gradients, inner_optimizer


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = inner_optimizer("adamw", model.named_parameters(), lr=0.1, weight_decay=0.5)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if value.ndim >= 2 else 1
        torch.testing.assert_close(value.detach(), before[name] * factor)


def test_names_give_torch_optimizers_with_the_given_numbers() -> None:
    model = nn.Linear(3, 3)
    adamw = inner_optimizer("adamw", model.named_parameters(), lr=0.1, betas=(0.8, 0.9))
    sgd = inner_optimizer("sgd", model.named_parameters(), lr=0.2, betas=(0.7, 0.9))
    assert isinstance(adamw, AdamW)
    assert adamw.param_groups[0]["betas"] == (0.8, 0.9)
    assert isinstance(sgd, SGD)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.7, True)
    plain = inner_optimizer("sgd", model.named_parameters(), lr=0.2, betas=(0, 0.9))
    assert not plain.param_groups[0]["nesterov"]


def test_tied_parameters_are_taken_once_and_frozen_ones_not() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[1].bias.requires_grad = False
    named = [*model[0].named_parameters(), *model[1].named_parameters()]
    optimizer = inner_optimizer("sgd", named, lr=0.1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("adam", {"lr": 0.1}),
        ("adamw", {"lr": 0.0}),
        ("adamw", {"lr": math.nan}),
        ("sgd", {"lr": 0.1, "betas": (1.0, 0.9)}),
        ("sgd", {"lr": 0.1, "weight_decay": -1.0}),
        ("muon", {"lr": 0.1, "matrix_lr": 0.0}),
    ],
)
def test_bad_settings_are_config_errors(name: str, numbers: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        inner_optimizer(name, nn.Linear(1, 1).named_parameters(), **numbers)


def test_nothing_to_train_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="0 trainable"):
        inner_optimizer("adamw", [], lr=0.1)


def test_clipping_scales_all_gradients_together() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([0.0, 3.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 10.0) == 5.0
    assert parameters[1].grad.item() == 4.0
    assert clip_gradients(parameters, 1.0) == 5.0
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.0, 0.6]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.8]))
    assert clip_gradients(parameters, 0.0) == pytest.approx(1.0)
    assert clip_gradients([nn.Parameter(torch.zeros(2))], 1.0) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_reported_and_not_spread(bad: float) -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([bad]), torch.tensor([4.0])
    assert math.isnan(clip_gradients(parameters, 1.0))
    assert parameters[1].grad.item() == 4.0
