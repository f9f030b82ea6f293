from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from runnel.errors import ConfigError
from runnel.optim import Muon, inner_optimizer, set_learning_rates
from runnel.optim.muon import orthogonalized


class Net(nn.Module):
    """An embedding, two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embedding = nn.Embedding(7, 6)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6, bias=False)])
        self.head = nn.Linear(6, 7)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        result: torch.Tensor = self.head(x)
        return result

    def loss(self) -> torch.Tensor:
        tokens = torch.arange(28) % 7
        return nn.functional.cross_entropy(self(tokens), (3 * tokens + 1) % 7)


@pytest.mark.parametrize("shape", [(5, 5), (9, 4), (4, 9), (1, 6), (6, 1), (3, 5, 8)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    turned = orthogonalized(matrix)
    values = torch.linalg.svdvals(turned)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    product = turned.mT @ matrix  # symmetric and positive where the vectors are the same
    torch.testing.assert_close(product, product.mT, rtol=1e-3, atol=1e-3)
    assert float(torch.linalg.eigvalsh(product).min()) > -1e-3


def test_a_zero_gradient_gives_no_direction() -> None:
    assert not orthogonalized(torch.zeros(3, 4)).any()


def test_matrices_of_layers_turn_and_all_else_does_as_adamw() -> None:
    net, plain = Net(), Net()
    muon = inner_optimizer("muon", net.named_parameters(), lr=0.01, matrix_lr=0.1)
    adamw = inner_optimizer("adamw", plain.named_parameters(), lr=0.01)
    assert isinstance(muon, Muon)
    assert isinstance(adamw, AdamW)
    for number in range(5):
        for model, optimizer in ((net, muon), (plain, adamw)):
            if number:  # from the second step on gradients differ, as matrices do
                for parameter in model.parameters():
                    parameter.grad = torch.full_like(parameter, 0.1 * number)
            else:
                model.loss().backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, value in net.named_parameters():
        same = torch.allclose(value, plain.get_parameter(name), rtol=1e-5, atol=1e-6)
        assert same == (name not in ("blocks.0.weight", "blocks.1.weight")), name


def test_a_step_moves_every_direction_of_a_matrix_by_about_the_rate() -> None:
    net = Net()
    muon = inner_optimizer("muon", net.named_parameters(), lr=0.01, matrix_lr=0.1, weight_decay=0)
    matrix = net.get_parameter("blocks.0.weight")
    before = matrix.detach().clone()
    net.loss().backward()
    muon.step()
    moved = torch.linalg.svdvals(before - matrix.detach())
    assert float(moved.min()) > 0.06
    assert float(moved.max()) < 0.13


def test_matrices_decay_as_much_as_the_others() -> None:
    net = Net()
    muon = inner_optimizer("muon", net.named_parameters(), lr=0.01, matrix_lr=0.1, weight_decay=0.5)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    muon.step()
    for name, value in net.named_parameters():
        factor = 1 - 0.01 * 0.5 if value.ndim >= 2 else 1
        torch.testing.assert_close(value.detach(), before[name] * factor)


def test_schedules_scale_both_rates() -> None:
    muon = inner_optimizer("muon", Net().named_parameters(), lr=0.01, matrix_lr=0.1)
    for factor in (0.5, 0.25):
        set_learning_rates(muon, factor)
        rates = {group["lr"] for group in muon.param_groups}
        assert rates == {0.1 * factor, 0.01 * factor}


def test_state_is_saved_and_read_back_as_torch_does() -> None:
    net = Net()
    muon = inner_optimizer("muon", net.named_parameters(), lr=0.01)
    net.loss().backward()
    muon.step()
    twin = copy.deepcopy(net)
    second = inner_optimizer("muon", twin.named_parameters(), lr=0.01)
    second.load_state_dict(copy.deepcopy(muon.state_dict()))
    for model, optimizer in ((net, muon), (twin, second)):
        model.zero_grad()
        model.loss().backward()
        optimizer.step()
    for name, value in net.named_parameters():
        assert torch.equal(value, twin.get_parameter(name)), name


def test_it_learns_what_it_is_asked_to() -> None:
    net = Net()
    muon = inner_optimizer("muon", net.named_parameters(), lr=0.03, weight_decay=0)
    first = net.loss().item()

    def closure() -> float:
        muon.zero_grad()
        loss = net.loss()
        loss.backward()
        return loss.item()

    losses = [muon.step(closure) for _ in range(60)]
    last = losses[-1]
    assert last is not None
    assert last < 0.1 * first


def test_a_model_without_layers_is_told_what_to_choose() -> None:
    with pytest.raises(ConfigError, match=r"0 matrices in layers.*choose adamw"):
        inner_optimizer("muon", nn.Embedding(3, 3).named_parameters(), lr=0.1)
