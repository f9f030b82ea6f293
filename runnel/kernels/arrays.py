"""The check that stands before compiled code, which does not watch bounds."""

from __future__ import annotations

import numpy as np

from runnel.kernels.signatures import Float32


def require_vector(
    array: Float32, name: str, *, size: int | None = None, write: bool = False
) -> None:
    """Refuses what is not a 1-D, C-contiguous float32 array (of `size` values, writable).

    Raises:
        ValueError: it is something else.
    """
    flags = array.flags
    if array.dtype != np.float32 or array.ndim != 1 or not flags.c_contiguous or not flags.aligned:
        raise ValueError(
            f"{name} is {array.dtype}{list(array.shape)}, "
            "expected a contiguous one-dimensional float32 array"
        )
    if size is not None and array.size != size:
        raise ValueError(f"{name} holds {array.size} values, expected {size}")
    if write and not flags.writeable:
        raise ValueError(f"{name} is read-only, expected an array to write to")
