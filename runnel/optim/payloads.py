"""The checks that every codec makes before arithmetic, on the caller's arrays and on a peer's bytes."""

from __future__ import annotations

import math
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from runnel.errors import PeerError
from runnel.kernels import Float32, first_non_finite, require_vector

if TYPE_CHECKING:
    from typing_extensions import Buffer

_NOTHING = np.empty(0, np.uint8)

Bytes = npt.NDArray[np.uint8]


def require_encodable(values: Float32, residual: Float32 | None) -> None:
    """Refuses arrays of the wrong kind; looks at no value.

    Raises:
        ValueError: not float32 vectors of one size, or `residual` cannot be written.
    """
    require_vector(values, "values")
    if residual is not None:
        require_vector(residual, "residual", size=values.size, write=True)


def require_finite(values: Float32, by: str | None) -> None:
    """Refuses NaN and Inf.

    Raises:
        ValueError: naming the first such value.
    """
    index = first_non_finite(values, by=by)
    if index >= 0:
        raise ValueError(
            f"value {index} of {values.size} is {values[index]}, expected finite values"
        )


def factor_of(scale: float) -> np.float32:
    """`scale` as float32.

    Raises:
        ValueError: it is not finite there.
    """
    if not math.isfinite(scale) or abs(scale) > float(np.finfo(np.float32).max):
        raise ValueError(f"scale is {scale}, expected a number within float32's range")
    return np.float32(scale)


def blank_payload(size_bytes: int) -> tuple[BytesIO, Bytes]:
    """A payload to fill: ``getvalue()`` of the first gives what was written to the second.

    BytesIO hands out the very bytes object it holds, so that a payload is written once and not
    copied; were that to change, only time would be lost.
    """
    buffer = BytesIO(bytes(size_bytes))
    return buffer, np.frombuffer(buffer.getbuffer(), np.uint8) if size_bytes else _NOTHING


def bytes_of(payload: Buffer, expected: int, what: str) -> Bytes:
    """The payload's bytes, not copied.

    Raises:
        PeerError: there are not exactly `expected` of them.
    """
    view = memoryview(payload)
    if view.nbytes != expected or not view.c_contiguous:
        raise PeerError(
            "malformed", f"payload of {view.nbytes} bytes, expected {expected} ({what})"
        )
    return np.frombuffer(view, np.uint8) if expected else _NOTHING
