"""Codecs: float32 values to few bytes and back. To add one: a class (or a `BlockFormat`) and one entry in `CODECS`.

Payloads have no header; codec and number of values are known from the manifest and the slice. All
numbers are little-endian, as is every machine this runs on. n values take:

``fp32``
    4n bytes: the values.
``fp16``
    2n bytes: IEEE half precision, to nearest even; beyond +-65504 clamped to it.
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

Nibbles: a block of L values (the last may be short) takes h = ceil(L / 2) bytes; byte i holds value
i in its low half and value h + i in its high half, or 0 where there is none. The nibble 8 is not
used. What a codec never writes is refused, so a payload cannot decode to NaN or Inf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runnel.errors import ConfigError
from runnel.optim.codec_blockwise import BlockFormat, BlockwiseCodec
from runnel.optim.codec_plain import FloatCodec, HalfCodec
from runnel.protocols import Codec

INT8 = BlockFormat(
    name="int8",
    block=256,
    packed=False,
    scale_bytes=2,
    smallest_scale=0x0800,
    largest_scale=0x7C01,
)
INT4 = BlockFormat(
    name="int4", block=128, packed=True, scale_bytes=2, smallest_scale=0x0800, largest_scale=0x7E12
)
E3M0 = BlockFormat(
    name="e3m0", block=128, packed=True, scale_bytes=1, smallest_scale=8, largest_scale=254
)

CODECS: Mapping[str, Callable[[], Codec]] = {
    "fp32": FloatCodec,
    "fp16": HalfCodec,
    "int8": lambda: BlockwiseCodec(INT8),
    "int4": lambda: BlockwiseCodec(INT4),
    "e3m0": lambda: BlockwiseCodec(E3M0),
}
"""Every codec by the name under which manifests choose it."""


def codec_named(name: str) -> Codec:
    """The codec called `name`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in CODECS:
        raise ConfigError(f"codec {name!r} is unknown; known codecs: {', '.join(CODECS)}")
    return CODECS[name]()
