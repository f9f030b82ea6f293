"""What the elementwise arithmetic computes, in plain numpy: the definition, and the fallback without numba."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from runnel.kernels.signatures import ElementwiseKernels, Float32

_NEGLIGIBLE = np.float32(2.0**-100)
_LANES = 64
_ROWS = 4096


def float_accumulate(values: Float32, factor: np.float32, out: Float32) -> None:
    """See `ElementwiseKernels.float_accumulate`."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        out += factor * values


def first_non_finite(values: Float32) -> int:
    """See `ElementwiseKernels.first_non_finite`."""
    found = np.flatnonzero(~np.isfinite(values))
    return int(found[0]) if found.size else -1


def sum_of_squares(values: Float32) -> float:
    """See `ElementwiseKernels.sum_of_squares`."""
    lanes: npt.NDArray[np.float64] = np.zeros((1, _LANES))
    whole = values.size - values.size % _LANES
    rows = values[:whole].reshape(-1, _LANES)
    for start in range(0, len(rows), _ROWS):
        squares = np.square(rows[start : start + _ROWS], dtype=np.float64)
        lanes = np.add.accumulate(np.concatenate([lanes, squares]))[-1:]  # one row after the other
    rest = np.square(values[whole:], dtype=np.float64)
    lanes[0, : rest.size] += rest
    total = 0.0
    for lane in lanes[0].tolist():
        total += lane
    return total


def momentum_step(
    parameters: Float32,
    momentum: Float32,
    pseudo_gradient: Float32,
    factors: Float32,
    new_parameters: Float32,
    new_momentum: Float32,
) -> None:
    """See `ElementwiseKernels.momentum_step`."""
    lr, mu, own, gathered = factors
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        new_momentum[:] = without_negligible(mu * momentum + pseudo_gradient)
        ahead = own * pseudo_gradient + gathered * new_momentum
        new_parameters[:] = without_negligible(parameters - lr * ahead)


def plain_step(
    parameters: Float32, pseudo_gradient: Float32, lr: np.float32, new_parameters: Float32
) -> None:
    """See `ElementwiseKernels.plain_step`."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        new_parameters[:] = without_negligible(parameters - lr * pseudo_gradient)


def without_negligible(values: npt.NDArray[Any]) -> Float32:
    """A float32 copy with +0 for what is below 2^-100."""
    return np.where(np.abs(values) < _NEGLIGIBLE, np.float32(0), values)


ELEMENTS = ElementwiseKernels(
    float_accumulate=float_accumulate,
    first_non_finite=first_non_finite,
    sum_of_squares=sum_of_squares,
    momentum_step=momentum_step,
    plain_step=plain_step,
)
