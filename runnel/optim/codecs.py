"""Codecs: float32 values to few bytes and back. To add one: a class (or a `BlockFormat`) and one entry in `CODECS`.

Payloads have no header; codec and number of values are known from the manifest and the slice. All
numbers are little-endian, as is every machine this runs on. n values take:

``fp32``
    4n bytes: the values.
``fp16``
    2n bytes: IEEE half precision, to nearest even; beyond +-65504 clamped to it.
``bf16``
    2n bytes: the upper half of each float32, to nearest even; beyond the largest one (0x7F7F) clamped to
    it, below the smallest normal one (0x0080, 2^-126) +0.
``int8``
    Blocks of 256 values. First one scale for each block (2 bytes: the upper half of a float32, that
    is bf16, from 2^-111 = 0x0800 to 0x7C01), then one signed byte for each value, -127 to 127. The
    scale is the smallest allowed bf16 at or above (largest magnitude / 127), the code is
    value * (1 / scale) rounded half to even, and the value read back is code * scale. A bf16 has 8
    significant bits, so this product is exact: decoding gives the same bits with and without fused
    multiply-add.
``int4``
    Blocks of 128 values; scales as in int8 with 7 for 127 (0x0800 to 0x7E12), then the codes, -7 to
    7, as nibbles in two's complement.
``e3m0``
    Blocks of 128 values. First one byte E for each block, 8 to 254: the biased exponent of the
    block's largest magnitude, rounded to a power of two (1.5 and up goes up). Then the nibbles,
    ``sign << 3 | c``: c = 0 is zero (sign 0), c = 1..7 is +-2^(E - 7 + c - 127). Magnitudes below
    0.75 of the smallest power become zero. This is the 4-bit format of Streaming DiLoCo.

``two-bit``
    Blocks of 512 values. First two scales for each block, both bf16 from 0x0800 to 0x7F7F, the smaller
    one first; then the codes, ``sign << 1 | large``: +-the first scale, or +-the second. The scales are
    the mean magnitudes, rounded half to even, of the values up to 1.5 times the mean magnitude of all,
    and of those above it; a value is large if its magnitude exceeds the middle between the two.
    (Lloyd's algorithm, one and a half steps of it.) There is no zero: what a small value is given too
    much, error feedback takes back.
``sign``
    Blocks of 4096 values. First a scale for each block, bf16 from 0x0800 to 0x7F7F: the mean magnitude,
    rounded half to even; then one bit for each value, 1 where the sign is set.
``top-k`` and ``top-k:N``
    Chunks of 4096 values, of which the N of the largest magnitudes are sent (64 without a number), of a
    last chunk of L values ceil(N * L / 4096); among equals the first ones. First two scales for each
    chunk, as in two-bit but parted at the mean magnitude of what is sent; then its codes as in two-bit,
    by rising index; then the indices in the chunk, rising, 12 bits each: two in three bytes, the first
    in the lower bits, 0 behind an odd number.
``random-k`` and ``random-k:N``
    First a seed, 8 bytes, if there is any value. Then of each chunk of 4096 values N that the seed draws
    (256 without a number), of a last chunk of L values ceil(N * L / 4096): two scales and codes as in
    top-k, in the order in which they are drawn. A chunk's places are the first ones of a permutation
    that follows from the seed and the chunk's number (`runnel.kernels.draws`,
    `runnel.kernels.random_k_reference`), places beyond a short chunk left out.
``hadamard+int4``, ``hadamard+e3m0``, ``hadamard+two-bit``, ``hadamard+sign``
    First a seed, 8 bytes, if there is any value; then what the codec behind the plus makes of the
    rotated values. Blocks of 4096 are multiplied by signs that follow from the seed and the block's
    number, and by a Hadamard matrix over 4096 (`runnel.kernels.hadamard_reference`); the last block, of L
    values, is padded with zeros to the next power of two, all of which is sent. To be read, values are
    rotated back, and those in the padding's place left out.
``count-sketch`` and ``count-sketch:N``
    First a seed, 8 bytes, if there is any value. Then as in e3m0, with blocks of 3 N cells instead of values
    (N is 256 without a number, and even), of a last chunk of L values 3 ceil(N * L / 4096), and with E up to
    227: the cells of three rows, one row after the other. What is added up in them is told in
    `runnel.kernels.count_sketch_reference`.
``l-greco+int8``, ``l-greco+int4``, ``l-greco+e3m0``, ``l-greco+two-bit``
    Cells of at most 65,536 values, none across a multiple of that, each with a codec of its own. First three
    bytes for each cell: 0 to 4 for sign, two-bit, e3m0, int4, int8; then its number of values, less one, in
    two bytes. Then what its codec makes of each cell, one after the other. A cell has at least 512 values, or
    all that are left before the next multiple of 65,536 or the end. Which codecs are chosen is told in
    `runnel.optim.layer_bits`: so that the squared error is not above that of the codec behind the plus.

Means are sums in a fixed order (`runnel.kernels.few_bits_reference`, `runnel.kernels.top_k_reference`).

Codes of b bits: of a block of L values (the last may be short), or of the L entries of a chunk, byte i
of h = ceil(L * b / 8) holds value i in its lowest bits, then values h + i, 2h + i and so on, or 0 where
there is none. The nibble 8 is not used. What a codec never writes is refused, so a payload cannot
decode to NaN or Inf.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

from runnel.errors import ConfigError
from runnel.optim.codec_blockwise import BlockFormat, BlockwiseCodec
from runnel.optim.codec_count_sketch import CountSketchCodec
from runnel.optim.codec_hadamard import HadamardCodec
from runnel.optim.codec_layers import LayersCodec
from runnel.optim.codec_plain import FloatCodec, HalfCodec
from runnel.optim.codec_random_k import RandomKCodec
from runnel.optim.codec_top_k import TopKCodec
from runnel.protocols import Codec

INT8 = BlockFormat(
    name="int8",
    block=256,
    bits=8,
    scale_bytes=2,
    smallest_scale=0x0800,
    largest_scale=0x7C01,
)
INT4 = BlockFormat(
    name="int4", block=128, bits=4, scale_bytes=2, smallest_scale=0x0800, largest_scale=0x7E12
)
E3M0 = BlockFormat(
    name="e3m0", block=128, bits=4, scale_bytes=1, smallest_scale=8, largest_scale=254
)
TWO_BIT = BlockFormat(
    name="two-bit",
    block=512,
    bits=2,
    scale_bytes=2,
    smallest_scale=0x0800,
    largest_scale=0x7F7F,
    scales=2,
    exact_residual=False,
)
SIGN = BlockFormat(
    name="sign",
    block=4096,
    bits=1,
    scale_bytes=2,
    smallest_scale=0x0800,
    largest_scale=0x7F7F,
    exact_residual=False,
)

LADDER = (SIGN, TWO_BIT, E3M0, INT4, INT8)
"""What layers are given codecs from, by rising bits."""

Maker = Callable[..., Codec]
"""Makes a codec; ``by`` forces an implementation of the arithmetic, see `runnel.kernels.implementation`."""

CODECS: Mapping[str, Maker] = {
    "fp32": FloatCodec,
    "fp16": HalfCodec,
    "bf16": partial(HalfCodec, "bf16"),
    "int8": partial(BlockwiseCodec, INT8),
    "int4": partial(BlockwiseCodec, INT4),
    "e3m0": partial(BlockwiseCodec, E3M0),
    "two-bit": partial(BlockwiseCodec, TWO_BIT),
    "sign": partial(BlockwiseCodec, SIGN),
    "top-k": TopKCodec,
    "random-k": RandomKCodec,
    "hadamard+int4": partial(HadamardCodec, INT4),
    "hadamard+e3m0": partial(HadamardCodec, E3M0),
    "hadamard+two-bit": partial(HadamardCodec, TWO_BIT),
    "hadamard+sign": partial(HadamardCodec, SIGN),
    "count-sketch": partial(CountSketchCodec, E3M0),
    "l-greco+int8": partial(LayersCodec, INT8, LADDER),
    "l-greco+int4": partial(LayersCodec, INT4, LADDER),
    "l-greco+e3m0": partial(LayersCodec, E3M0, LADDER),
    "l-greco+two-bit": partial(LayersCodec, TWO_BIT, LADDER),
}
"""Every codec by the name under which manifests choose it."""

WITH_NUMBER = {"top-k": (1, 4096), "random-k": (1, 4096), "count-sketch": (2, 4096)}
"""Codecs that take a number, as in ``top-k:128``, and from where to where it goes."""


def codec_named(name: str, *, by: str | None = None) -> Codec:
    """The codec called `name`; `by` forces an implementation of its arithmetic.

    Raises:
        ConfigError: there is none of that name.
    """
    word, _, number = name.partition(":")
    if word not in CODECS:
        raise ConfigError(f"codec {name!r} is unknown; known codecs: {', '.join(CODECS)}")
    if word == name:
        return CODECS[word](by=by)
    low, high = WITH_NUMBER.get(word, (1, 0))
    if not re.fullmatch("[1-9][0-9]{0,8}", number) or not low <= int(number) <= high:
        expected = f"{word}:{low} to {word}:{high}" if low <= high else f"{word} alone"
        raise ConfigError(f"codec {name!r} is unknown; expected {expected}")
    return CODECS[word](int(number), by=by)


def planned_bytes(name: str, numel: int) -> int:
    """What `numel` values take by the codec called `name`: exactly, or where layers have bits of their own at most.

    That is of all slices of a contribution together; one of them may take more, and another one less.

    Raises:
        ConfigError: there is none of that name.
    """
    codec = codec_named(name)
    return codec.uniform_bytes(numel) if isinstance(codec, LayersCodec) else codec.max_bytes(numel)
