"""Every codec by both implementations, and numbers that are hard on them."""

from __future__ import annotations

import numpy as np
import pytest

from runnel.kernels import Float32
from runnel.optim.codec_blockwise import BlockFormat
from runnel.optim.codecs import CODECS, E3M0, INT4, INT8, SIGN, TWO_BIT
from runnel.protocols import Codec

BLOCKS: dict[str, BlockFormat] = {
    layout.name: layout for layout in (INT8, INT4, E3M0, TWO_BIT, SIGN)
}
FLOAT_MAX = float(np.finfo(np.float32).max)

every_codec = pytest.mark.parametrize(
    "name",
    [
        *(name for name in CODECS if not name.startswith(("hadamard+", "l-greco+"))),
        "hadamard+int4",
        "l-greco+e3m0",
        "top-k:7",
        "random-k:7",
        "count-sketch:6",
    ],
)
every_block_codec = pytest.mark.parametrize("name", list(BLOCKS))


def values_of(size: int, seed: int = 0, scale: float = 1.0) -> Float32:
    """Heavy-tailed float32 numbers made without a library's random distributions."""
    state = (np.arange(size, dtype=np.uint64) + np.uint64(seed * 1_000_003 + 1)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    state ^= state >> np.uint64(29)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    unit = (state >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    cubed: Float32 = unit * unit * unit * np.float32(scale)
    return cubed


def bits(array: Float32) -> bytes:
    return array.tobytes()


def decoded(codec: Codec, payload: bytes, size: int) -> Float32:
    out = np.full(size, np.nan, np.float32)
    codec.decode(payload, out)
    return out


def mixed(size: int) -> Float32:
    """Blocks of very different size, with zeros of both signs, subnormals and the largest floats."""
    x = values_of(size, seed=3)
    with np.errstate(under="ignore"):
        x *= np.float32(2.0) ** ((np.arange(size) // 97 % 19 - 9) * 13).astype(np.float32)
    x[::31] = 0
    x[5::37] = np.float32(-0.0)
    x[7::41] = np.float32(1e-41)
    x[11::1009] = np.float32(-1e38)
    x[13::2003] = np.float32(FLOAT_MAX)
    return x
