"""What the random-k codec computes, in plain numpy: the definition, and the fallback where numba is missing.

Layout and rules of the format are described in `runnel.optim.codecs`. Sums and scales are those of
`top_k_reference`, the entries of a chunk one after the other in the order in which they are drawn.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runnel.kernels.blockwise_reference import add_scaled
from runnel.kernels.draws import Words
from runnel.kernels.few_bits_reference import (
    levels,
    nearest_codes,
    pack,
    shrunk,
    two_centroids,
    unpack,
)
from runnel.kernels.signatures import Codes, Float32, Scales, SparseKernels
from runnel.kernels.top_k_reference import sum_of_squares, sums_of_rows

_MASK = np.uint64(4095)
_Places = npt.NDArray[np.int64]


def permuted(words: Words) -> _Places:
    """A permutation of 0..4095 for each word, [words, 4096]: two rounds of an affine map and a fold.

    With ``a, b, c, d, e`` the word's five twelve-bit digits, lowest first, and all modulo 4096::

        j = (a | 1) * j + b
        j = j ^ j >> 6
        j = (c | 1) * j + d
        j = j ^ j >> 6
        j = j + e
    """
    a, b, c, d, e = (words[:, None] >> np.uint64(12 * i) & _MASK for i in range(5))
    one, fold = np.uint64(1), np.uint64(6)
    j = (a | one) * np.arange(4096, dtype=np.uint64)[None, :] + b & _MASK
    j ^= j >> fold
    j = (c | one) * j + d & _MASK
    j ^= j >> fold
    places: _Places = (j + e & _MASK).astype(np.int64)
    return places


def drawn(words: Words, chunk: int, count: int) -> _Places:
    """The first `count` places of each permutation that are within the chunk, [words, count]."""
    places = permuted(words)
    if chunk < 4096:
        places = places[places < chunk].reshape(words.size, chunk)
    return places[:, :count]


def encode(
    values: Float32, added: Float32, scales: Scales, codes: Codes, words: Words, count: int
) -> int:
    """See `SparseKernels.encode`."""
    if not words.size:
        return -1
    x = values.reshape(words.size, -1)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        x += added.reshape(-1, x.shape[1])
    refused = np.flatnonzero(~np.isfinite(x).all(axis=1))
    x = x[: refused[0]] if refused.size else x
    kept = drawn(words[: len(x)], x.shape[1], count)
    picked = np.take_along_axis(x, kept, axis=1)
    small = shrunk(picked)
    centroids = two_centroids(small, sums_of_rows(small) / np.float32(count), sums_of_rows)
    chosen = nearest_codes(picked, centroids)
    scales[: centroids.size] = centroids.ravel()
    codes[: len(x) * -(-count // 4)] = pack(chosen, 2)
    np.put_along_axis(x, kept, picked - levels(chosen, centroids), axis=1)
    return int(refused[0]) if refused.size else -1


def accumulate(
    scales: Scales, codes: Codes, words: Words, factor: np.float32, out: Float32, count: int
) -> None:
    """See `SparseKernels.accumulate`."""
    if not words.size:
        return
    y = out.reshape(words.size, -1)
    found = drawn(words, y.shape[1], count)
    sums = np.take_along_axis(y, found, axis=1)
    add_scaled(levels(unpack(codes, count, 2), scales.reshape(-1, 2)), factor, sums)
    np.put_along_axis(y, found, sums, axis=1)


def canonical(scales: Scales, codes: Codes, words: Words, chunk: int, count: int) -> bool:
    """See `SparseKernels.canonical`; there are no indices to check."""
    del scales, words, chunk
    if count % 4 == 0:
        return True
    return not bool(unpack(codes, 4 * -(-count // 4), 2)[:, count:].any())


RANDOM_K = SparseKernels(encode, accumulate, canonical, sum_of_squares)
