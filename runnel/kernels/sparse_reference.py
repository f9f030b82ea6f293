"""What is computed of the values that are sent of each chunk, in plain numpy: the definition, and the fallback.

Layout and rules of the formats are described in `runnel.optim.codecs`. The sums are those of
`few_bits_reference` in another order: the entries of a chunk one after the other.
"""

from __future__ import annotations

import numpy as np

from runnel.kernels.blockwise_reference import add_scaled
from runnel.kernels.few_bits_reference import (
    levels,
    nearest_codes,
    pack,
    shrunk,
    squares_of_levels,
    two_centroids,
    unpack,
)
from runnel.kernels.signatures import Codes, Float32, Places, Scales, SentKernels


def add_up(values: Float32, added: Float32, chunks: int) -> int:
    """Adds in place; the first chunk with a value that is not finite, or -1."""
    x = values.reshape(chunks, -1)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        x += added.reshape(-1, x.shape[1])
    refused = np.flatnonzero(~np.isfinite(x).all(axis=1))
    return int(refused[0]) if refused.size else -1


def send(values: Float32, places: Places, scales: Scales, codes: Codes) -> None:
    """See `SentKernels.send`."""
    if not len(places):
        return
    x, count = values.reshape(len(places), -1), places.shape[1]
    picked = np.take_along_axis(x, places, axis=1)
    small = shrunk(picked)
    centroids = two_centroids(small, _sums_of_rows(small) / np.float32(count), _sums_of_rows)
    chosen = nearest_codes(picked, centroids)
    scales[: centroids.size] = centroids.ravel()
    codes[: len(x) * -(-count // 4)] = pack(chosen, 2)
    np.put_along_axis(x, places, picked - levels(chosen, centroids), axis=1)


def add(scales: Scales, codes: Codes, places: Places, factor: np.float32, out: Float32) -> None:
    """See `SentKernels.add`."""
    if not len(places):
        return
    y = out.reshape(len(places), -1)
    sums = np.take_along_axis(y, places, axis=1)
    add_scaled(levels(unpack(codes, places.shape[1], 2), scales.reshape(-1, 2)), factor, sums)
    np.put_along_axis(y, places, sums, axis=1)


def sum_of_squares(scales: Scales, codes: Codes, count: int) -> float:
    """See `SentKernels.sum_of_squares`."""
    large = (unpack(codes, count, 2) & 1).sum(axis=1, dtype=np.int64)
    return squares_of_levels(large, count, scales.reshape(-1, 2))


def _sums_of_rows(x: Float32) -> Float32:
    """Sums of rows [chunks, count], one column after the other."""
    total = np.zeros(len(x), np.float32)
    for column in range(x.shape[1]):
        total += x[:, column]
    return total


SENT = SentKernels(send, add, sum_of_squares)
