"""What the block codecs compute, in plain numpy: the definition, and the fallback where numba is missing.

Layouts and rules of the formats are described in `runnel.optim.codecs`. All blocks are handled at
once, so temporaries of several times the size of the input come and go.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from runnel.kernels.signatures import BlockKernels, Codes, Float32, Scales

_ONE = np.float32(1)
_ZERO = np.float32(0)
_SMALLEST_SCALE = 0x0800  # 2^-111


def int8_encode(
    values: Float32, added: Float32, residual: Float32, codes: Codes, scales: Scales, block: int
) -> int:
    """See `BlockKernels.encode`."""
    x, refused = blocks_before_refusal(values, added, block)
    t, scale = _absmax_codes(x, scales, 127)
    codes[: x.size] = t.astype(np.int8).ravel()
    if residual.size == values.size:
        residual[: x.size] = (x - t * scale).ravel()
    return refused


def int4_encode(
    values: Float32, added: Float32, residual: Float32, codes: Codes, scales: Scales, block: int
) -> int:
    """See `BlockKernels.encode`."""
    x, refused = blocks_before_refusal(values, added, block)
    t, scale = _absmax_codes(x, scales, 7)
    codes[: x.size // 2] = _pack(t.astype(np.int8).view(np.uint8) & 15)
    if residual.size == values.size:
        residual[: x.size] = (x - t * scale).ravel()
    return refused


def absmax_decode(codes: Codes, scales: Scales, out: Float32, block: int, *, steps: int) -> None:
    """See `BlockKernels.decode`."""
    if steps > 7:
        q = codes.reshape(-1, block).astype(np.float32)
    else:
        q = ((_unpack(codes, block) ^ 8).astype(np.int8) - 8).astype(np.float32)
    out[:] = (q * _widen(scales)).ravel()


def absmax_accumulate(
    codes: Codes, scales: Scales, factor: np.float32, out: Float32, block: int, *, steps: int
) -> None:
    """See `BlockKernels.accumulate`."""
    decoded = np.empty_like(out)
    absmax_decode(codes, scales, decoded, block, steps=steps)
    add_scaled(decoded, factor, out)


def absmax_sum_of_squares(codes: Codes, scales: Scales, block: int, *, steps: int) -> float:
    """See `BlockKernels.sum_of_squares`."""
    numel = scales.size * block
    decoded = np.empty(numel, np.float32)
    absmax_decode(codes, np.full_like(scales, 0x3F80), decoded, block, steps=steps)  # scales of 1
    return _sum_of_blocks(decoded, _widen(scales), block)


def e3m0_encode(
    values: Float32, added: Float32, residual: Float32, codes: Codes, scales: Scales, block: int
) -> int:
    """See `BlockKernels.encode`."""
    x, refused = blocks_before_refusal(values, added, block)
    mantissa, exponent = np.frexp(np.abs(x))  # x = mantissa * 2^exponent, mantissa in [0.5, 1)
    exponent = np.where(mantissa >= 0.75, exponent, exponent - 1) + 127
    exponent = np.where(x == 0, 0, np.minimum(exponent, 254))
    top = np.maximum(exponent.max(axis=1, initial=0), 8)
    scales[: len(x)] = top
    steps = np.maximum(exponent - top[:, None] + 7, 0)
    nibbles = np.where(steps > 0, steps | (np.signbit(x) * 8), 0).astype(np.uint8)
    codes[: x.size // 2] = _pack(nibbles)
    if residual.size == values.size:
        residual[: x.size] = (x - _powers(nibbles, scales[: len(x)])).ravel()
    return refused


def e3m0_decode(codes: Codes, scales: Scales, out: Float32, block: int) -> None:
    """See `BlockKernels.decode`."""
    out[:] = _powers(_unpack(codes, block), scales).ravel()


def e3m0_accumulate(
    codes: Codes, scales: Scales, factor: np.float32, out: Float32, block: int
) -> None:
    """See `BlockKernels.accumulate`."""
    add_scaled(_powers(_unpack(codes, block), scales).ravel(), factor, out)


def e3m0_sum_of_squares(codes: Codes, scales: Scales, block: int) -> float:
    """See `BlockKernels.sum_of_squares`."""
    unit = np.full_like(scales, 7 + 127)
    lowest = np.ldexp(np.float64(1), scales.astype(np.int32) - 7 - 127)
    return _sum_of_blocks(_powers(_unpack(codes, block), unit).ravel(), lowest, block)


def int8_canonical(codes: Codes) -> bool:
    """See `BlockKernels.canonical`: -128 is never sent."""
    return not bool((codes == -128).any())


def nibbles_canonical(codes: Codes) -> bool:
    """See `BlockKernels.canonical`: the nibble 8 (-8 in int4, -0 in E3M0) is never sent."""
    return not bool((((codes & 15) == 8) | ((codes >> 4) == 8)).any())


def blocks_before_refusal(values: Float32, added: Float32, block: int) -> tuple[Float32, int]:
    """The sums [blocks, block] up to the first block with a NaN or Inf, and which that is, or -1."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        x = values.reshape(-1, block) + added.reshape(-1, block)
    refused = np.flatnonzero(~np.isfinite(x).all(axis=1))
    return (x, -1) if refused.size == 0 else (x[: refused[0]], int(refused[0]))


def _absmax_codes(x: Float32, scales: Scales, steps: int) -> tuple[Float32, Float32]:
    """Codes of blocks as floats, and their scales, which are also written to `scales`."""
    scales[: len(x)] = _scales(np.abs(x).max(axis=1, initial=0), steps)
    scale = _widen(scales[: len(x)])
    t = np.rint(x * (_ONE / scale)) + _ZERO  # the sum turns -0 into +0, which is what is decoded
    return t, scale


def _scales(largest: Float32, steps: int) -> Scales:
    """The smallest bf16 at or above largest / steps, within [2^-111, the largest finite * steps]."""
    limit = np.float32(np.finfo(np.float32).max / steps).view(np.uint32) >> np.uint32(16)
    bits = (largest / np.float32(steps)).view(np.uint32)
    scales: Scales = np.clip((bits + np.uint32(0xFFFF)) >> np.uint32(16), _SMALLEST_SCALE, limit)
    return scales


def _widen(scales: Scales) -> Float32:
    """bf16 bits as a column of floats [blocks, 1]."""
    return (scales.astype(np.uint32) << np.uint32(16)).view(np.float32)[:, None]


def _powers(nibbles: Codes, exponents: Scales) -> Float32:
    """The floats [blocks, block] of E3M0 nibbles."""
    steps = (nibbles & 7).astype(np.int32)
    magnitude = np.ldexp(_ONE, steps + exponents.astype(np.int32)[:, None] - 7 - 127)
    signed = np.where(nibbles & 8, -magnitude, magnitude)
    return np.where(steps > 0, signed, _ZERO)


def _pack(nibbles: Codes) -> Codes:
    """Byte i of a block: value i in the low half, value i + block / 2 in the high half."""
    half = nibbles.shape[1] // 2
    codes: Codes = (nibbles[:, :half] | (nibbles[:, half:] << 4)).ravel()
    return codes


def _unpack(codes: Codes, block: int) -> Codes:
    q = codes.reshape(-1, block // 2)
    return np.concatenate([q & 15, q >> 4], axis=1)


def add_scaled(values: Float32, factor: np.float32, out: Float32) -> None:
    """``out += factor * values``, each product and sum rounded by itself."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        out += factor * values


def _sum_of_blocks(codes: Float32, scales: Float32, block: int) -> float:
    """The sum of squares of ``codes * scales``, whose exact parts are rounded as they are added."""
    squares = np.square(codes.reshape(-1, block), dtype=np.float64).sum(axis=1)  # integers: exact
    total = 0.0
    for row, scale in zip(squares.tolist(), scales.ravel().tolist(), strict=True):
        total += row * (scale * scale)
    return total


def _absmax_kernels(steps: int) -> BlockKernels:
    return BlockKernels(
        int8_encode if steps > 7 else int4_encode,
        partial(absmax_decode, steps=steps),
        partial(absmax_accumulate, steps=steps),
        int8_canonical if steps > 7 else nibbles_canonical,
        partial(absmax_sum_of_squares, steps=steps),
    )


INT8 = _absmax_kernels(127)
INT4 = _absmax_kernels(7)
E3M0 = BlockKernels(
    e3m0_encode, e3m0_decode, e3m0_accumulate, nibbles_canonical, e3m0_sum_of_squares
)
