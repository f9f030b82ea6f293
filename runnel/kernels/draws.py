"""What follows from a seed that all peers share: one word of 64 bits for each block of values.

From such a word come the places that the random-k codec sends and the signs of the Hadamard rotation.
It is a hash and no secret: peers need to agree on it and on nothing else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

STEP = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def mixed(words: Words) -> Words:
    """Each word hashed: the output function of SplitMix64 (Steele, Lea and Flood 2014).

    With all operations modulo 2^64::

        w = (w ^ w >> 30) * 0xBF58476D1CE4E5B9
        w = (w ^ w >> 27) * 0x94D049BB133111EB
        w = w ^ w >> 31
    """
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)


def words_of(seed: int, first: int, number: int) -> Words:
    """The words of `number` blocks from block `first` on, uint64 [number].

    Block b has ``mixed(mixed(seed) + (b + 1) * 0x9E3779B97F4A7C15)``, modulo 2^64.
    """
    start = int(mixed(np.array([seed & _MASK], np.uint64))[0])
    steps = np.arange(first + 1, first + number + 1, dtype=np.uint64) * np.uint64(STEP)
    return mixed(steps + np.uint64(start))
