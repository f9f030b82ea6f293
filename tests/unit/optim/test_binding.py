from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from runnel.errors import ConfigError, RunMismatchError
from runnel.optim.binding import ModelBinding, plan_model
from runnel.optim.fragments import FragmentPlan
from runnel.protocols import Float32


class Net(nn.Module):
    """Embedding tied to the head, two layers, a BatchNorm with float buffers."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embedding = nn.Embedding(50, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 50, bias=False)
        self.head.weight = self.embedding.weight
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)
        self.to(dtype)


def bound(model: nn.Module, num_fragments: int = 3) -> ModelBinding:
    return ModelBinding(model, plan_model(model, num_fragments))


def read_all(binding: ModelBinding) -> list[Float32]:
    buffers = [binding.new_buffer(index) for index in range(binding.plan.num_fragments)]
    for index, buffer in enumerate(buffers):
        binding.read(index, buffer)
    return buffers


def expected(
    model: nn.Module, plan: FragmentPlan, fragment: int, dtype: type = np.float32
) -> npt.NDArray[Any]:
    """Slow and obvious: value by value through the parameters' own indices."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    values = []
    for piece in plan.fragments[fragment]:
        flat = parameters[piece.parameter].detach().double().numpy().reshape(-1)
        values += [flat[index] for index in range(piece.start, piece.stop)]
    return np.array(values, dtype=dtype)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_reading_gives_the_planned_values(dtype: torch.dtype) -> None:
    model = Net(dtype)
    binding = bound(model)
    for fragment, buffer in enumerate(read_all(binding)):
        np.testing.assert_array_equal(buffer, expected(model, binding.plan, fragment))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_read_and_written_back_changes_nothing(dtype: torch.dtype) -> None:
    model = Net(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    binding = bound(model)
    for fragment, buffer in enumerate(read_all(binding)):
        binding.write(fragment, buffer)
    if dtype is not torch.float64:  # float32 cannot hold all of float64
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_is_written_exactly_once(dtype: torch.dtype) -> None:
    model = Net(dtype)
    binding = bound(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for fragment, size in enumerate(binding.plan.sizes):
        binding.add(fragment, np.full(size, fragment + 1, dtype=np.float32))
    seen = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    counts = [int((seen == fragment + 1).sum()) for fragment in range(3)]
    assert counts == list(binding.plan.sizes)
    assert seen.numel() == sum(counts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adding_rounds_once(dtype: torch.dtype) -> None:
    model = Net(dtype)
    binding = bound(model)
    wide = np.float64 if dtype is torch.float64 else np.float32
    for fragment, size in enumerate(binding.plan.sizes):
        delta = np.random.default_rng(fragment).normal(size=size).astype(np.float32)
        own = expected(model, binding.plan, fragment, wide)
        sums = torch.from_numpy(own + delta.astype(wide)).to(dtype).to(torch.float64).numpy()
        binding.add(fragment, delta)
        np.testing.assert_array_equal(expected(model, binding.plan, fragment, np.float64), sums)


def test_small_steps_on_bfloat16_are_added_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    binding = bound(model, 1)
    # Half a unit in the last place and a bit: rounding the step to bfloat16 first would give a tie.
    binding.add(0, np.array([2.0**-8 + 2.0**-20], dtype=np.float32))
    assert model.weight.item() == 1.0 + 2.0**-7


@pytest.mark.parametrize("order", ["transposed", "channels_last", "strided"])
def test_parameters_that_are_not_contiguous_are_read_and_updated(order: str) -> None:
    model = nn.Conv2d(3, 4, 2, bias=False)
    if order == "transposed":
        model.weight = nn.Parameter(torch.arange(48.0).view(2, 2, 3, 4).permute(3, 2, 0, 1))
    elif order == "channels_last":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        model.weight = nn.Parameter(torch.arange(96.0).view(4, 3, 2, 4)[..., ::2])
    assert not model.weight.is_contiguous()
    before = model.weight.detach().clone()
    binding = bound(model, 5)
    for fragment, buffer in enumerate(read_all(binding)):
        np.testing.assert_array_equal(buffer, expected(model, binding.plan, fragment))
        binding.add(fragment, np.ones_like(buffer))
    assert torch.equal(model.weight, before + 1)
    for fragment, size in enumerate(binding.plan.sizes):
        binding.write(fragment, np.full(size, 7, dtype=np.float32))
    assert bool((model.weight == 7).all())


def test_tied_parameters_are_updated_once_and_stay_tied() -> None:
    model = Net()
    before = model.embedding.weight.detach().clone()
    binding = bound(model)
    for fragment, size in enumerate(binding.plan.sizes):
        binding.add(fragment, np.ones(size, dtype=np.float32))
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.embedding.weight, before + 1)
    assert binding.plan.numel == sum(parameter.numel() for parameter in model.parameters())


def test_frozen_parameters_and_buffers_stay_as_they_are() -> None:
    model = Net()
    model.first.requires_grad_(requires_grad=False)
    frozen = model.first.weight.detach().clone()
    binding = bound(model)
    for fragment, size in enumerate(binding.plan.sizes):
        binding.add(fragment, np.ones(size, dtype=np.float32))
    assert torch.equal(model.first.weight, frozen)
    assert model.norm.running_mean is not None
    assert bool((model.norm.running_mean == 0).all())
    assert not any(shape.name.startswith("first.") for shape in binding.plan.shapes)


def test_one_huge_parameter_lies_in_all_fragments() -> None:
    model = nn.Embedding(1001, 7)
    binding = bound(model, 4)
    assert max(binding.plan.sizes) - min(binding.plan.sizes) <= 1
    joined = np.concatenate(read_all(binding))
    np.testing.assert_array_equal(np.sort(joined), np.sort(model.weight.detach().numpy().ravel()))


def test_gradients_and_optimizer_state_are_not_touched() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    gradient = model.weight.grad
    assert gradient is not None
    kept, state = gradient.clone(), optimizer.state[model.weight]["exp_avg"].clone()
    bound(model, 1).add(0, np.ones(8, dtype=np.float32))
    assert torch.equal(gradient, kept)
    assert torch.equal(optimizer.state[model.weight]["exp_avg"], state)
    assert model.weight.requires_grad


def test_a_result_in_read_only_memory_is_added() -> None:
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    bound(model, 1).add(0, np.frombuffer(np.ones(2, np.float32).tobytes(), dtype=np.float32))
    assert torch.equal(model.weight, before + 1)


@pytest.mark.parametrize(
    "buffer",
    [
        np.zeros(8, dtype=np.float64),
        np.zeros(7, dtype=np.float32),
        np.zeros((8, 1), dtype=np.float32),
        np.zeros(16, dtype=np.float32)[::2],
    ],
)
def test_a_wrong_buffer_is_refused_and_nothing_changes(buffer: npt.NDArray[Any]) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    binding = bound(model, 1)
    for use in (binding.read, binding.add, binding.write):
        with pytest.raises(ValueError, match="expected a contiguous"):
            use(0, buffer)
    assert torch.equal(model.weight, before)


def test_another_model_does_not_fit_the_plan() -> None:
    plan = plan_model(nn.Linear(3, 2), 1)
    with pytest.raises(RunMismatchError, match=r"'weight'.*\(2, 4\).*\(2, 3\)"):
        ModelBinding(nn.Linear(4, 2), plan)
    with pytest.raises(RunMismatchError, match=r"'bias'.*no such parameter"):
        ModelBinding(nn.Linear(3, 2, bias=False), plan)


def test_a_model_without_trainable_parameters_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="0 trainable values"):
        plan_model(nn.Linear(3, 2).requires_grad_(requires_grad=False), 1)
    with pytest.raises(ConfigError, match="0 trainable values"):
        plan_model(nn.ReLU(), 1)


def test_a_parameter_that_cannot_be_exchanged_is_named() -> None:
    model = nn.Linear(3, 2, device="meta")
    with pytest.raises(ConfigError, match=r"parameter bias: is on the meta device .* \(and 1 more"):
        plan_model(model, 1)
    with pytest.raises(ConfigError, match="meta device"):
        ModelBinding(model, plan_model(nn.Linear(3, 2), 1))


def test_a_compiled_model_has_the_same_plan() -> None:
    model = Net()
    plan = plan_model(model, 3)
    compiled = nn.Module()
    compiled.register_module("_orig_mod", model)
    assert plan_model(compiled, 3).fingerprint() == plan.fingerprint()
    values = ModelBinding(compiled, plan).new_buffer(1)
    ModelBinding(compiled, plan).read(1, values)
    np.testing.assert_array_equal(values, expected(model, plan, 1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_on_the_gpu_gives_the_same_bits(dtype: torch.dtype) -> None:
    here, there = Net(dtype), Net(dtype).to("cuda")
    ours, theirs = bound(here), bound(there)
    for fragment, size in enumerate(ours.plan.sizes):
        delta = np.random.default_rng(fragment).normal(size=size).astype(np.float32)
        ours.add(fragment, delta)
        theirs.add(fragment, delta)
    for one, other in zip(read_all(ours), read_all(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_replaced_or_removed_parameter_is_named() -> None:
    model = Net()
    binding = bound(model)
    binding.require_same()
    model.first = nn.Linear(6, 6)
    with pytest.raises(RunMismatchError, match=r"first\.bias"):
        binding.require_same()


def test_values_may_be_replaced_in_place() -> None:
    model = Net()
    binding = bound(model)
    model.load_state_dict(Net().state_dict())
    model.double()
    binding.require_same()


@pytest.mark.parametrize("shape", [(7, 6), (3, 6), (36,)])
def test_a_parameter_of_another_shape_is_named_and_nothing_of_it_is_read(
    shape: tuple[int, ...],
) -> None:
    model = Net()
    binding = bound(model, num_fragments=1)
    buffer, ones = binding.new_buffer(0), np.ones(binding.plan.sizes[0], np.float32)
    model.first.weight.data = torch.full(shape, 100.0)
    for use in (
        binding.require_same,
        lambda: binding.read(0, buffer),
        lambda: binding.write(0, ones),
        lambda: binding.add(0, ones),
    ):
        with pytest.raises(RunMismatchError, match=r"first\.weight.*expected \(6, 6\)"):
            use()
    assert not (buffer == 100).any()
    assert (model.first.weight == 100).all()


def test_what_is_unfrozen_or_added_later_is_told_of() -> None:
    model = Net()
    model.first.requires_grad_(False)
    binding = bound(model)
    assert binding.unshared() == ()
    model.first.bias.requires_grad_(True)
    model.adapter = nn.Linear(2, 2, bias=False)
    assert binding.unshared() == ("first.bias", "adapter.weight")
