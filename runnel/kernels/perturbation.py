"""Perturbations that follow from a seed: random signs, the same bits on every machine.

A direction z is named by five 32-bit words: a tensor id, a step, a slot (the peer or the candidate)
and the two words of a run's key. Its signs come from Philox4x32-10 with the key (k0, k1) and the
counter (block, tensor id, step, slot). For value i of a tensor in C order::

    tile = i >> 12
    r = i & 4095
    lane = r & 31
    bit = r >> 5
    word = philox(block=32 * tile + lane)[bit >> 5]
    z = -1 if (word >> (bit & 31)) & 1 else +1

Every tensor begins with its own tile 0. A slice that begins at a multiple of 4,096 values is told its
`first_tile`, and gets the bits that the whole tensor would have got there: several threads can share a
tensor. Weights are int32 in units of a power of two, and change by integers: sums modulo 2^32 have
no order, so replicas are equal whatever the batching, the threads or the code that did it.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runnel.kernels.arrays import require_vector
from runnel.kernels.dispatch import implementation
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

WORDS = 5
MAX_TILES = 1 << 27
"""Tiles of a tensor: beyond them its blocks would not fit into 32 bits."""

_CHUNK = 1 << 17  # values that are materialised before they are narrowed, so that they stay cached


class FixedStep(NamedTuple):
    """A distance along a direction: `amount` units of 2^-`shift`.

    Attributes:
        amount: an int32; 0 is for the weights themselves.
        shift: of the weights that are to be moved, 0 to 60.
    """

    amount: int
    shift: int = 28


def direction(tensor: int, step: int, slot: int, key: tuple[int, int]) -> Direction:
    """The name of a direction of one tensor: uint32 [5].

    Raises:
        ValueError: a word below 0 or above 2^32 - 1.
    """
    words = (tensor, step, slot, *key)
    if any(not 0 <= word < 1 << 32 for word in words):
        raise ValueError(f"direction {words}: every word is at least 0 and below 2^32")
    return np.array(words, np.uint32)


def random_signs(
    numel: int, where: Direction, *, first_tile: int = 0, by: str | None = None
) -> npt.NDArray[np.int8]:
    """The signs as int8 [numel], from tile `first_tile` on. `by` forces an implementation, here and below.

    Raises:
        ValueError: not a direction, or tiles beyond what the counter can name.
    """
    _check_direction(where)
    _check_tiles(numel, first_tile)
    out = np.empty(numel, np.int8)
    _kernels(by).signs(where, first_tile, out)
    return out


def perturb(
    values: Float32,
    epsilon: float,
    where: Direction,
    *,
    first_tile: int = 0,
    by: str | None = None,
) -> None:
    """``values += epsilon * z`` in place, with epsilon and each sum rounded to float32.

    Adding and subtracting drifts: for weights that are to come back use `materialise`.

    Raises:
        ValueError: `values` is not a contiguous, writable float32 vector; see `random_signs`.
    """
    require_vector(values, "values", write=True)
    _check_direction(where)
    _check_tiles(values.size, first_tile)
    _kernels(by).perturb(values, np.float32(epsilon), where, first_tile)


def materialise(
    master: Int32,
    out: npt.NDArray[Any],
    where: Direction,
    *,
    step: FixedStep,
    first_tile: int = 0,
    by: str | None = None,
) -> None:
    """``out = float32(master + step.amount * z) * 2^-step.shift``, the sum modulo 2^32, everything to nearest even.

    Args:
        master: int32 [n].
        out: float32 [n]; float16 [n], clamped to +-65504; or uint16 [n], which gets bfloat16's bits.
            The halves are rounded from the float32 value.
        where: the direction.
        step: how far to go along z.
        first_tile: of the slice.
        by: forces an implementation.

    Raises:
        ValueError: arrays of other types or sizes, a shift out of range; see `random_signs`.
        OverflowError: the amount is no int32.
    """
    require_vector(master, "master", dtype=np.int32)
    if out.dtype not in (np.float32, np.float16, np.uint16):
        raise ValueError(f"out is {out.dtype}, expected float32, float16, or uint16 for bfloat16")
    require_vector(out, "out", dtype=out.dtype, size=master.size, write=True)
    _check_direction(where)
    _check_tiles(master.size, first_tile)
    if not 0 <= step.shift <= 60:
        raise ValueError(f"shift {step.shift}, expected 0 to 60")
    kernels, amount, unit = _kernels(by), np.int32(step.amount), np.float32(2.0**-step.shift)
    if out.dtype == np.float32:
        kernels.materialise(master, amount, unit, where, first_tile, out)
        return
    held = np.empty(min(_CHUNK, master.size), np.float32)
    for start in range(0, master.size, _CHUNK):
        x = master[start : start + _CHUNK]
        wide, narrow = held[: x.size], out[start : start + _CHUNK]
        kernels.materialise(x, amount, unit, where, first_tile + start // TILE, wide)
        if out.dtype == np.float16:
            encode = implementation(by).halves["fp16"].encode
            encode(wide, wide, narrow.view(np.uint16))
        else:
            kernels.to_bfloat16(wide, narrow)


def apply(
    master: Int32,
    coefficients: Int32,
    where: Directions,
    *,
    first_tile: int = 0,
    by: str | None = None,
) -> None:
    """``master += sum over k of coefficients[k] * z_k`` modulo 2^32, in one pass over the weights.

    Any order, any batching gives the same bits. Costs about 0.1 ns per value and direction.

    Args:
        master: int32 [n], changed in place.
        coefficients: int32 [K].
        where: uint32 [K, 5].
        first_tile: of the slice.
        by: forces an implementation.

    Raises:
        ValueError: arrays of other types or sizes; see `random_signs`.
    """
    require_vector(master, "master", dtype=np.int32, write=True)
    _check_directions(where)
    require_vector(coefficients, "coefficients", dtype=np.int32, size=len(where))
    _check_tiles(master.size, first_tile)
    _kernels(by).apply(master, coefficients, where, first_tile)


def project_parts(
    values: Float32, where: Directions, *, first_tile: int = 0, by: str | None = None
) -> Float64:
    """<values, z_k> by parts of 256 tiles: float64 [parts, K]; `add_parts` makes the projections of them.

    Threads cut at multiples of 256 tiles and put their parts one below the other. The order within
    a part is said at `PerturbationKernels.project`.

    Raises:
        ValueError: `first_tile` is no multiple of 256; arrays of other types; see `random_signs`.
    """
    require_vector(values, "values")
    _check_directions(where)
    _check_tiles(values.size, first_tile)
    if first_tile % PART_TILES:
        raise ValueError(f"first_tile {first_tile}, expected a multiple of {PART_TILES}")
    parts = -(-values.size // (TILE * PART_TILES))
    out = np.zeros((parts, len(where)), np.float64)
    _kernels(by).project(values, where, first_tile, out)
    return out


def add_parts(parts: Float64) -> Float64:
    """The sum of the rows by rising number, starting from 0: float64 [K]."""
    total = np.zeros(parts.shape[1], np.float64)
    for row in parts:
        total += row
    return total


def slices(numel: int, count: int, *, tiles: int = 1) -> tuple[tuple[slice, int], ...]:
    """Up to `count` slices of `numel` values for as many threads, each with the tile it begins with.

    They are cut at multiples of `tiles` tiles: 1 for weights, `PART_TILES` for projections.
    """
    stride = TILE * tiles
    blocks = -(-numel // stride)
    count = max(1, min(count, blocks))
    starts = [blocks * part // count * stride for part in range(count)]
    return tuple((slice(a, b), a // TILE) for a, b in pairwise((*starts, numel)))


def _kernels(by: str | None) -> PerturbationKernels:
    return _load(implementation(by).name)


@functools.cache
def _load(name: str) -> PerturbationKernels:
    """Only who perturbs pays for loading (some milliseconds per function) or compiling (10 s, once)."""
    if name == "numba":
        from runnel.kernels import perturb_numba

        return perturb_numba.KERNELS
    from runnel.kernels import perturb_reference

    return perturb_reference.KERNELS


def _check_direction(where: Direction) -> None:
    require_vector(where, "direction", dtype=np.uint32, size=WORDS)


def _check_directions(where: Directions) -> None:
    fits = where.dtype == np.uint32 and where.ndim == 2 and where.shape[1] == WORDS
    if not fits or not where.flags.c_contiguous:
        raise ValueError(
            f"directions are {where.dtype}{list(where.shape)}, expected uint32 [K, {WORDS}]"
        )


def _check_tiles(numel: int, first_tile: int) -> None:
    if first_tile < 0 or first_tile + -(-numel // TILE) > MAX_TILES:
        raise ValueError(
            f"{numel} values from tile {first_tile} on, expected 0 to {MAX_TILES} tiles"
        )
