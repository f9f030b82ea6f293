"""How amounts are written for people: in the log, on screens and in reports."""

from __future__ import annotations


def size_text(size_bytes: float) -> str:
    """Bytes for people, decimal units, three digits: "312 kB", "1.25 GB"."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if abs(size) < 999.5 else f"{size:,.0f} TB"


def count_text(number: int, noun: str) -> str:
    """A number with its noun: "1 peer", "2 addresses", "3 branches"."""
    plural = "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{plural}"
