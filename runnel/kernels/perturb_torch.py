"""The shared-seed perturbation in torch operations, on any device: the bits of `perturbation`.

For weights on an accelerator, and as a check of what is compiled for one. Takes several times a compiled
kernel's memory traffic. A direction is named by its words, as everywhere; what may be cut, and where,
is said in `perturbation`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from runnel.kernels.perturb_signatures import PART_TILES, TILE, Direction, Directions, Int32
from runnel.kernels.perturbation import FixedStep

_LANES = 32
_ROUNDS = 10
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_LARGEST_HALF = 65504.0
_TILES_AT_ONCE = 1024


def minus_mask(where: Direction, first_tile: int, numel: int, device: torch.device) -> Tensor:
    """int32 [numel]: -1 where the sign is -1, else 0."""
    c1, c2, c3, k0, k1 = (int(word) for word in where)
    tiles = -(-numel // TILE)
    blocks = range(first_tile * _LANES, (first_tile + tiles) * _LANES)
    a = torch.arange(blocks.start, blocks.stop, dtype=torch.int64, device=device)
    b, c, d = (torch.full_like(a, word) for word in (c1, c2, c3))
    for _ in range(_ROUNDS):
        p0, p1 = a * _M0, c * _M1  # the low 64 bits, which are all of the product
        a, c = ((p1 >> 32) & _MASK) ^ b ^ k0, ((p0 >> 32) & _MASK) ^ d ^ k1
        b, d = p1 & _MASK, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    words = torch.stack([a, b, c, d]).to(torch.int32).view(4, 1, tiles, _LANES)
    shifts = torch.arange(31, -1, -1, dtype=torch.int32, device=device).view(1, 32, 1, 1)
    return ((words << shifts) >> 31).permute(2, 0, 1, 3).reshape(-1)[:numel]


def perturb(values: Tensor, epsilon: float, where: Direction, *, first_tile: int = 0) -> None:
    """As `perturbation.perturb`, on a contiguous float32 tensor [n]."""
    step = float(np.float32(epsilon))
    for part, tile in _pieces(values.numel(), first_tile):
        x = values[part]
        minus = minus_mask(where, tile, x.numel(), values.device)
        x += torch.where(minus != 0, -step, step)


def materialise(
    master: Tensor,
    out: Tensor,
    where: Direction,
    *,
    step: FixedStep,
    first_tile: int = 0,
) -> None:
    """As `perturbation.materialise`: master int32 [n]; out float32, float16 or bfloat16 [n]."""
    amount, unit = step.amount, 2.0**-step.shift
    for part, tile in _pieces(master.numel(), first_tile):
        minus = minus_mask(where, tile, out[part].numel(), master.device)
        wide = (master[part] + ((minus ^ amount) - minus)).to(torch.float32) * unit
        if out.dtype == torch.float16:
            wide.clamp_(-_LARGEST_HALF, _LARGEST_HALF)
        out[part] = wide.to(out.dtype)


def apply(master: Tensor, coefficients: Int32, where: Directions, *, first_tile: int = 0) -> None:
    """As `perturbation.apply`: master int32 [n]."""
    for part, tile in _pieces(master.numel(), first_tile):
        x = master[part]
        for coefficient, direction in zip(coefficients.tolist(), where, strict=True):
            minus = minus_mask(direction, tile, x.numel(), master.device)
            x += (minus ^ coefficient) - minus


def project_parts(values: Tensor, where: Directions, *, first_tile: int = 0) -> Tensor:
    """As `perturbation.project_parts`: values float32 [n]; float64 [parts, K] on the CPU."""
    parts = [torch.zeros(0, len(where), dtype=torch.float64, device="cpu")]
    for part, tile in _pieces(values.numel(), first_tile):
        x = values[part]
        held = torch.zeros(-(-x.numel() // TILE) * TILE, dtype=torch.float32, device=x.device)
        held[: x.numel()] = x
        shape = (held.numel() // TILE, len(where), _LANES)
        lanes = torch.zeros(shape, dtype=torch.float32, device=x.device)
        for k, direction in enumerate(where):
            minus = minus_mask(direction, tile, held.numel(), x.device)
            signed = torch.where(minus != 0, -held, held).view(-1, TILE // _LANES, _LANES)
            for row in signed.unbind(1):
                lanes[:, k] += row
        parts.append(add_lanes(lanes).cpu())
    return torch.cat(parts)


def add_lanes(lanes: Tensor) -> Tensor:
    """float64 [parts, K]: of float32 [tiles, K, 32] the lanes by rising number, then the tiles of each part."""
    tiles, count, _ = lanes.shape
    parts = -(-tiles // PART_TILES)
    each = torch.zeros(parts * PART_TILES, count, dtype=torch.float64, device=lanes.device)
    for lane in lanes.double().unbind(2):
        each[:tiles] += lane
    total = torch.zeros(parts, count, dtype=torch.float64, device=lanes.device)
    for tile in each.view(parts, PART_TILES, count).unbind(1):
        total += tile
    return total


def _pieces(numel: int, first_tile: int) -> list[tuple[slice, int]]:
    stride = _TILES_AT_ONCE * TILE
    return [
        (slice(start, min(start + stride, numel)), first_tile + start // TILE)
        for start in range(0, numel, stride)
    ]
