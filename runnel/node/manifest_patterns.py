"""How codecs and budgets are written in a run's settings."""

from __future__ import annotations

CODEC_PATTERN = (
    r"^(?:fp32|fp16|bf16|int8|(?:hadamard\+)?(?:int4|e3m0|two-bit|sign)"
    r"|l-greco\+(?:int8|int4|e3m0|two-bit)|(?:top|random)-k"
    "(?::(?:[1-9][0-9]{0,2}|[1-3][0-9]{3}|40[0-8][0-9]|409[0-6]))?"
    "|count-sketch(?::(?:[2468]|[1-9][0-9]?[02468]|[1-3][0-9]{2}[02468]|40[0-8][02468]|409[0246]))?)$"
)
CODEC_WORDS = (
    "fp32, fp16, bf16, int8, int4, e3m0, two-bit, sign (the last four also as hadamard+int4 and so on),"
    " top-k or random-k, or top-k:N or random-k:N for N of 4096 values,"
    " count-sketch or count-sketch:N for an even N of columns, or"
    " l-greco+ before int8, int4, e3m0 or two-bit"
)
AUTO = "auto"
"""In place of a codec: chosen at the launch so that the budget holds."""
BUDGET_PATTERN = (
    r"^(?:(?:1/[1-9][0-9]{0,6} of data parallel|[0-9]{1,6}(?:\.[0-9]{1,6})? [kMG]bit/s)"
    r"(?: for [0-9]{1,2} peers)?)?$"
)
BUDGET_WORDS = (
    '"20 kbit/s", "1/1000 of data parallel", or one of them with " for 16 peers" behind it'
)
