"""What the codecs of 16 bits compute, in plain numpy: the definition, and the fallback without numba."""

from __future__ import annotations

import numpy as np

from runnel.kernels.blockwise_reference import add_scaled
from runnel.kernels.signatures import Float32, HalfKernels, Halves

_LARGEST_HALF = np.float32(65504)
_LARGEST_BFLOAT = 0x7F7F
_SMALLEST_BFLOAT = 0x0080  # 2^-126


def fp16_encode(values: Float32, residual: Float32, halves: Halves) -> None:
    """See `HalfKernels.encode`."""
    with np.errstate(under="ignore"):
        nearest = np.clip(values, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
    halves[:] = nearest.view(np.uint16)
    residual[:] = values - nearest.astype(np.float32)


def fp16_decode(halves: Halves, out: Float32) -> None:
    """See `HalfKernels.decode`."""
    out[:] = halves.view(np.float16)


def fp16_accumulate(halves: Halves, factor: np.float32, out: Float32) -> None:
    """See `HalfKernels.accumulate`."""
    add_scaled(halves.view(np.float16).astype(np.float32), factor, out)


def fp16_canonical(halves: Halves) -> bool:
    """See `HalfKernels.canonical`."""
    return bool(np.isfinite(halves.view(np.float16)).all())


def bf16_encode(values: Float32, residual: Float32, halves: Halves) -> None:
    """See `HalfKernels.encode`."""
    bits = values.view(np.uint32)
    m = bits & np.uint32(0x7FFFFFFF)
    nearest = (m + np.uint32(0x7FFF) + (m >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    nearest = np.minimum(nearest, np.uint32(_LARGEST_BFLOAT))
    signed = nearest | bits >> np.uint32(16) & np.uint32(0x8000)
    halves[:] = np.where(nearest < _SMALLEST_BFLOAT, np.uint32(0), signed)
    residual[:] = values - _widened(halves)


def bf16_decode(halves: Halves, out: Float32) -> None:
    """See `HalfKernels.decode`."""
    out[:] = _widened(halves)


def bf16_accumulate(halves: Halves, factor: np.float32, out: Float32) -> None:
    """See `HalfKernels.accumulate`."""
    add_scaled(_widened(halves), factor, out)


def bf16_canonical(halves: Halves) -> bool:
    """See `HalfKernels.canonical`."""
    m = halves & np.uint16(0x7FFF)
    return not bool(((m < _SMALLEST_BFLOAT) & (halves != 0) | (m > _LARGEST_BFLOAT)).any())


def _widened(halves: Halves) -> Float32:
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


FP16 = HalfKernels(fp16_encode, fp16_decode, fp16_accumulate, fp16_canonical)
BF16 = HalfKernels(bf16_encode, bf16_decode, bf16_accumulate, bf16_canonical)
