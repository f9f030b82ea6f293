"""The shared-seed perturbation as Triton kernels, for tensors on a GPU: the bits of `perturbation`.

A program takes one tile in one warp: lane j of 32 has block j of Philox, and in it the signs of the values
j, 32 + j, 64 + j and so on, so that neighbouring threads read and write neighbouring values. Nothing
here can be fused into something that rounds otherwise: weights are integers, the only product is one with
a power of two, and signs are chosen, not multiplied with. Sums in `project_parts` are additions alone.

Helpers stand in the file that uses them: Triton's cache watches the source of kernels. What tells directions
apart lies in device memory as int32 words, as arguments of some values would make variants of their own.
Importing this imports Triton, which not every torch brings along: `perturb_device` chooses.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from runnel.kernels.perturb_signatures import PART_TILES, TILE, Direction, Directions, Int32
from runnel.kernels.perturb_torch import add_lanes
from runnel.kernels.perturbation import FixedStep

_TILE = tl.constexpr(TILE)
_LANES = tl.constexpr(32)
_WORD_VALUES = tl.constexpr(1024)
_ROUNDS = tl.constexpr(10)
_M0, _M1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
_W0, _W1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)
_LARGEST_HALF = tl.constexpr(65504.0)
_ROW_WORDS = tl.constexpr(6)  # a number, then the direction
_UNROLLED = tl.constexpr(8)
_GROUP = tl.constexpr(16)  # directions that are projected on in one pass over the values
_GIVEN = ["numel", "first_tile", "count"]  # in whose values no variant of a kernel begins

_HOW = {"num_warps": 1, "enable_fp_fusion": False}
_PROJECTED_TILES = 4 * PART_TILES


@triton.jit
def _tile_words(tile: tl.tensor, where: tl.tensor) -> tuple[tl.tensor, ...]:
    """Four words of each lane; `where` points at a direction's words, or [D, 1] at those of D directions.

    Source: J. Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011).
    """
    a = (tile * _LANES).to(tl.uint32) + tl.arange(0, _LANES).to(tl.uint32)
    b = tl.load(where).to(tl.uint32, bitcast=True)
    c = tl.load(where + 1).to(tl.uint32, bitcast=True)
    d = tl.load(where + 2).to(tl.uint32, bitcast=True)
    k0 = tl.load(where + 3).to(tl.uint32, bitcast=True)
    k1 = tl.load(where + 4).to(tl.uint32, bitcast=True)
    for _ in tl.static_range(_ROUNDS):
        p0 = a.to(tl.uint64) * _M0
        p1 = c.to(tl.uint64) * _M1
        a = (p1 >> 32).to(tl.uint32) ^ b ^ k0
        c = (p0 >> 32).to(tl.uint32) ^ d ^ k1
        b = p1.to(tl.uint32)
        d = p0.to(tl.uint32)
        k0 += _W0
        k1 += _W1
    return a, b, c, d


@triton.jit
def _minus(word: tl.tensor) -> tl.tensor:
    """int32 -1 where the sign is -1, else 0, for the [32, 32] values that one word of each lane is for."""
    shifts = (31 - tl.arange(0, _LANES))[:, None]
    return (word.to(tl.int32, bitcast=True)[None, :] << shifts) >> 31


@triton.jit
def _signed(word: tl.tensor, number: tl.tensor) -> tl.tensor:
    """The product of an integer and the signs, modulo 2^32."""
    minus = _minus(word)
    return (minus ^ number) - minus


@triton.jit
def _places() -> tl.tensor:
    """Where these values lie, from the first of them on."""
    return tl.arange(0, _LANES)[:, None] * _LANES + tl.arange(0, _LANES)[None, :]


@triton.jit
def _left(values: tl.tensor) -> tl.tensor:
    """Values from here on, of which a tile's are of interest: int32."""
    return tl.minimum(values, _TILE).to(tl.int32)


@triton.jit
def _perturb_word(values: tl.tensor, word: tl.tensor, epsilon: tl.tensor, left: tl.tensor) -> None:
    at = _places()
    step = (epsilon ^ (_minus(word) << 31)).to(tl.float32, bitcast=True)
    tl.store(values + at, tl.load(values + at, mask=at < left) + step, mask=at < left)


@triton.jit(do_not_specialize=_GIVEN)
def _perturb(values: tl.tensor, row: tl.tensor, numel: tl.tensor, first_tile: tl.tensor) -> None:
    tile = tl.program_id(0).to(tl.int64)
    epsilon = tl.load(row)
    w0, w1, w2, w3 = _tile_words(first_tile + tile, row + 1)
    here, left = values + tile * _TILE, _left(numel - tile * _TILE)
    _perturb_word(here, w0, epsilon, left)
    _perturb_word(here + _WORD_VALUES, w1, epsilon, left - _WORD_VALUES)
    _perturb_word(here + 2 * _WORD_VALUES, w2, epsilon, left - 2 * _WORD_VALUES)
    _perturb_word(here + 3 * _WORD_VALUES, w3, epsilon, left - 3 * _WORD_VALUES)


@triton.jit
def _materialise_word(
    master: tl.tensor, out: tl.tensor, word: tl.tensor, row: tl.tensor, left: tl.tensor
) -> None:
    amount = tl.load(row)
    unit = tl.load(row + _ROW_WORDS).to(tl.float32, bitcast=True)
    at = _places()
    moved = tl.load(master + at, mask=at < left) + _signed(word, amount)
    wide = moved.to(tl.float32) * unit
    if out.dtype.element_ty == tl.float16:
        near = tl.minimum(tl.maximum(wide, -_LARGEST_HALF), _LARGEST_HALF)
        tl.store(out + at, near.to(tl.float16), mask=at < left)
    elif (
        out.dtype.element_ty == tl.int16
    ):  # bfloat16's bits, in integers: not every GPU converts to it
        bits = wide.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(out + at, rounded.to(tl.uint16).to(tl.int16, bitcast=True), mask=at < left)
    else:
        tl.store(out + at, wide, mask=at < left)


@triton.jit(do_not_specialize=_GIVEN)
def _materialise(
    master: tl.tensor, out: tl.tensor, row: tl.tensor, numel: tl.tensor, first_tile: tl.tensor
) -> None:
    tile = tl.program_id(0).to(tl.int64)
    w0, w1, w2, w3 = _tile_words(first_tile + tile, row + 1)
    x, y, left = master + tile * _TILE, out + tile * _TILE, _left(numel - tile * _TILE)
    _materialise_word(x, y, w0, row, left)
    x, y, left = x + _WORD_VALUES, y + _WORD_VALUES, left - _WORD_VALUES
    _materialise_word(x, y, w1, row, left)
    x, y, left = x + _WORD_VALUES, y + _WORD_VALUES, left - _WORD_VALUES
    _materialise_word(x, y, w2, row, left)
    x, y, left = x + _WORD_VALUES, y + _WORD_VALUES, left - _WORD_VALUES
    _materialise_word(x, y, w3, row, left)


@triton.jit
def _add_word(master: tl.tensor, sums: tl.tensor, left: tl.tensor) -> None:
    at = _places()
    tl.store(master + at, tl.load(master + at, mask=at < left) + sums, mask=at < left)


@triton.jit(do_not_specialize=_GIVEN)
def _apply(
    master: tl.tensor, rows: tl.tensor, numel: tl.tensor, first_tile: tl.tensor, count: tl.tensor
) -> None:
    tile = tl.program_id(0).to(tl.int64)
    s0 = tl.full((_LANES, _LANES), 0, tl.int32)
    s1, s2, s3 = s0, s0, s0
    for k in range(count):
        row = rows + k * _ROW_WORDS
        c = tl.load(row)
        w0, w1, w2, w3 = _tile_words(first_tile + tile, row + 1)
        s0 += _signed(w0, c)
        s1 += _signed(w1, c)
        s2 += _signed(w2, c)
        s3 += _signed(w3, c)
    here, left = master + tile * _TILE, _left(numel - tile * _TILE)
    _add_word(here, s0, left)
    _add_word(here + _WORD_VALUES, s1, left - _WORD_VALUES)
    _add_word(here + 2 * _WORD_VALUES, s2, left - 2 * _WORD_VALUES)
    _add_word(here + 3 * _WORD_VALUES, s3, left - 3 * _WORD_VALUES)


@triton.jit
def _project_word(
    values: tl.tensor, words: tl.tensor, lanes: tl.tensor, left: tl.tensor
) -> tl.tensor:
    """Adds 32 rows of values to the lanes of D directions [D, 32], by rising index."""
    j = tl.arange(0, _LANES)
    for first in range(0, _LANES, _UNROLLED):
        for s in tl.static_range(_UNROLLED):
            at = (first + s) * _LANES + j
            x = tl.load(values + at, mask=at < left, other=0.0).to(tl.uint32, bitcast=True)
            flipped = x[None, :] ^ ((words >> (first + s)) << 31)
            lanes += flipped.to(tl.float32, bitcast=True)
    return lanes


@triton.jit(do_not_specialize=_GIVEN)
def _project(
    values: tl.tensor,
    rows: tl.tensor,
    out: tl.tensor,
    numel: tl.tensor,
    first_tile: tl.tensor,
    count: tl.tensor,
) -> None:
    tile = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * _GROUP + tl.arange(0, _GROUP)[:, None]
    w0, w1, w2, w3 = _tile_words(
        first_tile + tile, rows + tl.minimum(k, count - 1) * _ROW_WORDS + 1
    )
    lanes = tl.full((_GROUP, _LANES), 0.0, tl.float32)
    here, left = values + tile * _TILE, _left(numel - tile * _TILE)
    lanes = _project_word(here, w0, lanes, left)
    lanes = _project_word(here + _WORD_VALUES, w1, lanes, left - _WORD_VALUES)
    lanes = _project_word(here + 2 * _WORD_VALUES, w2, lanes, left - 2 * _WORD_VALUES)
    lanes = _project_word(here + 3 * _WORD_VALUES, w3, lanes, left - 3 * _WORD_VALUES)
    at = (tile * count + k) * _LANES + tl.arange(0, _LANES)[None, :]
    tl.store(out + at, lanes, mask=k < count)


def perturb(values: Tensor, epsilon: float, where: Direction, *, first_tile: int = 0) -> None:
    """As `perturbation.perturb`, on a contiguous float32 tensor [n]."""
    if not values.numel():
        return
    row = _rows(np.array([epsilon], np.float32).view(np.int32), where[None], values.device)
    with torch.cuda.device_of(values):
        _perturb[_grid(values)](values, row, values.numel(), first_tile, **_HOW)


def materialise(
    master: Tensor, out: Tensor, where: Direction, *, step: FixedStep, first_tile: int = 0
) -> None:
    """As `perturbation.materialise`: master int32 [n]; out float32, float16 or bfloat16 [n]."""
    if not master.numel():
        return
    unit = np.array([2.0**-step.shift], np.float32)
    words = np.concatenate(
        [np.array([step.amount], np.int32), where.view(np.int32), unit.view(np.int32)]
    )
    row = torch.from_numpy(words).to(master.device, non_blocking=True)
    target = out.view(torch.int16) if out.dtype == torch.bfloat16 else out
    with torch.cuda.device_of(master):
        _materialise[_grid(master)](master, target, row, master.numel(), first_tile, **_HOW)


def apply(master: Tensor, coefficients: Int32, where: Directions, *, first_tile: int = 0) -> None:
    """As `perturbation.apply`: master int32 [n]; one pass over it, whatever K is."""
    if not master.numel():
        return
    rows = _rows(coefficients, where, master.device)
    with torch.cuda.device_of(master):
        _apply[_grid(master)](master, rows, master.numel(), first_tile, len(rows), **_HOW)


def project_parts(values: Tensor, where: Directions, *, first_tile: int = 0) -> Tensor:
    """As `perturbation.project_parts`: values float32 [n]; float64 [parts, K] on the CPU."""
    rows = _rows(np.zeros(len(where), np.int32), where, values.device)
    parts = [torch.zeros(0, len(where), dtype=torch.float64, device="cpu")]
    for start in range(0, values.numel(), _PROJECTED_TILES * TILE):
        x = values[start : start + _PROJECTED_TILES * TILE]
        grid = (*_grid(x), -(-len(where) // _GROUP.value))
        shape = (grid[0], len(where), _LANES.value)
        lanes = torch.empty(shape, dtype=torch.float32, device=x.device)
        with torch.cuda.device_of(x):
            tile = first_tile + start // TILE
            _project[grid](x, rows, lanes, x.numel(), tile, len(where), **_HOW)
        parts.append(add_lanes(lanes).cpu())
    return torch.cat(parts)


def _rows(numbers: Int32, where: Directions, device: torch.device) -> Tensor:
    """int32 [K, 6]: each direction behind its number."""
    rows = np.concatenate([numbers[:, None], where.view(np.int32)], axis=1)
    return torch.from_numpy(rows).to(device, non_blocking=True)


def _grid(values: Tensor) -> tuple[int, ...]:
    return (-(-values.numel() // TILE),)
