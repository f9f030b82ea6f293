"""The codec that sends values drawn from a seed that all share. Its format is described in `codecs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.kernels import words_of
from runnel.optim.codec_sparse import CHUNK, Entries, SparseCodec
from runnel.optim.payloads import Bytes

if TYPE_CHECKING:
    from collections.abc import Iterator


DEFAULT_COUNT = 256

_SEED_BYTES = 8


class RandomKCodec(SparseCodec):
    """Sends, of each chunk of 4096 values, so many that a seed draws, with two bits each and no index.

    Where all encode with one seed (the round's number, in a run), a sum of payloads has no more values
    than each of them, and a result encoded with that seed, too, drops nothing of it. What is not drawn
    stays with error feedback until it is. The payload names its seed, so that it can be read alone.

    Source: *Error Feedback Fixes SignSGD and other Gradient Compression Schemes* (Karimireddy et al.
    2019), and *Sparsified SGD with Memory* (Stich et al. 2018), random-k; permutations are ours.
    """

    kind = "random-k"
    usual_count = DEFAULT_COUNT

    def __init__(self, count: int | None = None, *, seed: int = 0, by: str | None = None) -> None:
        """See `SparseCodec`; of `seed` the lower 64 bits count."""
        super().__init__(count, by=by)
        self._seed = seed & (2**64 - 1)

    def seeded(self, seed: int) -> RandomKCodec:
        """See `Codec.seeded`."""
        return RandomKCodec(self._count, seed=seed, by=self._by)

    def max_bytes(self, numel: int) -> int:
        """The exact size of a payload of `numel` values."""
        begin = _SEED_BYTES if numel else 0
        return begin + self._bytes_of_scales(numel) + self._bytes_of_codes(numel)

    def _begin(self, payload: Bytes) -> None:
        if payload.size:
            payload[:_SEED_BYTES].view("<u8")[0] = self._seed

    def _entries(
        self, raw: Bytes, place: int, size: int, numel: int
    ) -> Iterator[tuple[Entries, slice]]:
        seed = int.from_bytes(raw[:_SEED_BYTES].tobytes(), "little")
        border = _SEED_BYTES + self._bytes_of_scales(numel)
        scales, codes = raw[_SEED_BYTES:border], raw[border:]
        body = size - size % CHUNK
        for low, high, count in (
            (place, place + body, self._count),
            (place + body, place + size, self._count_of(size - body)),
        ):
            if low < high:
                wide = scales[self._bytes_of_scales(low) : self._bytes_of_scales(high)]
                some = codes[self._bytes_of_codes(low) : self._bytes_of_codes(high)]
                words = words_of(seed, low // CHUNK, -(-(high - low) // CHUNK))
                held = np.require(wide.view(np.uint16), requirements="A")
                yield Entries(held, some, words, count), slice(low - place, high - place)
