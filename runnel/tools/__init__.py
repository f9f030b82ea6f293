"""Programs for people: the command line, the demo, live views and reports. Nothing imports these."""

from __future__ import annotations

__all__: list[str] = []
