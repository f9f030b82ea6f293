"""Which values the random-k codec sends, in plain numpy: the definition, and the fallback where numba is missing.

Layout and rules of the format are described in `runnel.optim.codecs`; entries go in the order in which they
are drawn.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runnel.kernels.draws import Words
from runnel.kernels.signatures import Float32, PlaceKernels, Places, SparseKernels
from runnel.kernels.sparse_reference import SENT, add_up

_MASK = np.uint64(4095)
_Permutations = npt.NDArray[np.int64]


def permuted(words: Words) -> _Permutations:
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
    places: _Permutations = (j + e & _MASK).astype(np.int64)
    return places


def drawn(words: Words, chunk: int, count: int) -> _Permutations:
    """The first `count` places of each permutation that are within the chunk, [words, count]."""
    places = permuted(words)
    if chunk < 4096:
        places = places[places < chunk].reshape(words.size, chunk)
    return places[:, :count]


def choose(values: Float32, added: Float32, where: Words, places: Places) -> int:
    """See `PlaceKernels.choose`."""
    if not len(places):
        return -1
    read(where, values.size // len(places), places)
    return add_up(values, added, len(places))


def read(where: Words, chunk: int, places: Places) -> None:
    """See `PlaceKernels.read`."""
    places[:] = drawn(where, chunk, places.shape[1])


def are_any(where: Words, chunk: int, count: int) -> bool:
    """See `PlaceKernels.canonical`: whatever the words, there is nothing to check."""
    del where, chunk, count
    return True


RANDOM_K = SparseKernels(PlaceKernels(choose, read, are_any), SENT)
