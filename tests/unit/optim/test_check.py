from __future__ import annotations

import pytest
import torch
from torch import nn

from runnel.optim.check import survey


def with_parameter(value: nn.Parameter) -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_parameter("odd", value)
    return model


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (nn.Parameter(torch.zeros(3, dtype=torch.complex64)), "complex64"),
        (nn.Parameter(torch.zeros(3).to(torch.float8_e4m3fn)), "float8_e4m3fn"),
        (nn.Parameter(torch.zeros(3, device="meta")), "meta device"),
        (nn.Parameter(torch.zeros(3, 3).to_sparse()), "sparse_coo"),
        (nn.Parameter(torch.zeros(1).expand(3)), "several places"),
        (nn.UninitializedParameter(), "no shape yet"),
    ],
)
def test_a_parameter_that_cannot_be_exchanged_is_named_with_its_reason(
    value: nn.Parameter, reason: str
) -> None:
    found = survey(with_parameter(value))
    assert len(found.problems) == 1
    assert found.problems[0].startswith("odd: ")
    assert reason in found.problems[0]
    assert [shape.name for shape in found.exchanged] == ["bias", "weight"]


def test_an_integer_parameter_does_not_train_and_counts_as_frozen() -> None:
    value = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    found = survey(with_parameter(value))
    assert found.frozen == ("odd",)
    assert not found.problems


def test_a_tensor_subclass_is_refused() -> None:
    class Sharded(torch.Tensor):
        pass

    value = torch.zeros(3).as_subclass(Sharded).requires_grad_()
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(value)
    found = survey(model)
    assert len(found.problems) == 1
    assert "weight: is a Sharded" in found.problems[0]


def test_two_parameters_on_one_memory_are_refused() -> None:
    model = nn.Module()
    model.first = nn.Parameter(torch.zeros(4))
    model.second = nn.Parameter(model.first.detach()[1:3])
    found = survey(model)
    assert len(found.problems) == 1
    assert found.problems[0].startswith("second: shares memory with first")


def test_neighbouring_views_of_one_memory_are_fine() -> None:
    memory = torch.zeros(8)
    model = nn.Module()
    model.first, model.second = nn.Parameter(memory[:3]), nn.Parameter(memory[3:])
    assert not survey(model).problems


def test_everything_has_a_place() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[3].weight = model[2].weight
    model[0].requires_grad_(requires_grad=False)
    found = survey(model)
    assert [shape.name for shape in found.exchanged] == [
        "1.bias",
        "1.weight",
        "2.bias",
        "2.weight",
        "3.bias",
    ]
    assert found.tied == (("2.weight", "3.weight"),)
    assert found.frozen == ("0.bias", "0.weight")
    assert found.float_buffers == ("1.running_mean", "1.running_var")
    assert found.other_buffers == ("1.num_batches_tracked",)


def test_the_name_of_tied_parameters_does_not_depend_on_the_order_of_registration() -> None:
    first, second = nn.Module(), nn.Module()
    shared = nn.Parameter(torch.zeros(2))
    first.a, first.b = shared, shared
    second.b, second.a = shared, shared
    assert survey(first) == survey(second)
