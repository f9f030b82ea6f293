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


def vector_of(folder: Path, peer: int) -> Float32:
    """What `peer` contributes."""
    values: Float32 = np.load(folder / f"vector-{peer}.npy")
    return values


def relative_error(folder: Path, result: Float32) -> float:
    """Euclidean distance of a result from the true mean, over the mean's length."""
    mean = np.load(folder / "mean.npy")
    return float(np.linalg.norm(result - mean) / np.linalg.norm(mean))


def name_of(result: Float32) -> str:
    """Equal for equal bits."""
    return digest(raw(np.ascontiguousarray(result))).hex()
