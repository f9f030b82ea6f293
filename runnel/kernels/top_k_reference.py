"""Which values the top-k codec sends, in plain numpy: the definition, and the fallback where numba is missing.

Layout and rules of the format are described in `runnel.optim.codecs`; entries go by rising index.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runnel.kernels.signatures import Codes, Float32, PlaceKernels, Places, SparseKernels
from runnel.kernels.sparse_reference import SENT, add_up

_Indices = npt.NDArray[np.int64]


def choose(values: Float32, added: Float32, where: Codes, places: Places) -> int:
    """See `PlaceKernels.choose`."""
    if not len(places):
        return -1
    refused = add_up(values, added, len(places))
    done, count = len(places) if refused < 0 else refused, places.shape[1]
    x = values.reshape(len(places), -1)[:done]
    magnitude = (x.view(np.uint32) & np.uint32(0x7FFFFFFF)).astype(np.int64)
    order = np.argsort(-magnitude, axis=1, kind="stable")  # of equals, the first comes first
    places[:done] = np.sort(order[:, :count], axis=1)
    where[: done * 3 * -(-count // 2)] = _pack_indices(places[:done].astype(np.int64))
    return refused


def read(where: Codes, chunk: int, places: Places) -> None:
    """See `PlaceKernels.read`."""
    del chunk
    places[:] = _unpack_indices(where, len(places))[:, : places.shape[1]]


def rise(where: Codes, chunk: int, count: int) -> bool:
    """See `PlaceKernels.canonical`."""
    found = _unpack_indices(where, where.size // (3 * -(-count // 2)))
    rising = (np.diff(found[:, :count], axis=1) > 0).all() and (found[:, count - 1] < chunk).all()
    return bool(rising) and not found[:, count:].any()


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


TOP_K = SparseKernels(PlaceKernels(choose, read, rise), SENT)
