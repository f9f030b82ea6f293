"""The hash of `draws`, for compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from runnel.kernels import draws

STEP = np.uint64(draws.STEP)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


@njit(inline="always")
def mixed(word: Any) -> Any:
    """A word hashed, see `draws.mixed`."""
    w = np.uint64(np.uint64(word ^ np.uint64(word >> np.uint64(30))) * _FIRST)
    w = np.uint64(np.uint64(w ^ np.uint64(w >> np.uint64(27))) * _SECOND)
    return np.uint64(w ^ np.uint64(w >> np.uint64(31)))
