"""The vectors that are averaged, on disk, so that every process checks against the same true mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runnel.hashing import digest
from runnel.optim.store import raw
from runnel.protocols import Float32


def make_vectors(folder: Path, *, numel: int, peers: int, seed: int) -> None:
    """Writes one vector of normal values for each peer, and their mean (computed in float64)."""
    total = np.zeros(numel, dtype=np.float64)
    for peer in range(peers):
        values = np.random.default_rng((seed, peer)).standard_normal(numel, dtype=np.float32)
        total += values
        np.save(folder / f"vector-{peer}.npy", values)
    np.save(folder / "mean.npy", total / peers)


def vector_of(folder: Path, peer: int, number: int) -> Float32:
    """What `peer` contributes to round `number`.

    The same direction every time, of another length: were a result equal to an earlier one, peers
    that name results by their content would have it already.
    """
    values: Float32 = np.load(folder / f"vector-{peer}.npy")
    values *= np.float32(_length(number))
    return values


def relative_error(folder: Path, result: Float32, number: int) -> float:
    """Euclidean distance of the result of round `number` from the true mean, over the mean's length."""
    mean = np.load(folder / "mean.npy")
    mean *= _length(number)
    return float(np.linalg.norm(result - mean) / np.linalg.norm(mean))


def name_of(result: Float32) -> str:
    """Equal for equal bits."""
    return digest(raw(np.ascontiguousarray(result))).hex()


def _length(number: int) -> float:
    return 1 + number / 1024
