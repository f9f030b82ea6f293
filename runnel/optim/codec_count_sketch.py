"""The codec that sends a few sums of each chunk's values. Its format is described in `codecs`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from runnel.errors import ConfigError
from runnel.kernels import Float32, SketchKernels, Words, implementation, words_of
from runnel.optim.codec_blockwise import BlockFormat, BlockwiseCodec
from runnel.optim.codec_transformed import CHUNK, TransformedCodec

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_COLUMNS = 256
ROWS = 3
_LARGEST_EXPONENT = 127 + 100
"""Of a cell: 2^100."""


class CountSketchCodec(TransformedCodec):
    """Adds each chunk of 4096 values up in three rows of N cells, with random signs, and sends those by e3m0.

    Values [n] become cells [chunks, 3, N], up to 2^100. Of a value is read the median of what its three cells
    say, times a factor for each chunk that the sender has chosen so that the error is least; it stays below the
    norm of what was encoded, as error feedback needs it. A value that is much larger than its company arrives
    nearly whole, without an index, but so does what shares two cells with it, 3 in N^2 of the others. Of values
    of about equal size next to nothing arrives, some N / 2000 of their squared norm: there two bits for each
    value, or random-k, send far more in as many bytes. Encoding costs two hashes and decoding one for each
    value, some 30 and 10 ns.

    Where all encode with one seed (the round's number, in a run) a sum of cells is the sketch of the sum, but
    for the factors. Here payloads are decoded before they are added up, as those of other codecs, so that what
    is lost is known.

    Source: *FetchSGD* (Rothchild et al. 2020), algorithm 1, and *Finding Frequent Items in Data Streams*
    (Charikar, Chen and Farach-Colton 2002). FetchSGD reads the k largest values alone and keeps momentum and
    error feedback within the sketch. Here all are read: by the factor above that lost less of normal, cubed
    uniform and Student's t values (3 degrees of freedom) for each k; momentum and error feedback are where they
    are with other codecs.
    """

    def __init__(
        self,
        layout: BlockFormat,
        columns: int | None = None,
        *,
        seed: int = 0,
        by: str | None = None,
    ) -> None:
        """A whole chunk has so many `columns`, a short one the same part, rounded up; `layout` is e3m0's.

        `by` forces an implementation of the arithmetic; of `seed` the lower 64 bits count.

        Raises:
            ConfigError: `columns` is not an even number from 2 to 4096.
        """
        self._columns = DEFAULT_COLUMNS if columns is None else columns
        if not 2 <= self._columns <= CHUNK or self._columns % 2:
            raise ConfigError(
                f"count-sketch has {self._columns} columns, expected an even number from 2 to {CHUNK}"
            )
        cells = replace(layout, block=ROWS * self._columns, largest_scale=_LARGEST_EXPONENT)
        super().__init__(BlockwiseCodec(cells, by=by), seed=seed, by=by)
        self._layout = layout

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        usual = self._columns == DEFAULT_COLUMNS
        return "count-sketch" if usual else f"count-sketch:{self._columns}"

    def seeded(self, seed: int) -> CountSketchCodec:
        """See `Codec.seeded`."""
        return CountSketchCodec(self._layout, self._columns, seed=seed, by=self._by)

    @property
    def _kernels(self) -> SketchKernels:
        return implementation(self._by).sketches["count-sketch"]

    def _columns_of(self, chunk: int) -> int:
        """Of a chunk of so many values."""
        return -(-self._columns * chunk // CHUNK)

    def _size(self, numel: int) -> int:
        """Cells of `numel` values."""
        whole, rest = divmod(numel, CHUNK)
        return ROWS * (whole * self._columns + self._columns_of(rest))

    def _forward(self, values: Float32, place: int) -> Float32:
        cells = np.empty(self._size(values.size), np.float32)
        for span, words, some in self._chunks(self._seed, place, values.size):
            held, columns = cells[some], self._columns_of((span.stop - span.start) // words.size)
            self._kernels.sketch(values[span], words, columns, held)
        return cells

    def _backward(self, held: Float32, seed: int, place: int, size: int) -> Float32:
        out = np.empty(size, np.float32)
        for span, words, some in self._chunks(seed, place, size):
            columns = self._columns_of((span.stop - span.start) // words.size)
            self._kernels.read(held[some], words, columns, out[span])
        return out

    def _chunks(self, seed: int, place: int, size: int) -> Iterator[tuple[slice, Words, slice]]:
        """The whole chunks of a part of `size` values, and the short one: values, words, cells."""
        whole = size // CHUNK
        words = words_of(seed, place // CHUNK, whole + 1)
        border = whole * CHUNK
        if whole:
            yield slice(0, border), words[:whole], slice(0, self._size(border))
        if size > border:
            yield slice(border, size), words[whole:], slice(self._size(border), self._size(size))
