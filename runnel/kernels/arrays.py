"""The check that stands before compiled code, which does not watch bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def require_vector(
    array: npt.NDArray[Any],
    name: str,
    *,
    dtype: npt.DTypeLike = np.float32,
    size: int | None = None,
    write: bool = False,
) -> None:
    """Refuses what is not a 1-D, C-contiguous array of `dtype` (of `size` values, writable).

    Raises:
        ValueError: it is something else.
    """
    flags = array.flags
    if array.dtype != dtype or array.ndim != 1 or not flags.c_contiguous or not flags.aligned:
        raise ValueError(
            f"{name} is {array.dtype}{list(array.shape)}, "
            f"expected a contiguous one-dimensional {np.dtype(dtype)} array"
        )
    if size is not None and array.size != size:
        raise ValueError(f"{name} holds {array.size} values, expected {size}")
    if write and not flags.writeable:
        raise ValueError(f"{name} is read-only, expected an array to write to")
