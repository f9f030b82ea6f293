"""What a count sketch computes, in plain numpy: the definition, and the fallback without numba.

A chunk of n values is added up in three rows of c cells. Value i goes to one cell of each row, with a sign;
both follow from ``mixed(word + (i + 1) * STEP)``, modulo 2^64, of which row r takes 21 bits from bit 21 r on: the
sign is - where the lowest is set, the other twenty, times c and without their lowest twenty bits then, are the cell.
What a cell says of one of its values is the cell with that value's sign; the median of a value's three cells is
what is read of it, since a large value is in company with others in one row or the other, but hardly in two.

What is below 2^-88 counts as +0 and sums are added up in float64, so that processes which flush subnormal
numbers find the same bits; cells go up to 2^100, so that no residual leaves float32's range.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runnel.kernels.draws import STEP, Words, mixed
from runnel.kernels.signatures import Float32, SketchKernels

ROWS = 3
DIGIT_BITS = 21
LARGEST = 2.0**100
NEGLIGIBLE = np.float32(2.0**-88)

_Cells = npt.NDArray[np.int64]
_Negative = npt.NDArray[np.bool_]


def drawn(words: Words, chunk: int, columns: int) -> tuple[_Cells, _Negative]:
    """Where each value goes, [words, rows, chunk] from 0 to below `columns`, and whether its sign changes."""
    steps = np.arange(1, chunk + 1, dtype=np.uint64) * np.uint64(STEP)
    each = mixed(words[:, None] + steps)[:, None, :]
    digits = each >> (np.arange(ROWS, dtype=np.uint64) * np.uint64(DIGIT_BITS))[:, None]
    twenty = digits >> np.uint64(1) & np.uint64(2**20 - 1)
    cells = (twenty * np.uint64(columns) >> np.uint64(20)).astype(np.int64)
    return cells, (digits & np.uint64(1)).astype(np.bool_)


def sketch(values: Float32, words: Words, columns: int, cells: Float32) -> None:
    """See `SketchKernels.sketch`."""
    if not words.size:
        return
    x = values.reshape(words.size, -1)
    kept = np.where(np.abs(x) < NEGLIGIBLE, np.float32(0), x).astype(np.float64)
    where, negative = drawn(words, x.shape[1], columns)
    signed = np.where(negative, -kept[:, None, :], kept[:, None, :])
    rows = np.arange(words.size * ROWS).reshape(words.size, ROWS, 1) * columns + where
    sums = np.bincount(rows.ravel(), signed.ravel(), minlength=cells.size)
    held = np.clip(sums, -LARGEST, LARGEST).astype(np.float32)
    read = _medians(held, where, negative).astype(np.float64)
    along, square = _running_sum(kept * read), _running_sum(read * read)
    factor = np.where(square > 0, along / np.where(square > 0, square, 1), 0).clip(0, 1)
    with np.errstate(under="ignore"):
        cells[:] = (held.reshape(words.size, -1) * factor[:, None]).astype(np.float32).ravel()


def read(cells: Float32, words: Words, columns: int, out: Float32) -> None:
    """See `SketchKernels.read`."""
    if words.size:
        out[:] = _medians(cells, *drawn(words, out.size // words.size, columns)).ravel()


def _medians(cells: Float32, where: _Cells, negative: _Negative) -> Float32:
    """What is read of each value, [words, chunk]."""
    rows = cells.reshape(*where.shape[:2], -1)
    said = np.take_along_axis(rows, where, axis=2)
    a, b, c = np.where(negative, -said, said).transpose(1, 0, 2)
    middle = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
    return np.where(middle == 0, np.float32(0), middle)


def _running_sum(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sums of rows, one value after the other."""
    total: npt.NDArray[np.float64] = np.cumsum(x, axis=1)[:, -1]
    return total


COUNT_SKETCH = SketchKernels(sketch, read)
