"""How fast a link is, as people write it: "500 kbit/s", "2 Mbit/s"."""

from __future__ import annotations

import re

from runnel.errors import ConfigError

LEAST_BITS_S = 64_000.0
"""Below that not even votes are in time."""

_UNITS = {"kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}
_RATE = re.compile(r"\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*([kMG]bit/s)\s*")


def parse_rate(name: str, text: str, *, least_bits_s: float = LEAST_BITS_S) -> float:
    """Bits per second; `name` is what is set.

    Raises:
        ConfigError: another form, or too little to take part with.
    """
    found = _RATE.fullmatch(text)
    bits_s = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if bits_s < least_bits_s:
        raise ConfigError(
            f'{name} is {text!r}, expected a number with its unit such as "500 kbit/s" or "2 Mbit/s",'
            f" at least {rate_text(least_bits_s)}: correct it"
        )
    return bits_s


def rate_text(bits_s: float) -> str:
    """As `parse_rate` reads it."""
    unit = max((u for u in _UNITS if bits_s >= _UNITS[u]), key=_UNITS.__getitem__, default="kbit/s")
    return f"{bits_s / _UNITS[unit]:g} {unit}"
