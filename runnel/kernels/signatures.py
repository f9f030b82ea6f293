"""What an implementation of the arithmetic consists of; two stand behind it, see `dispatch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runnel.kernels.draws import Words

Float32 = npt.NDArray[np.float32]
Codes = npt.NDArray[Any]
"""int8 [values] for int8; uint8 for the codecs of 4 bits and fewer, several codes in each."""

Scales = npt.NDArray[Any]
"""uint16 (the upper half of a float32), one for each block, or two for two-bit; uint8 [blocks] for E3M0."""

Where = npt.NDArray[Any]
"""uint8 for top-k, uint64 for random-k: see `PlaceKernels`."""

Places = npt.NDArray[np.int32]
"""int32 [chunks, count]: which values of each chunk are sent."""

Halves = npt.NDArray[np.uint16]
"""uint16 [values]: the bits of half-precision numbers, IEEE's or bfloat16."""


@dataclass(frozen=True, slots=True)
class BlockKernels:
    """The operations of a block codec, on whole blocks. Arrays are 1-D, C-contiguous, of fitting sizes.

    Nothing is checked here: the codec checks first, since compiled code does not watch bounds.
    """

    encode: Callable[[Float32, Float32, Float32, Codes, Scales, int], int]
    """``(values, added, residual, codes, scales, block)``: the first block with a NaN or Inf, or -1.

    Encodes ``values + added``. `added` is another array of the same size, or one block of -0.0, which
    changes nothing. `residual` is `values` itself, another array of its size, or `block` values of
    scratch. Blocks before a refused one are complete; from it on, nothing is written.
    """

    decode: Callable[[Codes, Scales, Float32, int], None]
    """``(codes, scales, out, block)``: overwrites `out`."""

    accumulate: Callable[[Codes, Scales, np.float32, Float32, int], None]
    """``(codes, scales, factor, out, block)``: adds; each product and each sum is rounded by itself."""

    canonical: Callable[[Codes], bool]
    """``(codes)``: whether no code is one that the encoder never writes."""

    sum_of_squares: Callable[[Codes, Scales, int], float]
    """``(codes, scales, block)``: of the decoded values, without decoding them.

    The squares of a block's codes add up exactly, as integers; their sum times the square of the
    block's scale (exact, too) is rounded to float64 when it is added, block after block.
    """


@dataclass(frozen=True, slots=True)
class PlaceKernels:
    """Which values of each chunk are sent. Same rules as `BlockKernels`.

    `where` is what a payload, or a seed, says of it: for top-k ``3 * ceil(count / 2)`` bytes of indices for
    each chunk, for random-k a word of 64 bits (`draws.words_of`). `places` are int32 [chunks, count].
    """

    choose: Callable[[Float32, Float32, Where, Places], int]
    """``(values, added, where, places)``: the first chunk with a NaN or Inf, or -1.

    Adds to `values`; `added` is another array of their size, or one chunk of -0.0, which changes nothing.
    Then `places` are filled, of top-k also `where`, for all chunks before the refused one.
    """

    read: Callable[[Where, int, Places], None]
    """``(where, chunk, places)``: fills `places` for chunks of so many values."""

    canonical: Callable[[Where, int, int], bool]
    """``(where, chunk, count)``: whether an encoder may have written it: indices rise within their chunk."""


@dataclass(frozen=True, slots=True)
class SentKernels:
    """What is sent of such values: of a chunk two scales and ``ceil(count / 4)`` bytes of codes. Same rules."""

    send: Callable[[Float32, Places, Scales, Codes], None]
    """``(values, places, scales, codes)``: encodes what is at the places; it becomes what that loses."""

    add: Callable[[Scales, Codes, Places, np.float32, Float32], None]
    """``(scales, codes, places, factor, out)``: each product and each sum is rounded by itself."""

    sum_of_squares: Callable[[Scales, Codes, int], float]
    """``(scales, codes, count)``: of the decoded values, rounded to float64 chunk after chunk."""


@dataclass(frozen=True, slots=True)
class SparseKernels:
    """The operations of a codec that sends some values of each chunk, on whole chunks."""

    places: PlaceKernels
    sent: SentKernels


@dataclass(frozen=True, slots=True)
class HalfKernels:
    """The operations of a codec that gives each value 16 bits. Same rules as `BlockKernels`."""

    encode: Callable[[Float32, Float32, Halves], None]
    """``(values, residual, halves)``: to nearest even, clamped to the largest; `residual` may be `values`."""

    decode: Callable[[Halves, Float32], None]
    """``(halves, out)``: overwrites `out`."""

    accumulate: Callable[[Halves, np.float32, Float32], None]
    """``(halves, factor, out)``: adds; each product and each sum is rounded by itself."""

    canonical: Callable[[Halves], bool]
    """``(halves)``: whether none is one that the encoder never writes, NaN or infinite among them."""


@dataclass(frozen=True, slots=True)
class RotationKernels:
    """A rotation of blocks and its inverse. `out` may be `values`; all three fit each other, nothing is checked.

    There is a word (`draws.words_of`) for each block, and the blocks' size is a power of two.
    """

    forward: Callable[[Float32, Words, Float32], None]
    """``(values, words, out)``: H D x / n for blocks x of n values, D the signs of the block's word."""

    backward: Callable[[Float32, Words, Float32], None]
    """``(values, words, out)``: D H y, clamped to the largest float32; undoes `forward` but for roundings."""


@dataclass(frozen=True, slots=True)
class SketchKernels:
    """A sketch of chunks: what few sums of many values say of each. Nothing is checked; values are finite.

    There is a word (`draws.words_of`) for each chunk, and three rows of `columns` cells of it.
    """

    sketch: Callable[[Float32, Words, int, Float32], None]
    """``(values, words, columns, cells)``: fills `cells`, float32 [chunks * 3 * columns].

    They are multiplied by a factor from 0 to 1 for each chunk, the one with which what is read is closest to
    the values: without it a small sketch would be read as more than it was made of.
    """

    read: Callable[[Float32, Words, int, Float32], None]
    """``(cells, words, columns, out)``: overwrites `out` by the median of what three cells say of each value."""


@dataclass(frozen=True, slots=True)
class ElementwiseKernels:
    """The operations on single values and the sums in a fixed order. Same rules as `BlockKernels`."""

    float_accumulate: Callable[[Float32, np.float32, Float32], None]
    """``(values, factor, out)``: adds; each product and each sum is rounded by itself."""

    first_non_finite: Callable[[Float32], int]
    """``(values)``: the index of the first NaN or Inf, or -1."""

    sum_of_squares: Callable[[Float32], float]
    """``(values)``: in float64, over 64 lanes in a fixed order; see `statistics.sum_of_squares`."""

    momentum_step: Callable[[Float32, Float32, Float32, Float32, Float32, Float32], None]
    """``(parameters, momentum, pseudo_gradient, [lr, mu, own, gathered], new_parameters,
    new_momentum)``: see `outer_step.momentum_step`."""

    plain_step: Callable[[Float32, Float32, np.float32, Float32], None]
    """``(parameters, pseudo_gradient, lr, new_parameters)``: see `outer_step.plain_step`."""


AdamState = tuple[Float32, Float32, Float32]
"""Outer parameters, mean and mean square of pseudo-gradients, float32 [values] each."""

AdamStep = Callable[[AdamState, Float32, Float32, AdamState], None]
"""``(before, pseudo_gradient, [lr, beta1, 1 - beta1, beta2, 1 - beta2, epsilon], after)``: see
`outer_step.adam_step`. `after` may be `before`."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """All arithmetic by one technique; every technique gives the same bits."""

    name: str
    blocks: Mapping[str, BlockKernels]
    sparse: Mapping[str, SparseKernels]
    halves: Mapping[str, HalfKernels]
    rotations: Mapping[str, RotationKernels]
    sketches: Mapping[str, SketchKernels]
    steps: Mapping[str, AdamStep]
    elements: ElementwiseKernels
