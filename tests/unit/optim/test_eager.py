"""Torch's optimizers without torch's compiler: the same bits, and no import of it."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from runnel.optim.eager import EagerAdamW, EagerSGD
from runnel.optim.inner import INNER_OPTIMIZERS, inner_optimizer


@pytest.mark.parametrize(
    ("eager", "torchs", "settings"),
    [
        (EagerAdamW, AdamW, {"betas": (0.8, 0.9), "weight_decay": 0.1}),
        (EagerSGD, SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ],
)
def test_bits_are_those_of_torchs_own(eager: Any, torchs: Any, settings: dict[str, Any]) -> None:
    def trained(kind: Any) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = nn.Linear(7, 5)
        optimizer = kind(model.parameters(), lr=0.05, **settings)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for _ in range(5):
            loss = model(torch.arange(14.0).reshape(2, 7)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return list(model.parameters())

    assert all(map(torch.equal, trained(eager), trained(torchs)))


@pytest.mark.parametrize("name", INNER_OPTIMIZERS)
def test_a_step_does_not_import_torchs_compiler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # to import it is an error now
    for method in (Optimizer.add_param_group, Optimizer.zero_grad):  # what earlier tests left there
        monkeypatch.delattr(inspect.unwrap(method), "__dynamo_disable", raising=False)
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ImportError, match="_dynamo"):
        AdamW(model.parameters())
    optimizer = inner_optimizer(name, model.named_parameters(), lr=0.1)
    model(model[0].weight).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert model[0].weight.grad is None
