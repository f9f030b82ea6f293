"""Perturbations of tensors: torch's operations and Triton's kernels give the bits of the definition.

Triton's kernels run on a GPU if there is one, else in Triton's interpreter, which needs no GPU.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from runnel.kernels import perturb_device, perturb_torch, perturbation
from runnel.kernels.perturb_device import TensorKernels
from runnel.kernels.perturbation import FixedStep, direction

WHERE = direction(7, 12345, 3, (0xDEADBEEF, 0x12345678))
KINDS = [torch.float32, torch.float16, torch.bfloat16]
LAST_TILE = perturbation.MAX_TILES - 2
NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

FLOAT_OPERATIONS = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from runnel.kernels import perturb_triton

INTS = {"numel": "i64", "first_tile": "i32"}
MASTER = {"master": "*i32", "out": "", "row": "*i32", **INTS}
KERNELS = [
    (perturb_triton._perturb, {"values": "*fp32", "row": "*i32", **INTS}),
    (perturb_triton._materialise, {**MASTER, "out": "*fp32"}),
    (perturb_triton._materialise, {**MASTER, "out": "*fp16"}),
    (perturb_triton._materialise, {**MASTER, "out": "*i16"}),
    (perturb_triton._apply, {"master": "*i32", "rows": "*i32", **INTS, "count": "i32"}),
    (perturb_triton._project, {"values": "*fp32", "rows": "*i32", "out": "*fp32", **INTS, "count": "i32"}),
]
for kernel, signature in KERNELS:
    compiled = triton.compile(
        ASTSource(kernel, signature), target=GPUTarget("cuda", 90, 32), options=perturb_triton._HOW
    )
    assert compiled.asm["cubin"]
    names = re.findall(r"^\\s+(?:@!?%p\\d+\\s+)?([a-z][a-z0-9_.]*)", compiled.asm["ptx"], re.MULTILINE)
    print(*sorted({name for name in names if re.search("fma|f16|f32|f64", name)}))
"""


class Case(NamedTuple):
    kernels: TensorKernels
    device: torch.device


@pytest.fixture(params=["torch", pytest.param("triton", marks=NEEDS_TRITON)])
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    if request.param == "torch":
        yield Case(perturb_torch, torch.device("cpu"))
        return
    yield Case(triton_kernels(monkeypatch), DEVICE)


def triton_kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Without a GPU, imported anew: whether kernels are interpreted is decided then."""
    name = "runnel.kernels.perturb_triton"
    if DEVICE.type != "cuda":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module(name)


def masters(size: int) -> Any:
    return np.random.default_rng(size).integers(-(2**31), 2**31, size, dtype=np.int32)


def floats(size: int) -> Any:
    return np.random.default_rng(size).standard_normal(size).astype(np.float32)


def rows(count: int) -> Any:
    return np.random.default_rng(count).integers(0, 2**32, (count, 5), dtype=np.uint32)


def coefficients(count: int) -> Any:
    found = np.random.default_rng(count).integers(-(2**31), 2**31, count, dtype=np.int32)
    found[:1] = -(2**31)
    return found


def sent(array: Any, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array.copy()).to(device)


def raw(tensor: torch.Tensor) -> bytes:
    bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return bits.cpu().numpy().tobytes()


def test_an_update_is_that_of_the_definitions_vector(case: Case) -> None:
    master = np.zeros(4096, np.int32)
    master[:16] = 1000 * (np.arange(16) - 8)
    entries = [(100, 7, 1, 0), (-3, 7, 2, 5), (12345, 9, 2, 1)]
    where = np.stack([direction(c1, c2, c3, (5, 6)) for _, c1, c2, c3 in entries])
    found = sent(master, case.device)
    case.kernels.apply(found, np.array([a for a, *_ in entries], np.int32), where)
    assert found[:8].tolist() == [4242, 5248, -18248, 7242, 8248, 9248, 10242, -13442]
    assert hashlib.sha256(raw(found)).hexdigest().startswith("6902c20a12e6cd9e")


def test_signs_are_those_of_the_definitions_vector(case: Case) -> None:
    found = torch.zeros(8192, device=case.device)
    case.kernels.perturb(found, 1.0, WHERE)
    packed = np.packbits(found.cpu().numpy() < 0, bitorder="little").tobytes()
    assert packed[:8].hex() == "8400bb299c74aca3"
    assert packed[512:520].hex() == "1630df18d17c81dc"
    assert hashlib.sha256(packed).hexdigest().startswith("eb46419ba13c0f18")


@pytest.mark.parametrize(
    ("size", "first_tile"), [(0, 0), (1, LAST_TILE), (33, 0), (4097, LAST_TILE)]
)
def test_weights_get_the_same_bits(case: Case, size: int, first_tile: int) -> None:
    master, where = masters(size), rows(1)[0]
    integers = sent(master, case.device)
    for kind, shift in [*((kind, 28) for kind in KINDS), (torch.float16, 0), (torch.float32, 60)]:
        for amount in (0, -(2**31)) if size == 1 else (-77777,):
            step = FixedStep(amount, shift)
            out = torch.empty(size, dtype=kind)
            target = out.view(torch.uint16) if kind == torch.bfloat16 else out
            perturbation.materialise(
                master, target.numpy(), where, step=step, first_tile=first_tile
            )
            found = torch.empty(size, dtype=kind, device=case.device)
            case.kernels.materialise(integers, found, where, step=step, first_tile=first_tile)
            assert raw(found) == raw(out)
    assert raw(integers) == master.tobytes()


@pytest.mark.parametrize(
    ("size", "count", "first_tile"),
    [(0, 2, 0), (1, 1, LAST_TILE), (33, 64, 0), (4097, 5, LAST_TILE), (4095, 0, 0)],
)
def test_many_directions_give_the_same_bits(
    case: Case, size: int, count: int, first_tile: int
) -> None:
    master, factors, where = masters(size), coefficients(count), rows(count)
    found = sent(master, case.device)
    perturbation.apply(master, factors, where, first_tile=first_tile)
    case.kernels.apply(found, factors, where, first_tile=first_tile)
    assert raw(found) == master.tobytes()


@pytest.mark.parametrize("size", [0, 1, 4097])
def test_values_and_projections_get_the_same_bits(case: Case, size: int) -> None:
    values, where = floats(size), rows(17)
    if size:
        values[0] = -0.0
    held = sent(values, case.device)
    parts = perturbation.project_parts(values, where, first_tile=256)
    found = case.kernels.project_parts(held, where, first_tile=256)
    assert found.numpy().tobytes() == parts.tobytes()
    assert found.shape == parts.shape
    for epsilon in (1e-3, 0.0):
        perturbation.perturb(values, epsilon, WHERE, first_tile=5)
        case.kernels.perturb(held, epsilon, WHERE, first_tile=5)
        assert raw(held) == values.tobytes()


def test_slices_that_begin_anywhere_in_memory_get_the_bits_of_the_whole(case: Case) -> None:
    size = 4096 + 40
    padded, master = torch.zeros(size + 3, dtype=torch.int32), masters(size)
    integers = padded.to(case.device)[3:]
    integers.copy_(torch.from_numpy(master))
    outs = torch.zeros(size + 1, dtype=torch.bfloat16, device=case.device)
    for part, tile in perturbation.slices(size, 2):
        case.kernels.apply(integers[part], coefficients(2), rows(2), first_tile=tile)
        here = (integers[part], outs[1:][part], WHERE)
        case.kernels.materialise(*here, step=FixedStep(9), first_tile=tile)
    perturbation.apply(master, coefficients(2), rows(2))
    expected = torch.empty(size, dtype=torch.bfloat16)
    perturbation.materialise(master, expected.view(torch.uint16).numpy(), WHERE, step=FixedStep(9))
    assert raw(integers) == master.tobytes()
    assert raw(outs[1:]) == raw(expected)
    assert outs[0] == 0


def large(kernels: TensorKernels, device: torch.device, size: int) -> None:
    values, master, where, factors = floats(size), masters(size), rows(2), coefficients(2)
    other_values, other = sent(values, device), sent(master, device)
    perturbation.apply(master, factors, where)
    kernels.apply(other, factors, where)
    assert raw(other) == master.tobytes()
    out = np.empty(size, np.float32)
    perturbation.materialise(master, out, WHERE, step=FixedStep(-7, 20))
    found = torch.empty(size, device=device)
    kernels.materialise(other, found, WHERE, step=FixedStep(-7, 20))
    assert raw(found) == out.tobytes()
    parts = perturbation.project_parts(values, where)
    assert kernels.project_parts(other_values, where).numpy().tobytes() == parts.tobytes()
    perturbation.perturb(values, 1e-3, WHERE)
    kernels.perturb(other_values, 1e-3, WHERE)
    assert raw(other_values) == values.tobytes()


def test_torch_operations_give_the_same_bits_beyond_what_they_take_at_once() -> None:
    large(perturb_torch, torch.device("cpu"), 1024 * 4096 + 4100)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch", pytest.param("triton", marks=NEEDS_TRITON)])
def test_a_gpu_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = perturb_torch if name == "torch" else triton_kernels(monkeypatch)
    large(kernels, torch.device("cuda"), 16 * 256 * 4096 + 4100)


@pytest.mark.gpu
@NEEDS_TRITON
def test_a_gpu_gives_the_same_bits_beyond_two_to_the_31_values() -> None:
    kernels, size = triton_kernels(pytest.MonkeyPatch()), 2**31 + 4097
    if torch.cuda.mem_get_info()[0] < 8 * size:
        pytest.skip("needs 18 GB of free memory of a GPU")
    master = torch.zeros(size, dtype=torch.int32, device=DEVICE)
    kernels.apply(master, np.array([3], np.int32), rows(1))
    tail = np.zeros(4097, np.int32)
    perturbation.apply(tail, np.array([3], np.int32), rows(1), first_tile=2**19)
    assert raw(master[-4097:]) == tail.tobytes()


@pytest.mark.gpu
@NEEDS_TRITON
def test_the_kernels_of_a_gpu_are_tritons() -> None:
    name = perturb_device.tensor_kernels(torch.device("cuda", 0))
    assert name.__name__ == "runnel.kernels.perturb_triton"  # type: ignore[attr-defined]


@pytest.mark.slow
@NEEDS_TRITON
def test_compiled_for_a_gpu_no_floats_are_multiplied_and_added_in_one() -> None:
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", FLOAT_OPERATIONS],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scaled = "cvt.rn.f32.s32 mul.rn.f32"
    narrowed = "cvt.rn.f16.f32 cvt.rn.f32.s32 max.f32 min.f32 mul.rn.f32"
    assert done.stdout.splitlines() == ["add.rn.f32", scaled, narrowed, scaled, "", "add.rn.f32"]


def test_a_device_whose_triton_does_not_work_gets_torchs_operations(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On the CPU Triton's kernels do not run, unless they are interpreted."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(perturb_device, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "runnel.kernels.perturb_triton", None)
    monkeypatch.delattr("runnel.kernels.perturb_triton", raising=False)
    perturb_device._load.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert perturb_device.tensor_kernels(cpu) is perturb_torch
        assert perturb_device.tensor_kernels(cpu) is perturb_torch
    assert len(caplog.messages) == 1
    assert "several times slower" in caplog.text
    perturb_device._load.cache_clear()


def test_kernels_that_give_other_bits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert perturb_device.differing(perturb_torch, cpu) == []

    class Wrong:
        perturb = staticmethod(perturb_torch.perturb)
        project_parts = staticmethod(perturb_torch.project_parts)
        materialise = staticmethod(perturb_torch.materialise)

        @staticmethod
        def apply(
            master: torch.Tensor, coefficients: Any, where: Any, *, first_tile: int = 0
        ) -> None:
            perturb_torch.apply(master, coefficients, where, first_tile=first_tile)
            master[-1] += 1

    assert perturb_device.differing(Wrong(), cpu)[0] == "apply"


def test_plain_arithmetic_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNEL_KERNELS", "reference")
    assert perturb_device.tensor_kernels(DEVICE) is perturb_torch
