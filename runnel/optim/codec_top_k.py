"""The codec that sends the largest values of each chunk only. Its format is described in `codecs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from runnel.optim.codec_sparse import CHUNK, Entries, SparseCodec
from runnel.optim.payloads import Bytes

if TYPE_CHECKING:
    from collections.abc import Iterator


DEFAULT_COUNT = 64


class TopKCodec(SparseCodec):
    """Sends, of each chunk of 4096 values, those of the largest magnitudes, with two bits and an index each."""

    kind = "top-k"
    usual_count = DEFAULT_COUNT

    def seeded(self, seed: int) -> Self:
        """See `Codec.seeded`."""
        del seed
        return self

    def max_bytes(self, numel: int) -> int:
        """The exact size of a payload of `numel` values."""
        return sum(self._section_bytes(numel))

    def _begin(self, payload: Bytes) -> None:
        """Nothing stands before the scales."""

    def _section_bytes(self, numel: int) -> tuple[int, int, int]:
        """Bytes of scales, codes and indices of the first `numel` values."""
        chunks, rest = divmod(numel, CHUNK)
        indices = 3 * (chunks * -(-self._count // 2) - (-self._count_of(rest) // 2))
        return self._bytes_of_scales(numel), self._bytes_of_codes(numel), indices

    def _entries(
        self, raw: Bytes, place: int, size: int, numel: int
    ) -> Iterator[tuple[Entries, slice]]:
        """What is sent of `size` values from `place`: the whole chunks, and the short one; where they are."""
        sections = np.split(raw, np.cumsum(self._section_bytes(numel))[:2])
        body = size - size % CHUNK
        for low, high, count in (
            (place, place + body, self._count),
            (place + body, place + size, self._count_of(size - body)),
        ):
            if low < high:
                scales, codes, indices = (
                    section[start:end]
                    for section, start, end in zip(
                        sections, self._section_bytes(low), self._section_bytes(high), strict=True
                    )
                )
                wide = np.require(scales.view(np.uint16), requirements="A")
                yield Entries(wide, codes, indices, count), slice(low - place, high - place)
