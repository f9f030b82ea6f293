"""The outer step, the same bits on every machine.

Only additions and multiplications of float32, each rounded to nearest even by itself, in the order
written below; nothing is fused, nothing is summed across values. Processes differ in whether they
flush subnormal numbers to zero, so results below 2^-100 are set to +0 here, where all agree: what
a flushed subnormal (below 2^-126) could have changed is then less than half a unit in the last
place of anything that stays.
"""

from __future__ import annotations

import numpy as np

from runnel.kernels.arrays import require_vector
from runnel.kernels.dispatch import implementation
from runnel.kernels.signatures import Float32


def nesterov_step(
    parameters: Float32,
    momentum: Float32,
    pseudo_gradient: Float32,
    *,
    lr: float,
    mu: float,
    by: str | None = None,
) -> None:
    """Updates `parameters` and `momentum` in place, in one pass.

    With d the pseudo-gradient, b the momentum, `lr` and `mu` rounded to float32 first, per value::

        s = mu * b  # rounded, as is every line
        b = s + d  # then: |b| < 2^-100 becomes +0
        s = mu * b
        g = d + s
        s = lr * g
        parameters = parameters - s  # then: below 2^-100 becomes +0

    Source: Streaming DiLoCo with overlapping communication (Nesterov outer optimizer); the order
    of operations and the threshold are ours.

    Args:
        parameters: float32 [values], the outer parameters of a fragment.
        momentum: float32 [values].
        pseudo_gradient: float32 [values], finite.
        lr: outer learning rate.
        mu: momentum factor.
        by: forces an implementation.

    Raises:
        ValueError: the arrays are not contiguous float32 vectors of one size.
    """
    size = parameters.size
    require_vector(parameters, "parameters", write=True)
    require_vector(momentum, "momentum", size=size, write=True)
    require_vector(pseudo_gradient, "pseudo_gradient", size=size)
    step = implementation(by).elements.nesterov
    step(parameters, momentum, pseudo_gradient, np.float32(lr), np.float32(mu))


def averaging_step(parameters: Float32, pseudo_gradient: Float32, *, by: str | None = None) -> None:
    """``parameters = parameters - pseudo_gradient`` in place; below 2^-100 becomes +0.

    Raises:
        ValueError: the arrays are not contiguous float32 vectors of one size.
    """
    require_vector(parameters, "parameters", write=True)
    require_vector(pseudo_gradient, "pseudo_gradient", size=parameters.size)
    implementation(by).elements.average(parameters, pseudo_gradient)
