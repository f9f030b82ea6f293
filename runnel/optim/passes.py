"""What an encoder is fed, part after part, and what is done with what it leaves: one pass over memory each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from runnel.optim.exchange import Array
from runnel.optim.parts import PART, parts_of

_MAX_LOSS_FACTOR = 64.0
"""A reducer takes back what its encoding lost divided by its own share of the result, at most times this."""


def owing(
    known: tuple[Array, Array, Array],
    after: Array,
    span: tuple[int, int],
    keep: Callable[[Array], object] | None,
) -> Iterator[tuple[Array, Array]]:
    """What a slice owes, ``x = (theta - w) + e``, for its encoder to add; it leaves ``x - q`` in `after`.

    Args:
        known: outer parameters theta, the trainer's values w and the residual e of a fragment, [values].
        after: [values], to be filled.
        span: the slice.
        keep: gets ``theta - w - q``, each part overwritten by the next.
    """
    theta, snapshot, residual = known
    held = np.empty(min(PART, span[1] - span[0]), dtype=after.dtype)
    for part in parts_of(*span):
        owed, earlier = after[part], residual[part]
        np.subtract(theta[part], snapshot[part], out=owed)
        yield owed, earlier
        if keep is not None:
            keep(np.subtract(owed, earlier, out=held[: owed.size]))


def summed(total: Array, share: float) -> Iterator[Array]:
    """An aggregate; what its encoder leaves of it then counts in units of the reducer's own `share` in it."""
    factor = total.dtype.type(_loss_factor(share))
    for part in parts_of(0, total.size):
        yield total[part]
        total[part] *= factor


def _loss_factor(share: float) -> float:
    """What the loss of a result is multiplied by to reappear in full when weighted by `share` again."""
    if share <= 0:
        return 0.0
    return min(1.0 / share, _MAX_LOSS_FACTOR)
