"""What an implementation of the shared-seed perturbation consists of; see `perturbation` for its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runnel.kernels.signatures import Float32

Int32 = npt.NDArray[np.int32]
Float64 = npt.NDArray[np.float64]

Direction = npt.NDArray[np.uint32]
"""uint32 [5]: tensor id, step, slot (the counter words c1, c2, c3), then both words of the key."""

Directions = npt.NDArray[np.uint32]
"""uint32 [K, 5]: a direction per row."""

TILE = 4096
"""Values of a tile: those whose signs come from 32 blocks of Philox; threads cut tensors here."""

PART_TILES = 256
"""Tiles whose projections are added up before parts are: threads cut there what they project."""


@dataclass(frozen=True, slots=True)
class PerturbationKernels:
    """The operations on one slice of a tensor, which begins with tile number `first_tile` (int64).

    Arrays are C-contiguous; nothing is checked here: `perturbation` checks first, since compiled code
    does not watch bounds. z is the direction's signs from that tile on.
    """

    signs: Callable[[Direction, int, npt.NDArray[np.int8]], None]
    """``(direction, first_tile, out)``: +1 and -1."""

    perturb: Callable[[Float32, np.float32, Direction, int], None]
    """``(values, epsilon, direction, first_tile)``: values += epsilon * z, each sum rounded."""

    materialise: Callable[[Int32, np.int32, np.float32, Direction, int, Float32], None]
    """``(master, amount, unit, direction, first_tile, out)``: float32(master + amount * z) * unit.

    The sum is modulo 2^32; `unit` is a power of two, so that only the conversion rounds (to even).
    """

    apply: Callable[[Int32, Int32, Directions, int], None]
    """``(master, coefficients, directions, first_tile)``: master += sum of coefficient * z, modulo 2^32."""

    project: Callable[[Float32, Directions, int, Float64], None]
    """``(values, directions, first_tile, out)``: out[p, k] becomes part p's share of <values, z_k>.

    Within a tile, lane r & 31 adds its signed values by rising index in float32; lanes are added by
    rising number, then tiles, in float64.
    """

    to_bfloat16: Callable[[Float32, npt.NDArray[np.uint16]], None]
    """``(values, halves)``: the upper halves of the bits, to nearest even; values are finite."""
