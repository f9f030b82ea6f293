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
    state: tuple[Float32, Float32],
    pseudo_gradient: Float32,
    after: tuple[Float32, Float32],
    *,
    lr: float,
    mu: float,
    by: str | None = None,
) -> None:
    """Writes new parameters and momentum to `after`, in one pass.

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
        state: outer parameters and momentum of a fragment, float32 [values] each.
        pseudo_gradient: float32 [values], finite.
        after: like `state`, which it may be.
        lr: outer learning rate.
        mu: momentum factor.
        by: forces an implementation.

    Raises:
        ValueError: the arrays are not contiguous float32 vectors of one size.
    """
    size = state[0].size
    for name, old, new in zip(("parameters", "momentum"), state, after, strict=True):
        require_vector(old, name, size=size)
        require_vector(new, f"new {name}", size=size, write=True)
    require_vector(pseudo_gradient, "pseudo_gradient", size=size)
    step = implementation(by).elements.nesterov
    step(*state, pseudo_gradient, np.array([lr, mu], np.float32), *after)


def averaging_step(
    parameters: Float32, pseudo_gradient: Float32, after: Float32, *, by: str | None = None
) -> None:
    """``after = parameters - pseudo_gradient``; below 2^-100 becomes +0. `after` may be `parameters`.

    Raises:
        ValueError: the arrays are not contiguous float32 vectors of one size.
    """
    require_vector(parameters, "parameters")
    require_vector(pseudo_gradient, "pseudo_gradient", size=parameters.size)
    require_vector(after, "new parameters", size=parameters.size, write=True)
    implementation(by).elements.average(parameters, pseudo_gradient, after)
