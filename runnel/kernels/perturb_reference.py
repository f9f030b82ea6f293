"""What the shared-seed perturbation computes, in plain numpy: the definition, and the fallback without numba."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from runnel.kernels.perturb_signatures import (
    PART_TILES,
    TILE,
    Direction,
    Directions,
    Float64,
    Int32,
    PerturbationKernels,
)
from runnel.kernels.signatures import Float32

Words = npt.NDArray[np.uint32]

_LANES = 32
_ROUNDS = 10
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_SIGN = np.uint32(0x80000000)
_SHIFTS = np.arange(31, -1, -1, dtype=np.uint32)[None, None, :, None]
_TILES_AT_ONCE = 32  # what is computed in between stays in the cache


def philox(blocks: Any, direction: Direction) -> tuple[Any, ...]:
    """Philox4x32-10 of the counters (block, c1, c2, c3): four arrays of 32-bit words, as uint64.

    Source: J. Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011).
    """
    c1, c2, c3, k0, k1 = (int(word) for word in direction)
    a = np.asarray(blocks, np.uint64)
    b, c, d = (np.full_like(a, word) for word in (c1, c2, c3))
    for _ in range(_ROUNDS):
        p0, p1 = a * _M0, c * _M1
        a = (p1 >> _HALF) ^ b ^ np.uint64(k0)
        c = (p0 >> _HALF) ^ d ^ np.uint64(k1)
        b, d = p1 & _MASK, p0 & _MASK
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return a, b, c, d


def sign_bits(direction: Direction, first_tile: int, out: Words) -> None:
    """2^31 where the sign is -1, else 0, for uint32 [tiles, 4 words, 32 bits, 32 lanes]."""
    tiles = len(out)
    blocks = np.arange(first_tile * _LANES, (first_tile + tiles) * _LANES, dtype=np.uint64)
    words = [word.astype(np.uint32).reshape(tiles, _LANES) for word in philox(blocks, direction)]
    np.left_shift(np.stack(words, axis=1)[:, :, None, :], _SHIFTS, out=out)
    out &= _SIGN


def signs(direction: Direction, first_tile: int, out: npt.NDArray[np.int8]) -> None:
    """See `PerturbationKernels.signs`."""
    for part, bits in _pieces(out.size, direction, first_tile):
        out[part] = np.where(bits, np.int8(-1), np.int8(1))


def perturb(values: Float32, epsilon: np.float32, direction: Direction, first_tile: int) -> None:
    """See `PerturbationKernels.perturb`."""
    for part, bits in _pieces(values.size, direction, first_tile):
        bits ^= np.float32(epsilon).view(np.uint32)
        values[part] += bits.view(np.float32)


def materialise(
    master: Int32,
    amount: np.int32,
    unit: np.float32,
    direction: Direction,
    first_tile: int,
    out: Float32,
) -> None:
    """See `PerturbationKernels.materialise`."""
    for part, bits in _pieces(master.size, direction, first_tile):
        moved = _signed(bits, amount)
        moved += master[part]
        np.multiply(moved, unit, out=out[part], dtype=np.float32)


def apply(master: Int32, coefficients: Int32, directions: Directions, first_tile: int) -> None:
    """See `PerturbationKernels.apply`."""
    for coefficient, direction in zip(coefficients, directions, strict=True):
        for part, bits in _pieces(master.size, direction, first_tile):
            master[part] += _signed(bits, coefficient)


def project(values: Float32, directions: Directions, first_tile: int, out: Float64) -> None:
    """See `PerturbationKernels.project`."""
    tiles = -(-values.size // TILE)
    padded = np.zeros(tiles * TILE, np.float32)
    padded[: values.size] = values
    out[:] = 0.0
    for k, direction in enumerate(directions):
        for part, bits in _pieces(padded.size, direction, first_tile):
            bits ^= padded[part].view(np.uint32)
            rows = bits.view(np.float32).reshape(-1, TILE // _LANES, _LANES)
            lanes = np.zeros((len(rows), _LANES), np.float32)
            for row in range(TILE // _LANES):
                lanes += rows[:, row]
            each = np.add.accumulate(lanes, axis=1, dtype=np.float64)[:, -1]
            for tile, share in enumerate(each, part.start // TILE):
                out[tile // PART_TILES, k] += share


def to_bfloat16(values: Float32, halves: npt.NDArray[np.uint16]) -> None:
    """See `PerturbationKernels.to_bfloat16`."""
    bits = values.view(np.uint32)
    halves[:] = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(
        16
    )


def _pieces(size: int, direction: Direction, first_tile: int) -> Iterator[tuple[slice, Words]]:
    """Stretches of up to 32 tiles with the sign bits of their values, in memory that is used again."""
    held = np.empty((min(_TILES_AT_ONCE, -(-size // TILE)), 4, 32, _LANES), np.uint32)
    for start in range(0, size, _TILES_AT_ONCE * TILE):
        stop = min(size, start + _TILES_AT_ONCE * TILE)
        tiles = -(-(stop - start) // TILE)
        sign_bits(direction, first_tile + start // TILE, held[:tiles])
        yield slice(start, stop), held.reshape(-1)[: stop - start]


def _signed(bits: Words, amount: np.int32) -> Int32:
    """The product of `amount` and z as int32, wrapping, in the place of the sign bits."""
    signed = bits.view(np.int32)
    signed >>= np.int32(31)
    signed |= np.int32(1)
    signed *= amount
    return signed


KERNELS = PerturbationKernels(
    signs=signs,
    perturb=perturb,
    materialise=materialise,
    apply=apply,
    project=project,
    to_bfloat16=to_bfloat16,
)
