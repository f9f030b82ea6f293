"""Chooses who perturbs tensors on a GPU: Triton's kernels where they work, else torch's operations.

Both give the bits of `perturbation`. Triton comes with torch's builds for CUDA on Linux, and needs a C
compiler on the machine. Before its kernels are used on a device they are compared with torch's operations
there, over a few tiles and every kind of output: a driver, a GPU or a version of Triton that nobody tried
costs a line of warning, not a replica.
"""

from __future__ import annotations

import functools
import logging
import os
from importlib.util import find_spec
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from runnel.kernels import perturb_torch
from runnel.kernels.dispatch import ENVIRONMENT_VARIABLE
from runnel.kernels.perturb_signatures import TILE, Direction, Directions, Int32
from runnel.kernels.perturbation import FixedStep

log = logging.getLogger(__name__)

_TRIED_VALUES = 2 * TILE + 77
_TRIED_DIRECTIONS = 19


class TensorKernels(Protocol):
    """The operations of a module, on contiguous tensors that all lie on one device.

    They run in the current stream of that device, whichever device is the current one.
    """

    def perturb(
        self, values: Tensor, epsilon: float, where: Direction, *, first_tile: int = 0
    ) -> None:
        """As `perturbation.perturb`: values float32 [n]."""

    def materialise(
        self,
        master: Tensor,
        out: Tensor,
        where: Direction,
        *,
        step: FixedStep,
        first_tile: int = 0,
    ) -> None:
        """As `perturbation.materialise`: master int32 [n]; out float32, float16 or bfloat16 [n]."""

    def apply(
        self, master: Tensor, coefficients: Int32, where: Directions, *, first_tile: int = 0
    ) -> None:
        """As `perturbation.apply`: master int32 [n]; coefficients and directions are on the CPU."""

    def project_parts(self, values: Tensor, where: Directions, *, first_tile: int = 0) -> Tensor:
        """As `perturbation.project_parts`: values float32 [n]; float64 [parts, K] on the CPU."""
        ...


def tensor_kernels(device: torch.device) -> TensorKernels:
    """Those for a device. The first call compiles Triton's (some seconds, kept on disk) and compares them.

    With ``RUNNEL_KERNELS=reference`` it is torch's operations.
    """
    return _load(device, os.environ.get(ENVIRONMENT_VARIABLE) == "reference")


@functools.cache
def _load(device: torch.device, plain: bool) -> TensorKernels:  # noqa: FBT001 - a key of the cache
    if plain or find_spec("triton") is None:
        log.debug("perturbations on %s by torch's operations", device)
        return perturb_torch
    try:
        from runnel.kernels import perturb_triton

        wrong = differing(perturb_triton, device)
    except Exception as error:  # noqa: BLE001 - the border to a compiler that raises anything
        reason = f"they do not run: {type(error).__name__}: {error}".splitlines()[0]
    else:
        if not wrong:
            log.debug("perturbations on %s by Triton", device)
            return perturb_triton
        reason = f"{', '.join(wrong)} gives other bits"
    log.warning(
        "perturbations on %s by torch's operations, several times slower than Triton's kernels: %s",
        device,
        reason,
    )
    return perturb_torch


def differing(kernels: TensorKernels, device: torch.device) -> list[str]:
    """The operations that give other bits than torch's on a device."""
    generator = np.random.default_rng(0)
    where = generator.integers(0, 1 << 32, (_TRIED_DIRECTIONS, 5), dtype=np.uint32)
    coefficients = generator.integers(-(1 << 31), 1 << 31, _TRIED_DIRECTIONS, dtype=np.int32)
    master = generator.integers(-(1 << 31), 1 << 31, _TRIED_VALUES, dtype=np.int32)
    values = generator.standard_normal(_TRIED_VALUES, dtype=np.float32)
    found = []
    for one in (kernels, perturb_torch):
        integers, floats = (torch.from_numpy(x.copy()).to(device) for x in (master, values))
        one.apply(integers, coefficients, where, first_tile=3)
        parts = one.project_parts(floats, where)
        one.perturb(floats, 1e-3, where[0], first_tile=3)
        outputs = {"apply": integers, "project_parts": parts, "perturb": floats}
        for kind in (torch.float32, torch.float16, torch.bfloat16):
            out = torch.empty(_TRIED_VALUES, dtype=kind, device=device)
            one.materialise(integers, out, where[1], step=FixedStep(-12345, 20), first_tile=3)
            outputs[f"materialise {kind}"] = out
        found.append({name: out.cpu().view(torch.uint8) for name, out in outputs.items()})
    ours, theirs = found
    return [name for name, out in ours.items() if not torch.equal(out, theirs[name])]
