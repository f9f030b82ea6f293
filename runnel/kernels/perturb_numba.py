"""Compiled perturbation; `perturb_reference` says in numpy what it does.

The rules of `blockwise_numba` for compiled code hold here too. Signs are used as they come out of
Philox: bit b of word w of 32 neighbouring blocks belongs to 32 neighbouring values, so every loop
runs with unit stride over 32 lanes. Four directions share each pass over the accumulators in
`apply`, which is what bounds it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

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

_COMPILE: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLOATS_IN = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS_OUT = types.float32[::1]
_INTS_IN = types.Array(types.int32, 1, "C", readonly=True)
_INTS_OUT = types.int32[::1]
_DIRECTION = types.Array(types.uint32, 1, "C", readonly=True)
_DIRECTIONS = types.Array(types.uint32, 2, "C", readonly=True)

_LANES = 32
_WORD_VALUES = 1024
_ROUNDS = 10
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_HALF = np.uint64(32)
_SIGN = np.uint32(0x80000000)
_NONE = np.uint32(0)


@njit(inline="always")
def _tile_words(tile: Any, direction: Direction, words: Any) -> None:
    """The 32 blocks of a tile: words[w, lane]. J. Salmon et al., Parallel Random Numbers, 2011."""
    a, b, c, d = words[0], words[1], words[2], words[3]
    k0, k1 = direction[3], direction[4]
    first = np.uint32(tile * _LANES)
    for i in range(_LANES):
        a[i] = np.uint32(first + np.uint32(i))
        b[i] = direction[0]
        c[i] = direction[1]
        d[i] = direction[2]
    for _ in range(_ROUNDS):
        for i in range(_LANES):
            p0 = _M0 * np.uint64(a[i])
            p1 = _M1 * np.uint64(c[i])
            above = np.uint32(np.uint32(np.uint32(p1 >> _HALF) ^ b[i]) ^ k0)
            below = np.uint32(np.uint32(np.uint32(p0 >> _HALF) ^ d[i]) ^ k1)
            b[i] = np.uint32(p1)
            d[i] = np.uint32(p0)
            a[i] = above
            c[i] = below
        k0 = np.uint32(k0 + _W0)
        k1 = np.uint32(k1 + _W1)


@njit(inline="always")
def _is_minus(words: Any, r: Any) -> Any:
    """Whether value r of a tile has the sign -1."""
    bit = r >> 5
    return np.uint32(words[bit >> 5, r & 31] >> np.uint32(bit & 31)) & np.uint32(1)


@njit(types.void(_DIRECTION, types.int64, types.int8[::1]), **_COMPILE)
def signs(direction: Direction, first_tile: int, out: Any) -> None:
    """See `PerturbationKernels.signs`."""
    words = np.empty((4, _LANES), np.uint32)
    for start in range(0, out.size, TILE):
        _tile_words(first_tile + start // TILE, direction, words)
        z = out[start : start + TILE]
        for r in range(z.size):
            z[r] = np.int8(-1) if _is_minus(words, r) else np.int8(1)


@njit(types.void(_FLOATS_OUT, types.float32, _DIRECTION, types.int64), **_COMPILE)
def perturb(values: Float32, epsilon: np.float32, direction: Direction, first_tile: int) -> None:
    """See `PerturbationKernels.perturb`."""
    words = np.empty((4, _LANES), np.uint32)
    bits = np.float32(epsilon).view(np.uint32)
    for start in range(0, values.size, TILE):
        _tile_words(first_tile + start // TILE, direction, words)
        if start + TILE > values.size:
            for r in range(values.size - start):
                flip = np.uint32(_is_minus(words, r) << np.uint32(31))
                values[start + r] += np.uint32(bits ^ flip).view(np.float32)
            continue
        for w in range(4):
            row = words[w]
            for s in range(32):
                at = start + w * _WORD_VALUES + s * _LANES
                x = values[at : at + _LANES]
                shift = np.uint32(31 - s)
                for j in range(_LANES):
                    flip = np.uint32(np.uint32(row[j] << shift) & _SIGN)
                    x[j] += np.uint32(flip ^ bits).view(np.float32)


@njit(
    types.void(_INTS_IN, types.int32, types.float32, _DIRECTION, types.int64, _FLOATS_OUT),
    **_COMPILE,
)
def materialise(
    master: Int32,
    amount: np.int32,
    unit: np.float32,
    direction: Direction,
    first_tile: int,
    out: Float32,
) -> None:
    """See `PerturbationKernels.materialise`."""
    words = np.empty((4, _LANES), np.uint32)
    minus = np.int32(-amount)
    for start in range(0, master.size, TILE):
        _tile_words(first_tile + start // TILE, direction, words)
        if start + TILE > master.size:
            for r in range(master.size - start):
                step = minus if _is_minus(words, r) else amount
                out[start + r] = np.float32(np.int32(master[start + r] + step)) * unit
            continue
        for w in range(4):
            row = words[w]
            for s in range(32):
                at = start + w * _WORD_VALUES + s * _LANES
                x, y = master[at : at + _LANES], out[at : at + _LANES]
                mask = np.uint32(np.uint32(1) << np.uint32(s))
                for j in range(_LANES):
                    step = minus if np.uint32(row[j] & mask) != _NONE else amount
                    y[j] = np.float32(np.int32(x[j] + step)) * unit


@njit(inline="always")
def _gather(words: Any, c: Any, sums: Any) -> None:
    """Adds c[q] to the sums where the sign of direction q is -1, for four directions and a whole tile."""
    c0, c1, c2, c3 = c[0], c[1], c[2], c[3]
    zero = np.int32(0)
    for w in range(4):
        w0, w1, w2, w3 = words[0, w], words[1, w], words[2, w], words[3, w]
        for s in range(32):
            at = w * _WORD_VALUES + s * _LANES
            x = sums[at : at + _LANES]
            mask = np.uint32(np.uint32(1) << np.uint32(s))
            for j in range(_LANES):
                v0 = c0 if np.uint32(w0[j] & mask) != _NONE else zero
                v1 = c1 if np.uint32(w1[j] & mask) != _NONE else zero
                v2 = c2 if np.uint32(w2[j] & mask) != _NONE else zero
                v3 = c3 if np.uint32(w3[j] & mask) != _NONE else zero
                x[j] = np.int32(x[j] + np.int32(np.int32(v0 + v1) + np.int32(v2 + v3)))


@njit(types.void(_INTS_OUT, _INTS_IN, _DIRECTIONS, types.int64), **_COMPILE)
def apply(master: Int32, coefficients: Int32, directions: Directions, first_tile: int) -> None:
    """See `PerturbationKernels.apply`. With m the sum where z = -1: sum of c * z = sum of c - 2 * m."""
    words = np.empty((4, 4, _LANES), np.uint32)
    sums = np.empty(TILE, np.int32)
    four = np.zeros(4, np.int32)
    total = np.int32(0)
    for k in range(coefficients.size):
        total = np.int32(total + coefficients[k])
    for start in range(0, master.size, TILE):
        for i in range(TILE):
            sums[i] = np.int32(0)
        for k in range(0, coefficients.size, 4):
            for q in range(4):
                four[q] = np.int32(0)
                if k + q < coefficients.size:
                    four[q] = coefficients[k + q]
                    _tile_words(first_tile + start // TILE, directions[k + q], words[q])
            _gather(words, four, sums)
        x = master[start : start + TILE]
        for i in range(x.size):
            x[i] = np.int32(x[i] + np.int32(total - np.int32(np.int32(2) * sums[i])))


@njit(inline="always")
def _tile_product(held: Float32, words: Any, lanes: Float32) -> Any:
    """<held, z> of a whole tile, in the order that `PerturbationKernels.project` says."""
    for j in range(_LANES):
        lanes[j] = np.float32(0)
    for w in range(4):
        row = words[w]
        for s in range(32):
            at = w * _WORD_VALUES + s * _LANES
            x = held[at : at + _LANES]
            shift = np.uint32(31 - s)
            for j in range(_LANES):
                flip = np.uint32(np.uint32(row[j] << shift) & _SIGN)
                lanes[j] += np.uint32(flip ^ np.float32(x[j]).view(np.uint32)).view(np.float32)
    total = 0.0
    for j in range(_LANES):
        total += np.float64(lanes[j])
    return total


@njit(types.void(_FLOATS_IN, _DIRECTIONS, types.int64, types.float64[:, ::1]), **_COMPILE)
def project(values: Float32, directions: Directions, first_tile: int, out: Float64) -> None:
    """See `PerturbationKernels.project`. Values beyond the end count as +0."""
    words = np.empty((4, _LANES), np.uint32)
    held = np.empty(TILE, np.float32)
    lanes = np.empty(_LANES, np.float32)
    out[:] = 0.0
    for start in range(0, values.size, TILE):
        x = values[start : start + TILE]
        for i in range(x.size):
            held[i] = x[i]
        for i in range(x.size, TILE):
            held[i] = np.float32(0)
        part = start // (TILE * PART_TILES)
        for k in range(directions.shape[0]):
            _tile_words(first_tile + start // TILE, directions[k], words)
            out[part, k] += _tile_product(held, words, lanes)


@njit(types.void(_FLOATS_IN, types.uint16[::1]), **_COMPILE)
def to_bfloat16(values: Float32, halves: Any) -> None:
    """See `PerturbationKernels.to_bfloat16`."""
    for i in range(values.size):
        bits = np.float32(values[i]).view(np.uint32)
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd)
        halves[i] = np.uint16(np.uint32(rounded >> np.uint32(16)))


KERNELS = PerturbationKernels(
    signs=signs,
    perturb=perturb,
    materialise=materialise,
    apply=apply,
    project=project,
    to_bfloat16=to_bfloat16,
)
