"""Weights as integers: a pure function of base and updates, and a model that follows them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from runnel.errors import ConfigError, RunMismatchError
from runnel.kernels.perturbation import direction, random_signs
from runnel.optim.fixed_point import MasterWeights, Probe, Spread, Task
from runnel.optim.fixed_point_model import FixedPointModel, master_of
from runnel.optim.seed_updates import SeedUpdate, round_shift
from runnel.optim.spsa_loss import Difference, differences, epsilon_amount, loss_value

KEY = (5, 6)


class Sample(nn.Module):
    """Tied, frozen, non-contiguous, half-precision and large parameters, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(50, 96)
        self.mix = nn.Linear(96, 96)
        self.mix.weight = nn.Parameter(torch.randn(96, 96).t() * 0.1)
        self.frozen = nn.Linear(96, 96).requires_grad_(False)
        self.attention = nn.MultiheadAttention(96, 2, batch_first=True)
        self.gain = nn.Parameter(torch.full((1,), 300.0))
        self.head = nn.Linear(96, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.ones(96))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = self.frozen(torch.tanh(self.mix(x))) * self.mask
        x, _ = self.attention(x, x, x)
        logits: torch.Tensor = self.head(x * (self.gain / 300.0))
        return logits


def sample(dtype: torch.dtype = torch.float32) -> Sample:
    return Sample().to(dtype).eval()


def mean_square(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(torch.arange(20).view(2, 10))
    return found.square().mean()


def update(step: int, *, size: int = 4, tensor: int = -1, seed: int = 0) -> SeedUpdate:
    generator = np.random.default_rng([step, seed])
    return SeedUpdate(
        step=step,
        counter=step,
        unit=int(generator.integers(1, 5000)),
        slots=generator.integers(0, 2**32, size, dtype=np.uint32),
        codes=generator.integers(-127, 128, size, dtype=np.int32),
        tensor=tensor,
    )


def bits(model: nn.Module) -> list[bytes]:
    return [value.detach().float().numpy().tobytes() for value in model.parameters()]


def run_in_threads(tasks: Sequence[Task]) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda task: task(), tasks))


def test_integers_are_nearest_and_large_tensors_get_a_coarser_unit() -> None:
    weights = MasterWeights.from_arrays(
        {
            "b": np.array([0.5, -3.999, 2**-29, 3 * 2**-29], np.float32),
            "a": np.array([[4.0, -300.0]], np.float32),
            "empty": np.zeros((0, 3), np.float32),
        },
        KEY,
    )
    assert [tensor.name for tensor in weights.tensors] == ["a", "b", "empty"]
    large, small, empty = weights.tensors
    assert (large.shift, small.shift, empty.shift) == (21, 28, 28)
    assert small.values.tolist() == [2**27, round(float(np.float32(-3.999)) * 2**28), 0, 2]
    assert large.values.tolist() == [4 * 2**21, -300 * 2**21]
    assert weights.arrays()["a"].tolist() == [[4.0, -300.0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**30])
def test_weights_that_no_integer_holds_are_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match="'w'"):
        MasterWeights.from_arrays({"w": np.array([0.0, bad], np.float32)}, KEY)


def test_an_update_is_the_sum_of_the_definition() -> None:
    base = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    weights = MasterWeights.from_arrays({"a": base[:1], "b": base, "c": base * 100}, KEY)
    before = [tensor.values.astype(np.int64) for tensor in weights.tensors]
    updates = [update(0), update(1, tensor=1), update(2)]
    weights.apply(updates)
    for number, tensor in enumerate(weights.tensors):
        for one in updates:
            if one.tensor not in (-1, number):
                continue
            for slot, code in zip(one.slots.tolist(), one.codes.tolist(), strict=True):
                where = direction(number, one.counter, slot, KEY)
                z = random_signs(tensor.values.size, where).astype(np.int64)
                before[number] += z * round(-one.unit * code / 2 ** (28 - tensor.shift))
        assert tensor.values.tolist() == before[number].astype(np.uint32).view(np.int32).tolist()
    with pytest.raises(ValueError, match="tensor 3"):
        weights.apply([update(0, tensor=3)])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), steps=st.integers(1, 12), slices=st.integers(1, 4))
def test_any_order_batching_and_thread_count_give_the_same_state(
    data: st.DataObject, steps: int, slices: int
) -> None:
    base = np.random.default_rng(1).standard_normal(9000).astype(np.float32) * 3
    arrays = {"large": base * 50, "small": base[:7], "wide": base}
    updates = [update(step, tensor=[-1, 0, 2][step % 3]) for step in range(steps)]
    one = MasterWeights.from_arrays(arrays, KEY)
    start = one.digest()
    one.apply(updates)
    other = MasterWeights.from_arrays(arrays, KEY, spread=Spread(slices, run_in_threads))
    order = data.draw(st.permutations(updates))
    cut = data.draw(st.integers(0, steps))
    for batch in (order[:cut], order[cut:]):
        other.apply(batch)
    assert one.digest() == other.digest() != start
    other.apply([step.undone() for step in updates])
    assert other.digest() == start


def test_plain_numpy_reaches_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"w": np.linspace(-1, 1, 9000, dtype=np.float32)}
    states = set()
    for by in ("numba", "reference"):
        monkeypatch.setenv("RUNNEL_KERNELS", by)
        weights = MasterWeights.from_arrays(arrays, KEY)
        weights.apply([update(step) for step in range(3)])
        states.add((weights.digest(), weights.arrays()["w"].tobytes()))
    assert len(states) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("by_module", [False, True])
def test_a_probe_leaves_not_one_bit_changed(dtype: torch.dtype, by_module: bool) -> None:
    model = sample(dtype)
    frozen = model.frozen.weight.clone()
    weights = master_of(model, KEY)
    assert "head.weight" not in weights.ids
    assert not any(name.startswith("frozen") for name in weights.ids)
    tokens = torch.arange(20).view(2, 10)
    plain = FixedPointModel(model, weights)
    at_weights, before, state = model(tokens), bits(model), weights.digest()
    bound = FixedPointModel(model, weights, by_module=True) if by_module else plain
    for slot in range(3):
        with bound.perturbed(Probe(7, slot, epsilon_amount(1e-2))):
            assert not torch.equal(model(tokens), at_weights)
    assert torch.equal(model(tokens), at_weights)
    bound.close()
    assert bits(model) == before
    assert weights.digest() == state
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.frozen.weight, frozen)


def test_weights_by_module_give_the_same_losses_and_stay_away_between_them() -> None:
    losses = []
    for by_module in (False, True):
        model = sample()
        bound = FixedPointModel(model, master_of(model, KEY), by_module=by_module)
        bound.apply([update(0)])
        probes = [Probe(1, 2, 4000), Probe(1, 3, 4000)]
        losses.append(differences(bound, partial(mean_square, model), probes))
        held = sum(value.numel() for value in model.parameters() if value.requires_grad)
        assert (held == 0) == by_module
    assert losses[0] == losses[1]
    assert len({value for one in losses[0] for value in (one.plus, one.minus)}) == 4


def test_a_probe_goes_epsilon_far_in_every_tensor_whatever_its_unit() -> None:
    base = np.array([0.5, -0.25] * 40, np.float32)
    weights = MasterWeights.from_arrays({"fine": base, "coarse": base * 2000}, KEY)
    assert [tensor.shift for tensor in weights.tensors] == [20, 28]
    for number, tensor in enumerate(weights.tensors):
        out = np.empty(base.size, np.float32)
        weights.materialise(number, out, Probe(3, 4, 2**18))
        z = random_signs(base.size, direction(number, 3, 4, KEY)).astype(np.float32)
        assert (out - weights.arrays()[tensor.name]).tolist() == (z * np.float32(2**-10)).tolist()


def test_a_loss_that_raises_leaves_the_model_at_its_weights() -> None:
    model = sample()
    bound = FixedPointModel(model, master_of(model, KEY))
    before = bits(model)
    with pytest.raises(ZeroDivisionError):
        differences(bound, lambda: 1 / 0, [Probe(0, 0, 1000)])
    assert bits(model) == before


def test_a_module_that_raises_gives_its_weights_back() -> None:
    model = sample()
    bound = FixedPointModel(model, master_of(model, KEY), by_module=True)
    with pytest.raises(IndexError):
        model(torch.tensor([[999]]))
    assert model.embedding.weight.numel() == 0
    bound.close()
    assert model(torch.tensor([[1]])).isfinite().all()


def test_a_model_follows_its_weights_and_tells_what_local_steps_did() -> None:
    model = sample()
    bound = FixedPointModel(model, master_of(model, KEY))
    bound.apply([update(0), update(1)])
    expected = bound.weights.arrays()
    for name, value in model.named_parameters():
        if name in expected:
            assert value.detach().numpy().tobytes() == expected[name].tobytes()
    with torch.no_grad():
        model.mix.weight -= 0.25
    names = [tensor.name for tensor in bound.weights.tensors]
    for number, delta in bound.differences():
        moved = 0.25 if names[number] == "mix.weight" else 0.0
        assert np.allclose(delta, moved, atol=1e-6)
    bound.write()
    assert all(not delta.any() for _, delta in bound.differences())


def test_another_model_is_refused() -> None:
    weights = master_of(nn.Linear(3, 4), KEY)
    with pytest.raises(RunMismatchError, match="'bias'"):
        FixedPointModel(nn.Linear(3, 5), weights)
    with pytest.raises(RunMismatchError, match="'bias'"):
        FixedPointModel(nn.Linear(3, 4, bias=False), weights)
    with pytest.raises(ConfigError, match="no trainable"):
        master_of(nn.Linear(3, 4).requires_grad_(False), KEY)
    with pytest.raises(ConfigError, match="by_module"):
        next(FixedPointModel(nn.Linear(3, 4), weights, by_module=True).differences())


def test_weights_that_grow_to_the_end_of_their_range_are_told() -> None:
    weights = MasterWeights.from_arrays({"w": np.array([3.9], np.float32)}, KEY)
    weights.require_room()
    one = SeedUpdate(
        step=0,
        counter=0,
        unit=1 << 23,
        slots=np.zeros(1, np.uint32),
        codes=np.array([-100], np.int32),
    )
    toward = one if random_signs(1, direction(0, 0, 0, KEY))[0] > 0 else one.undone()
    weights.apply([toward])
    with pytest.raises(ConfigError, match="'w' has grown to 7"):
        weights.require_room()


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (nn.Dropout(0.1), "Dropout"),
        (nn.BatchNorm1d(4), "BatchNorm1d"),
        (nn.LSTM(4, 4, 2, dropout=0.1), "LSTM"),
        (nn.MultiheadAttention(4, 1, dropout=0.1), "MultiheadAttention"),
    ],
)
def test_modules_that_are_random_or_keep_statistics_are_refused(
    module: nn.Module, word: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), module)
    bound = FixedPointModel(model, master_of(model, KEY))
    with pytest.raises(ConfigError, match=f"'1' is {word}.*model.eval"):
        differences(bound, lambda: 0.0, [Probe(0, 0, 1)])
    model.eval()
    assert differences(bound, lambda: 0.0, [Probe(0, 0, 1)])[0].scalar == 0.0


def test_losses_that_draw_change_buffers_or_hold_nothing_are_refused() -> None:
    model = nn.Linear(4, 4)
    seen = torch.zeros(())
    model.register_buffer("seen", seen)
    with pytest.raises(ConfigError, match="random"):
        loss_value(model, lambda: nn.functional.dropout(torch.ones(4)).sum())

    def counting() -> float:
        seen.add_(1)
        return 0.0

    with pytest.raises(ConfigError, match="'seen'"):
        loss_value(model, counting)
    with pytest.raises(ConfigError, match="no values"):
        loss_value(model, lambda: torch.zeros(0))
    assert loss_value(model, lambda: torch.tensor([1.0, 1 + 2**-23])) == 1 + 2**-24
    assert not torch.is_grad_enabled() or model.weight.grad is None


def test_a_loss_that_is_no_number_is_a_problem_and_not_a_scalar() -> None:
    assert Difference(2.0, 1.0, 1e-3).problem == ""
    assert Difference(2.0, 1.0, 0.25).scalar == 2.0
    for bad in (float("nan"), float("inf")):
        assert "bfloat16" in Difference(bad, 1.0, 1e-3).problem
    for epsilon in (0.0, -1e-3, float("nan"), 5.0, 1e-12):
        with pytest.raises(ConfigError, match="epsilon"):
            epsilon_amount(epsilon)


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1), st.integers(0, 60))
def test_integers_are_rounded_to_even(values: list[int], shift: int) -> None:
    from fractions import Fraction

    found: Any = round_shift(np.array(values, np.int64), shift)
    assert found.tolist() == [round(Fraction(value, 2**shift)) for value in values]


@pytest.mark.parametrize("shape", [(7, 4), (9, 4), (4, 8)])
def test_a_parameter_of_another_shape_is_named(shape: tuple[int, int]) -> None:
    model = nn.Linear(4, 8)
    bound = FixedPointModel(model, master_of(model, KEY))
    model.weight.data = torch.full(shape, 100.0)
    for use in (bound.write, lambda: list(bound.differences())):
        with pytest.raises(RunMismatchError, match=r"'weight' has shape .* expected \(8, 4\)"):
            use()
    assert (model.weight == 100).all()
