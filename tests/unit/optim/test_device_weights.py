"""Integers that are copied to where a model is: they follow, and the model gets the bits of the CPU's way.

The CPU stands in for a GPU with room, as torch's operations are the same there; tests marked gpu take one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from runnel.hashing import digest
from runnel.kernels import perturbation
from runnel.optim import device_weights, fixed_point_model
from runnel.optim.device_weights import DeviceWeights, free_bytes, project_parts
from runnel.optim.fixed_point import MasterWeights, Probe
from runnel.optim.fixed_point_model import FixedPointModel, master_of
from runnel.optim.just_one_byte import pack_codes
from runnel.optim.seed_methods import BlockMethod, LearningRate, OneByteMethod, PoolMethod
from runnel.optim.seed_rounds import RoundEntry
from runnel.optim.seed_store import SeedStore
from runnel.optim.seed_updates import Entries, SeedUpdate
from runnel.optim.seed_walks import BlockWalk, OneByteWalk, Part, PoolWalk
from runnel.optim.spsa_loss import epsilon_amount

KEY = (5, 6)
AMOUNT = epsilon_amount(1e-2)
PROBE = Probe(7, 3, AMOUNT)
CPU = torch.device("cpu")
ON = pytest.mark.parametrize(
    "device", [CPU, pytest.param(torch.device("cuda", 0), marks=pytest.mark.gpu)]
)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device has room."""
    monkeypatch.setattr(device_weights, "free_bytes", lambda _: 1 << 40)


class Sample(nn.Module):
    """A tied, a transposed, a large and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(90, 64)
        self.mix = nn.Linear(64, 64)
        self.mix.weight = nn.Parameter(torch.randn(64, 64).t() * 0.1)
        self.gain = nn.Parameter(torch.full((), 300.0))
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.head = nn.Linear(64, 90, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.frozen(torch.tanh(self.mix(self.embedding(tokens))))
        found: torch.Tensor = self.head(x * (self.gain / 300.0))
        return found


def sample(dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> Sample:
    return Sample().to(device, dtype).eval()


def bits(model: nn.Module) -> list[bytes]:
    return [value.detach().double().cpu().numpy().tobytes() for value in model.parameters()]


def update(step: int, *, tensor: int = -1) -> SeedUpdate:
    generator = np.random.default_rng(step)
    return SeedUpdate(
        step=step,
        counter=step,
        unit=int(generator.integers(1, 500_000)),
        slots=generator.integers(0, 2**32, 5, dtype=np.uint32),
        codes=generator.integers(-127, 128, 5, dtype=np.int32),
        tensor=tensor,
    )


def held_by(weights: MasterWeights, copies: DeviceWeights, device: torch.device) -> bool:
    """Whether every tensor is materialised as on the CPU, at the weights and at a probe."""
    for number, tensor in enumerate(weights.tensors):
        for probe in (None, PROBE):
            expected, found = np.empty(tensor.values.size, np.float32), torch.empty(tensor.shape)
            weights.materialise(number, expected, probe)
            found = found.to(device)
            copies.materialise(number, found, probe)
            if found.cpu().numpy().tobytes() != expected.tobytes():
                return False
    return True


@ON
@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("by_module", [False, True])
def test_a_model_holds_the_bits_of_the_cpus_way(
    device: torch.device, dtype: torch.dtype, by_module: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = sample(dtype, device), sample(dtype)
    bound = FixedPointModel(ours, master_of(ours, KEY), by_module=by_module)
    assert bound._beside.holds(device)
    monkeypatch.setattr(device_weights, "free_bytes", lambda _: 0)
    plain = FixedPointModel(theirs, master_of(theirs, KEY))
    assert not plain._beside.holds(CPU)
    for step in range(3):
        for one in (bound, plain):
            one.apply([update(step), update(50 + step, tensor=1)])
            one.write(PROBE)
        if device == CPU:
            tokens = torch.arange(20).view(2, 10)
            assert torch.equal(ours(tokens), theirs(tokens))
        assert by_module or bits(ours) == bits(theirs)
    assert bound._beside._copies
    for one in (bound, plain):
        one.close()
    assert bits(ours) == bits(theirs)
    assert bound.weights.digest() == plain.weights.digest()
    assert not bound._beside._copies


@ON
@pytest.mark.usefixtures("room")
def test_a_copy_follows_what_is_added_and_is_sent_anew_after_anything_else(
    device: torch.device,
) -> None:
    weights = master_of(sample(), KEY)
    copies = DeviceWeights(weights, [torch.empty(9, device=device)])
    assert held_by(weights, copies, device)
    sent = {number: copy.values for number, copy in copies._copies.items()}
    for count in (1, 3, 8, 9, 30):
        for step in range(count):
            weights.apply([update(step), update(70 + step, tensor=step % 3)])
        known = weights.changes.between(copies._copies[0].turn, weights.changes.turn)
        assert (known is None) == (count > 8)
        assert held_by(weights, copies, device)
    with weights.changes.overwriting():
        for tensor in weights.tensors:
            tensor.values[:] = 5
    assert held_by(weights, copies, device)
    weights.apply([update(1)])
    weights.apply([update(1).undone()])
    assert held_by(weights, copies, device)
    assert all(copies._copies[number].values is values for number, values in sent.items())
    copies.forget()
    assert held_by(weights, copies, device)


@pytest.mark.usefixtures("room")
def test_a_copy_of_integers_that_were_changing_is_not_trusted() -> None:
    weights = master_of(sample(), KEY)
    copies, one = DeviceWeights(weights, [torch.empty(9)]), update(3)
    first, out = weights.tensors[0].values, torch.empty(weights.tensors[0].shape)
    with weights.changes.adding(Entries.of([one])):
        first[:7] += 1
        copies.materialise(0, out, None)
        first[:7] -= 1
        for number, tensor in enumerate(weights.tensors):
            weights._add(number, tensor, Entries.of([one]))
    assert held_by(weights, copies, CPU)


@pytest.mark.usefixtures("room")
def test_a_copy_that_a_change_began_in_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = master_of(sample(), KEY)
    copies = DeviceWeights(weights, [torch.empty(9)])
    read, done = torch.from_numpy, list[int]()

    def reading(array: np.ndarray) -> torch.Tensor:
        found = read(array).clone()
        if not done:
            done.append(1)
            weights.apply([update(3)])
            found[:7] += 1  # read while that went on
        return found

    monkeypatch.setattr(torch, "from_numpy", reading)
    copies.materialise(0, torch.empty(weights.tensors[0].shape), None)
    assert done
    assert held_by(weights, copies, CPU)


def test_what_is_not_known_is_no_list_of_additions() -> None:
    weights = master_of(sample(), KEY)
    changes = weights.changes
    assert changes.between(changes.turn, changes.turn) == []
    assert changes.between(-1, changes.turn) is None
    weights.apply([update(0)])
    weights.apply([update(1)])
    assert [one.slots.size for one in changes.between(0, changes.turn) or []] == [5, 5]
    assert len(changes.between(2, changes.turn) or []) == 1
    assert changes.between(1, changes.turn) is None
    with pytest.raises(ZeroDivisionError), changes.adding(Entries.of([])):
        _ = 1 // 0
    assert changes.between(4, changes.turn) is None


def test_many_directions_are_not_kept_as_sending_integers_is_quicker() -> None:
    weights = master_of(nn.Linear(1, 1), KEY)
    changes = weights.changes
    large = [update(step) for step in range(600)]
    weights.apply(large[:200])
    weights.apply(large[:200])
    assert [one.slots.size for one in changes.between(0, 4) or []] == [1000, 1000]
    weights.apply(large[:150])
    assert changes.between(0, 6) is None
    assert [one.slots.size for one in changes.between(2, 6) or []] == [1000, 750]
    weights.apply(large)
    assert changes.between(6, 8) is None


def test_a_device_with_too_little_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes(CPU) == 0
    weights = master_of(sample(), KEY)
    assert not DeviceWeights(weights, [torch.empty(0)]).holds(CPU)
    for free, fits in ((8 * 100, False), (8 * 100 + 1, True)):
        monkeypatch.setattr(device_weights, "free_bytes", lambda _, free=free: free)
        assert DeviceWeights(weights, [torch.empty(60), torch.empty(40)]).holds(CPU) == fits


@pytest.mark.gpu
def test_a_gpu_has_room_for_a_small_model() -> None:
    model = sample(device=torch.device("cuda"))
    bound = FixedPointModel(model, master_of(model, KEY))
    assert bound._beside.holds(model.gain.device)
    assert bound._beside._copies


@ON
def test_a_gpu_projects_large_deltas_to_the_bits_of_the_cpu(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    delta = generator.standard_normal(2 * 4096 + 9, dtype=np.float32)
    where = generator.integers(0, 1 << 32, (7, 5), dtype=np.uint32)
    assert project_parts(delta, where, device) is None  # too little work
    monkeypatch.setattr(device_weights, "_WORTH_SENDING", delta.size * 7)
    monkeypatch.setattr(device_weights, "_DIRECTIONS_AT_ONCE", 3)
    monkeypatch.setattr(device_weights, "free_bytes", lambda _: delta.nbytes + (1 << 28))
    assert project_parts(delta, where, device) is None  # too little room
    monkeypatch.setattr(device_weights, "free_bytes", lambda _: delta.nbytes + (1 << 28) + 1)
    found = project_parts(delta, where, device)
    assert found is not None
    assert found.tobytes() == perturbation.project_parts(delta, where).tobytes()
    assert project_parts(delta, where[:6], device) is None


def test_local_steps_are_projected_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing lies beside the model meanwhile, whose optimizer needs the memory."""
    there = list[bool]()

    def noting(*given: Any) -> Any:
        parts = project_parts(*given)
        there.append(parts is not None)
        return parts

    monkeypatch.setattr(fixed_point_model, "project_parts", noting)
    monkeypatch.setattr(device_weights, "_WORTH_SENDING", 4096 * 30)
    expected = local_steps()
    assert not any(there)
    monkeypatch.setattr(device_weights, "free_bytes", lambda _: 1 << 40)
    there.clear()
    assert local_steps() == expected
    assert there == [True, False, False, True]


def local_steps() -> bytes:
    model, method = sample(), BlockMethod(4, 64, LearningRate(0.05))
    store = SeedStore(master_of(model, KEY), method, lambda parts: digest(*map(bytes, parts)))
    walk = BlockWalk(model, store, method, 1)
    assert not walk._bound._beside.holds(CPU)
    walk.begin(store.state)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.01 * torch.randn(value.shape, generator=generator))
    payload = walk.step(1.0).payload
    assert payload is not None
    assert len(payload) > 64
    return payload


def walks_of(method: OneByteMethod | PoolMethod, *, rounds: int) -> tuple[list[bytes], bytes]:
    """The contributions of a peer whose weights move, are tried and taken back, and are loaded; its model."""
    model = sample()
    store = SeedStore(master_of(model, KEY), method, lambda parts: digest(*map(bytes, parts)))
    walk: OneByteWalk | PoolWalk
    if isinstance(method, OneByteMethod):
        walk = OneByteWalk(model, store, method, AMOUNT)
    else:
        walk = PoolWalk(model, store, method, AMOUNT, uneven=False)
    tokens, payloads, kept = torch.arange(20).view(2, 10), list[bytes](), store.shared(0)
    kept = (kept[0].copy(), kept[1].copy())
    for number in range(rounds):
        walk.begin(store.state)
        walk.enter(Part(0, 0, b"%d" % number))
        payload = None
        while payload is None:
            payload = walk.step(lambda: model(tokens).square().mean() / 8).payload
        payloads.append(payload)
        other = pack_codes([9, -20]) if isinstance(method, OneByteMethod) else payload
        store.prepare("tried", RoundEntry(0, {0: payload, 5: other}).encode())
        store.prepare(number, RoundEntry(0, {0: payload}).encode())
        store.adopt(number)
        if number == 2:
            store.load(0, *kept)
    walk.begin(store.state)
    return payloads, b"".join(bits(model))


@pytest.mark.parametrize(
    "method", [OneByteMethod(2, LearningRate(0.01)), PoolMethod(64, 3, LearningRate(0.01))]
)
def test_contributions_are_those_of_the_cpus_way(
    method: OneByteMethod | PoolMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = walks_of(method, rounds=5)
    monkeypatch.setattr(device_weights, "free_bytes", lambda _: 1 << 40)
    assert walks_of(method, rounds=5) == expected
    assert len(set(expected[0])) >= 3  # what follows a load is what followed the same state before
    assert not any(code in payload for payload in expected[0] for code in (127, 129))
