"""What the top-k codec computes, in plain numpy: the definition, and the fallback where numba is missing.

Layout and rules of the format are described in `runnel.optim.codecs`. The sums are those of
`few_bits_reference` in another order: the entries of a chunk one after the other, by rising index.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
from runnel.kernels.signatures import Codes, Float32, Scales, SparseKernels

_Indices = npt.NDArray[np.int64]


def encode(
    values: Float32, added: Float32, scales: Scales, codes: Codes, indices: Codes, count: int
) -> int:
    """See `SparseKernels.encode`."""
    if not scales.size:
        return -1
    x = values.reshape(scales.size // 2, -1)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        x += added.reshape(-1, x.shape[1])
    refused = np.flatnonzero(~np.isfinite(x).all(axis=1))
    x = x[: refused[0]] if refused.size else x
    magnitude = (x.view(np.uint32) & np.uint32(0x7FFFFFFF)).astype(np.int64)
    order = np.argsort(-magnitude, axis=1, kind="stable")  # of equals, the first comes first
    kept = np.sort(order[:, :count], axis=1)
    picked = np.take_along_axis(x, kept, axis=1)
    small = shrunk(picked)
    centroids = two_centroids(small, sums_of_rows(small) / np.float32(count), sums_of_rows)
    chosen = nearest_codes(picked, centroids)
    scales[: centroids.size] = centroids.ravel()
    codes[: len(x) * -(-count // 4)] = pack(chosen, 2)
    indices[: len(x) * 3 * -(-count // 2)] = _pack_indices(kept)
    np.put_along_axis(x, kept, picked - levels(chosen, centroids), axis=1)
    return int(refused[0]) if refused.size else -1


def accumulate(
    scales: Scales, codes: Codes, indices: Codes, factor: np.float32, out: Float32, count: int
) -> None:
    """See `SparseKernels.accumulate`."""
    if not scales.size:
        return
    y = out.reshape(scales.size // 2, -1)
    found = _unpack_indices(indices, len(y))[:, :count]
    sums = np.take_along_axis(y, found, axis=1)
    add_scaled(levels(unpack(codes, count, 2), scales.reshape(-1, 2)), factor, sums)
    np.put_along_axis(y, found, sums, axis=1)


def canonical(scales: Scales, codes: Codes, indices: Codes, chunk: int, count: int) -> bool:
    """See `SparseKernels.canonical`."""
    if not scales.size:
        return True
    found = _unpack_indices(indices, scales.size // 2)
    unused = unpack(codes, 4 * -(-count // 4), 2)[:, count:]
    rising = (np.diff(found[:, :count], axis=1) > 0).all() and (found[:, count - 1] < chunk).all()
    return bool(rising) and not unused.any() and not found[:, count:].any()


def sum_of_squares(scales: Scales, codes: Codes, count: int) -> float:
    """See `SparseKernels.sum_of_squares`."""
    large = (unpack(codes, count, 2) & 1).sum(axis=1, dtype=np.int64)
    return squares_of_levels(large, count, scales.reshape(-1, 2))


def sums_of_rows(x: Float32) -> Float32:
    """Sums of rows [chunks, count], one column after the other."""
    total = np.zeros(len(x), np.float32)
    for column in range(x.shape[1]):
        total += x[:, column]
    return total


def _pack_indices(indices: _Indices) -> Codes:
    """Two indices in three bytes, the first one in the lower twelve bits; of an odd number the last alone."""
    held = np.zeros((len(indices), indices.shape[1] + indices.shape[1] % 2), np.int64)
    held[:, : indices.shape[1]] = indices
    pairs = held[:, ::2] | held[:, 1::2] << 12
    spread = np.stack([pairs & 255, pairs >> 8 & 255, pairs >> 16], axis=2)
    packed: Codes = spread.astype(np.uint8).ravel()
    return packed


def _unpack_indices(packed: Codes, chunks: int) -> _Indices:
    """The indices [chunks, count or one more]."""
    triples = packed.reshape(chunks, -1, 3).astype(np.int64)
    pairs = triples[:, :, 0] | triples[:, :, 1] << 8 | triples[:, :, 2] << 16
    found: _Indices = np.stack([pairs & 4095, pairs >> 12], axis=2).reshape(chunks, -1)
    return found


TOP_K = SparseKernels(encode, accumulate, canonical, sum_of_squares)
