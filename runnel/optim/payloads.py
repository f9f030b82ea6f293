"""The checks that every codec makes before arithmetic, on the caller's arrays and on a peer's bytes."""

from __future__ import annotations

import math
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from runnel.errors import BugError, PeerError
from runnel.kernels import Float32, first_non_finite, require_vector
from runnel.optim.parts import PART

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

    from runnel.protocols import Part

_NOTHING = np.empty(0, np.uint8)

Bytes = npt.NDArray[np.uint8]
Scales = npt.NDArray[Any]


def require_encodable(values: Float32, residual: Float32 | None) -> None:
    """Refuses arrays of the wrong kind; looks at no value.

    Raises:
        ValueError: not float32 vectors of one size, or `residual` cannot be written.
    """
    require_vector(values, "values")
    if residual is not None:
        require_vector(residual, "residual", size=values.size, write=True)


def placed(parts: Iterable[Part], numel: int) -> Iterator[tuple[int, Float32, Float32 | None]]:
    """The parts of `numel` values: the place of the first one, the part, and what is to be added to it.

    Raises:
        ValueError: a part is not a float32 vector, or cannot be written.
    """
    place = 0
    for given in parts:
        part, added = given if isinstance(given, tuple) else (given, None)
        require_vector(part, "a part", write=True)
        if added is not None:
            require_vector(added, "what is added to a part", size=part.size)
        if place % PART or part.size > numel - place:
            raise BugError(f"a part of {part.size} values at {place} of {numel}")
        yield place, part, added
        place += part.size
    if place != numel:
        raise BugError(f"parts of {place} values in all, expected {numel}")


def summed_parts(parts: Iterable[Part], numel: int) -> Iterator[tuple[int, Float32]]:
    """The same for an encoder that does not add by itself: what was to be added is in the part."""
    for place, part, added in placed(parts, numel):
        if added is not None:
            sum_of(part, added, out=part)
        yield place, part


def sum_of(values: Float32, added: Float32 | None, *, out: Float32 | None = None) -> Float32:
    """``values + added``, which may leave float32's range; `values` themselves if nothing is added."""
    if added is None:
        return values
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return np.add(values, added, out=out)


def require_finite(values: Float32, by: str | None, *, place: int = 0) -> None:
    """Refuses NaN and Inf; `place` is the number of the first value.

    Raises:
        ValueError: naming the first such value.
    """
    index = first_non_finite(values, by=by)
    if index >= 0:
        raise ValueError(f"value {place + index} is {values[index]}, expected finite values")


def require_scales(scales: Scales, within: tuple[int, int], name: str, *, pairs: bool) -> None:
    """Refuses scales that no encoder writes: outside of a range, or the second of a pair below the first.

    Raises:
        PeerError: naming what was found.
    """
    if not scales.size:
        return
    low, high = int(scales.min()), int(scales.max())
    if low < within[0] or high > within[1]:
        raise PeerError(
            "malformed",
            f"{name}: scales {low:#x} to {high:#x}, expected {within[0]:#x} to {within[1]:#x}",
        )
    if pairs and bool((scales[::2] > scales[1::2]).any()):
        raise PeerError("malformed", f"{name}: the larger scale of a block comes first")


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


def room_in(out: memoryview, size_bytes: int) -> tuple[memoryview, Bytes]:
    """Where a payload goes: the beginning of `out`, to be read by others and to be filled."""
    room = out[:size_bytes]
    payload = np.frombuffer(room, np.uint8) if size_bytes else _NOTHING
    if room.nbytes < size_bytes or payload.ctypes.data % 4:
        raise BugError(f"{out.nbytes} bytes for a payload of {size_bytes}, or not aligned")
    return room.toreadonly(), payload


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
