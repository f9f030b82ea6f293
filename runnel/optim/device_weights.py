"""Work on a run's integers by the GPUs that hold its model: probes from copies of them, and projections.

The integers themselves stay on the CPU, where they are named and kept. A copy follows them by the
updates that they took, a few bytes, in one pass on the GPU; it is sent anew only when they were
replaced, or have changed too often. What it gives are the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from runnel.kernels import perturb_torch
from runnel.kernels.perturb_device import tensor_kernels
from runnel.kernels.perturb_signatures import Directions, Float64
from runnel.protocols import Float32

if TYPE_CHECKING:
    from torch import Tensor

    from runnel.optim.fixed_point import MasterWeights, Probe
    from runnel.optim.seed_updates import Entries

_INTEGER_BYTES = 4
_DIRECTIONS_BY_TORCH = 32
"""More of them take torch's operations longer than all integers take to get there (by counting, not measured)."""
_WORTH_SENDING = 1 << 26
"""Values times directions that take a core some milliseconds, and a GPU's many small steps not much less."""
_DIRECTIONS_AT_ONCE = 256
_PROJECTION_BYTES = 1 << 28
"""What these take beside the values, whatever their number."""
_UNKNOWN = -1
_DIRECT = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(slots=True)
class _Copy:
    """int32 [n], as the integers were at a turn of their changes."""

    values: Tensor
    turn: int = _UNKNOWN


class DeviceWeights:
    """Materialises parameters that lie on GPUs with room: four bytes per weight, at most half of what is free.

    Only the trainer's thread uses it. The integers may change in another thread meanwhile: what is
    materialised then may be of before, after, or (as on the CPU) of between; later ones are right.
    """

    def __init__(self, weights: MasterWeights, parameters: Iterable[Tensor]) -> None:
        self._weights = weights
        self._copies: dict[int, _Copy] = {}
        sizes: dict[torch.device, int] = {}
        for parameter in parameters:
            held = sizes.get(parameter.device, 0)
            sizes[parameter.device] = held + _INTEGER_BYTES * parameter.numel()
        self._devices = {
            device: tensor_kernels(device)
            for device, size in sizes.items()
            if 2 * size < free_bytes(device)
        }

    def holds(self, device: torch.device) -> bool:
        """Whether parameters of a device are materialised there."""
        return device in self._devices

    def materialise(self, number: int, out: Tensor, probe: Probe | None) -> None:
        """As `MasterWeights.materialise`, for a tensor of any layout and floating-point type on such a device."""
        copy, kernels = self._followed(number, out.device), self._devices[out.device]
        where, step = self._weights.point(number, probe)
        if out.is_contiguous() and out.dtype in _DIRECT:
            kernels.materialise(copy.values, out.view(-1), where, step=step)
            return
        kind = out.dtype if out.dtype in _DIRECT else torch.float32
        held = torch.empty(out.shape, dtype=kind, device=out.device)
        kernels.materialise(copy.values, held.view(-1), where, step=step)
        out.copy_(held)

    def forget(self) -> None:
        """Gives the copies' memory back; they are made anew when they are needed again."""
        self._copies.clear()

    def _followed(self, number: int, device: torch.device) -> _Copy:
        weights, changes = self._weights, self._weights.changes
        source = weights.tensors[number].values
        copy = self._copies.get(number)
        if copy is None or copy.values.device != device:
            values = torch.empty(source.size, dtype=torch.int32, device=device)
            copy = self._copies[number] = _Copy(values)
        turn = changes.turn
        if copy.turn == turn:
            return copy
        additions = changes.between(copy.turn, turn)
        if additions is None or not self._add(number, copy, additions):
            copy.values.copy_(torch.from_numpy(source))
            turn = turn if changes.turn == turn else _UNKNOWN
        copy.turn = turn
        return copy

    def _add(self, number: int, copy: _Copy, additions: Sequence[Entries]) -> bool:
        """Takes additions in one pass; false, with nothing done, if that is not worth it."""
        terms = [self._weights.terms(number, entries) for entries in additions]
        coefficients = np.concatenate([one for one, _ in terms])
        kernels = self._devices[copy.values.device]
        if kernels is perturb_torch and coefficients.size > _DIRECTIONS_BY_TORCH:
            return False
        if coefficients.size:
            directions = np.concatenate([where for _, where in terms])
            kernels.apply(copy.values, coefficients, directions)
        return True


def project_parts(delta: Float32, where: Directions, device: torch.device) -> Float64 | None:
    """As `perturbation.project_parts`, on a GPU; None where there is none with room, or too little to do."""
    if delta.size * len(where) < _WORTH_SENDING:
        return None
    if delta.nbytes + _PROJECTION_BYTES >= free_bytes(device):
        return None
    held, kernels = torch.from_numpy(delta).to(device), tensor_kernels(device)
    groups = range(0, len(where), _DIRECTIONS_AT_ONCE)
    parts = [kernels.project_parts(held, where[k : k + _DIRECTIONS_AT_ONCE]) for k in groups]
    return torch.cat(parts, dim=1).numpy()


def free_bytes(device: torch.device) -> int:
    """Memory that new tensors can have: what the driver calls free, and what torch keeps for reuse. 0 if no GPU."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
