"""The outer step, the same bits on every machine.

Only operations of float32 that IEEE 754 rounds correctly (sums, products; Adam's quotients and square
roots), each rounded to nearest even by itself, in the order written below; nothing is fused, nothing is summed across values. Processes differ in whether they
flush subnormal numbers to zero, so results below 2^-100 are set to +0 here, where all agree: what
a flushed subnormal (below 2^-126) could have changed is then less than half a unit in the last
place of anything that stays.
"""

from __future__ import annotations

import numpy as np

from runnel.kernels.arrays import require_vector
from runnel.kernels.dispatch import implementation
from runnel.kernels.signatures import Float32


def momentum_step(
    state: tuple[Float32, Float32],
    pseudo_gradient: Float32,
    after: tuple[Float32, Float32],
    *,
    rates: tuple[float, float],
    mix: tuple[float, float],
    by: str | None = None,
) -> None:
    """Writes new parameters and momentum to `after`, in one pass.

    With d the pseudo-gradient, b the momentum, ``lr, mu = rates`` and ``own, gathered = mix``, all
    rounded to float32 first, per value::

        s = mu * b  # rounded, as is every line
        b = s + d  # then: |b| < 2^-100 becomes +0
        u = own * d
        s = gathered * b
        g = u + s
        s = lr * g
        parameters = parameters - s  # then: below 2^-100 becomes +0

    A mix of (1, mu) is Nesterov's momentum (as in *Streaming DiLoCo with overlapping communication*),
    (0, 1) Polyak's heavy ball. The order of operations and the threshold are ours.

    Args:
        state: outer parameters and momentum of a fragment, float32 [values] each.
        pseudo_gradient: float32 [values], finite.
        after: like `state`, which it may be.
        rates: outer learning rate and momentum factor.
        mix: factors of the pseudo-gradient and of the new momentum in the step.
        by: forces an implementation.

    Raises:
        ValueError: the arrays are not contiguous float32 vectors of one size.
    """
    size = state[0].size
    for name, old, new in zip(("parameters", "momentum"), state, after, strict=True):
        require_vector(old, name, size=size)
        require_vector(new, f"new {name}", size=size, write=True)
    require_vector(pseudo_gradient, "pseudo_gradient", size=size)
    step = implementation(by).elements.momentum_step
    step(*state, pseudo_gradient, np.array([*rates, *mix], np.float32), *after)


def adam_step(
    state: tuple[Float32, Float32],
    pseudo_gradient: Float32,
    after: tuple[Float32, Float32],
    *,
    rates: tuple[float, float],
    betas: tuple[float, float],
    by: str | None = None,
) -> None:
    """Writes new parameters, means and mean squares to `after`, in one pass.

    With d the pseudo-gradient, m and v the rows of what is kept, ``lr, epsilon = rates``, ``b1, b2 =
    betas``, and ``c1 = 1 - b1``, ``c2 = 1 - b2``, all rounded to float32 first, per value::

        s = b1 * m  # rounded, as is every line
        t = c1 * d
        m = s + t  # then: |m| < 2^-100 becomes +0
        q = d * d  # 0 where c2 is 0: v stays as it is
        s = b2 * v
        t = c2 * q
        v = s + t  # then: v < 2^-100 becomes +0, and what is infinite the largest float32
        r = sqrt(v)
        r = r + epsilon
        u = m / r
        s = lr * u
        parameters = parameters - s  # then: below 2^-100 becomes +0

    Source: *Adaptive Federated Optimization* (Reddi et al. 2021), algorithm 2, FedAdam: no correction of
    the bias; v begins at 0 here. The order of operations and the thresholds are ours.

    Args:
        state: outer parameters, float32 [values], and means and mean squares, float32 [2, values].
        pseudo_gradient: float32 [values], finite.
        after: like `state`, which it may be.
        rates: outer learning rate (about the step of each value) and what is added to the root.
        betas: decays of the means and of the mean squares.
        by: forces an implementation.

    Raises:
        ValueError: the arrays are not float32 vectors of one size, each contiguous.
    """
    size = state[0].size
    old, new = (state[0], *state[1]), (after[0], *after[1])
    for name, before, written in zip(("parameters", "means", "squares"), old, new, strict=True):
        require_vector(before, name, size=size)
        require_vector(written, f"new {name}", size=size, write=True)
    require_vector(pseudo_gradient, "pseudo_gradient", size=size)
    (lr, epsilon), (b1, b2) = rates, betas
    factors = np.array([lr, b1, 1 - b1, b2, 1 - b2, epsilon], np.float32)
    implementation(by).steps["adam"](old, pseudo_gradient, factors, new)


def plain_step(
    parameters: Float32,
    pseudo_gradient: Float32,
    after: Float32,
    *,
    lr: float = 1.0,
    by: str | None = None,
) -> None:
    """``after = parameters - lr * pseudo_gradient``; below 2^-100 becomes +0. `after` may be `parameters`.

    The product and the difference are rounded separately; with `lr` 1 it is plain averaging.

    Raises:
        ValueError: the arrays are not contiguous float32 vectors of one size.
    """
    require_vector(parameters, "parameters")
    require_vector(pseudo_gradient, "pseudo_gradient", size=parameters.size)
    require_vector(after, "new parameters", size=parameters.size, write=True)
    step = implementation(by).elements.plain_step
    step(parameters, pseudo_gradient, np.float32(lr), after)
