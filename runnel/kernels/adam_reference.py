"""What Adam's outer step computes, in plain numpy: the definition, and the fallback without numba."""

from __future__ import annotations

import numpy as np

from runnel.kernels.elementwise_reference import without_negligible
from runnel.kernels.signatures import AdamState, Float32

_LARGEST = np.finfo(np.float32).max


def adam_step(
    before: AdamState, pseudo_gradient: Float32, factors: Float32, after: AdamState
) -> None:
    """See `signatures.AdamStep`."""
    lr, keep_mean, take_mean, keep_square, take_square, epsilon = factors
    parameters, mean, square = before
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        m = without_negligible(keep_mean * mean + take_mean * pseudo_gradient)
        squared = pseudo_gradient * pseudo_gradient if take_square > 0 else np.zeros_like(mean)
        v = without_negligible(keep_square * square + take_square * squared)
        v = np.minimum(v, _LARGEST)
        step = lr * (m / (np.sqrt(v) + epsilon))
        after[0][:] = without_negligible(parameters - step)
    after[1][:] = m
    after[2][:] = v
