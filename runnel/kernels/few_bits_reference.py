"""What the codecs of one and two bits compute, in plain numpy: the definition, and the fallback.

Layouts and rules of the formats are described in `runnel.optim.codecs`. A mean of magnitudes is made of
sums in a fixed order: each magnitude times 2^-13 (so that 2^13 of the largest floats can be added), those
below 2^-113 as zero (so that no subnormal number comes up, which some threads flush); value i of a block
goes to lane i mod 64, lanes add by rising index, then the upper half of the lanes is added to the lower
one until one is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from runnel.kernels.blockwise_reference import add_scaled, blocks_before_refusal
from runnel.kernels.signatures import BlockKernels, Codes, Float32, Scales

LANES = 64
SHRINK = np.float32(2.0**-13)
GROW = np.float32(2.0**13)
NEGLIGIBLE = np.float32(2.0**-113)
SMALLEST_SCALE = 0x0800  # 2^-111
LARGEST_SCALE = 0x7F7F  # the largest finite bf16
SPREAD = np.float32(1.5)
"""Two bits: magnitudes above this many means begin as large ones; near the best for Laplace's distribution."""

_SIGN = np.uint32(0x80000000)


def two_bit_encode(
    values: Float32, added: Float32, residual: Float32, codes: Codes, scales: Scales, block: int
) -> int:
    """See `BlockKernels.encode`; `scales` holds two for each block."""
    x, refused = blocks_before_refusal(values, added, block)
    small = shrunk(x)
    mean = lane_sums(small) / np.float32(block)
    centroids = two_centroids(small, SPREAD * mean, lane_sums)
    scales[: centroids.size] = centroids.ravel()
    chosen = nearest_codes(x, centroids)
    codes[: len(x) * two_bit_bytes(block)] = pack(chosen, 2)
    if residual.size == values.size:
        residual[: x.size] = (x - levels(chosen, centroids)).ravel()
    return refused


def two_bit_decode(codes: Codes, scales: Scales, out: Float32, block: int) -> None:
    """See `BlockKernels.decode`."""
    out[:] = levels(unpack(codes, block, 2), scales.reshape(-1, 2)).ravel()


def two_bit_accumulate(
    codes: Codes, scales: Scales, factor: np.float32, out: Float32, block: int
) -> None:
    """See `BlockKernels.accumulate`."""
    decoded = np.empty_like(out)
    two_bit_decode(codes, scales, decoded, block)
    add_scaled(decoded, factor, out)


def two_bit_sum_of_squares(codes: Codes, scales: Scales, block: int) -> float:
    """See `BlockKernels.sum_of_squares`: large ones times their square, and the rest times theirs."""
    large = (unpack(codes, block, 2) & 1).sum(axis=1, dtype=np.int64)
    return squares_of_levels(large, block, scales.reshape(-1, 2))


def sign_encode(
    values: Float32, added: Float32, residual: Float32, codes: Codes, scales: Scales, block: int
) -> int:
    """See `BlockKernels.encode`."""
    x, refused = blocks_before_refusal(values, added, block)
    scales[: len(x)] = to_scales(lane_sums(shrunk(x)) / np.float32(block))
    negative = np.signbit(x).astype(np.uint8)
    codes[: len(x) * -(-block // 8)] = pack(negative, 1)
    if residual.size == values.size:
        residual[: x.size] = (x - _signed(negative, scales[: len(x)])).ravel()
    return refused


def sign_decode(codes: Codes, scales: Scales, out: Float32, block: int) -> None:
    """See `BlockKernels.decode`."""
    out[:] = _signed(unpack(codes, block, 1), scales).ravel()


def sign_accumulate(
    codes: Codes, scales: Scales, factor: np.float32, out: Float32, block: int
) -> None:
    """See `BlockKernels.accumulate`."""
    decoded = np.empty_like(out)
    sign_decode(codes, scales, decoded, block)
    add_scaled(decoded, factor, out)


def sign_sum_of_squares(codes: Codes, scales: Scales, block: int) -> float:
    """See `BlockKernels.sum_of_squares`."""
    del codes
    total = 0.0
    for scale in widen(scales).tolist():
        total += block * (scale * scale)
    return total


def every_code(codes: Codes) -> bool:
    """See `BlockKernels.canonical`: all codes are used."""
    del codes
    return True


def shrunk(x: Float32) -> Float32:
    """Magnitudes as they are added up."""
    magnitude = np.abs(x)
    return np.where(magnitude >= NEGLIGIBLE, magnitude, np.float32(0)) * SHRINK


def lane_sums(x: Float32) -> Float32:
    """Sums of rows [blocks, block] in the fixed order."""
    rows = -(-x.shape[1] // LANES)
    held = np.zeros((len(x), rows, LANES), np.float32)
    held.reshape(len(x), rows * LANES)[:, : x.shape[1]] = x
    lanes = np.zeros((len(x), LANES), np.float32)
    for row in range(rows):
        lanes += held[:, row]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def two_centroids(small: Float32, threshold: Float32, sums: Any) -> Scales:
    """The mean magnitudes [blocks, 2] of what is up to the threshold [blocks] and of what is above it."""
    above = small > threshold[:, None]
    count = above.sum(axis=1)
    rest = small.shape[1] - count
    zero = np.float32(0)
    low = sums(np.where(above, zero, small)) / np.maximum(rest, 1).astype(np.float32)
    high = sums(np.where(above, small, zero)) / np.maximum(count, 1).astype(np.float32)
    low, high = to_scales(low), to_scales(high)
    return np.stack([low, np.maximum(low, high)], axis=1)


def to_scales(means: Float32) -> Scales:
    """Means of shrunk magnitudes as bf16, to nearest even, from 2^-111 to the largest finite one."""
    with np.errstate(over="ignore"):
        bits = (means * GROW).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    scales: Scales = np.clip(rounded, SMALLEST_SCALE, LARGEST_SCALE).astype(np.uint16)
    return scales


def nearest_codes(x: Float32, centroids: Scales) -> Codes:
    """Two bits for each value: ``sign << 1 | large``; large is what lies above the centroids' middle."""
    half = widen(centroids) * np.float32(0.5)
    large = np.abs(x) > (half[:, 0] + half[:, 1])[:, None]
    codes: Codes = (np.signbit(x) * 2 | large).astype(np.uint8)
    return codes


def levels(codes: Codes, centroids: Scales) -> Float32:
    """The floats [blocks, block] of two-bit codes."""
    wide = widen(centroids).view(np.uint32)
    magnitude = np.where(codes & 1, wide[:, 1:], wide[:, :1])
    signed = magnitude | np.where(codes & 2, _SIGN, np.uint32(0))
    decoded: Float32 = signed.view(np.float32)
    return decoded


def squares_of_levels(large: npt.NDArray[np.int64], block: int, centroids: Scales) -> float:
    """The sum of squares of two-bit blocks, given how many of each are large; rounded block by block."""
    total = 0.0
    for count, (low, high) in zip(large.tolist(), widen(centroids).tolist(), strict=True):
        total += (block - count) * (low * low) + count * (high * high)
    return total


def widen(scales: Scales) -> Float32:
    """bf16 bits as floats, in the same shape."""
    return (scales.astype(np.uint32) << np.uint32(16)).view(np.float32)


def two_bit_bytes(block: int) -> int:
    """Bytes of so many two-bit codes."""
    return -(-block // 4)


def pack(codes: Codes, bits: int) -> Codes:
    """Byte i of a block: value i in the lowest `bits`, then values h + i, 2h + i ..., of h bytes."""
    slots = 8 // bits
    count = -(-codes.shape[1] // slots)
    held = np.zeros((len(codes), slots * count), np.uint8)
    held[:, : codes.shape[1]] = codes
    shifts = (np.arange(slots, dtype=np.uint8) * bits)[None, :, None]
    shifted = held.reshape(-1, slots, count) << shifts
    packed: Codes = np.bitwise_or.reduce(shifted, axis=1).ravel()
    return packed


def unpack(codes: Codes, block: int, bits: int) -> Codes:
    """The codes [blocks, block] of packed bytes."""
    slots = 8 // bits
    count = -(-block // slots)
    shifts = (np.arange(slots, dtype=np.uint8) * bits)[None, :, None]
    spread = (codes.reshape(-1, 1, count) >> shifts) & np.uint8((1 << bits) - 1)
    unpacked: Codes = spread.reshape(-1, slots * count)[:, :block]
    return unpacked


def _signed(negative: Codes, scales: Scales) -> Float32:
    """The scale of its block for each value, or minus the scale."""
    bits = widen(scales).view(np.uint32)[:, None] | np.where(negative, _SIGN, np.uint32(0))
    decoded: Float32 = bits.view(np.float32)
    return decoded


TWO_BIT = BlockKernels(
    two_bit_encode, two_bit_decode, two_bit_accumulate, every_code, two_bit_sum_of_squares
)
SIGN = BlockKernels(sign_encode, sign_decode, sign_accumulate, every_code, sign_sum_of_squares)
