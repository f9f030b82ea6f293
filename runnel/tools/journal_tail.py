"""A journal that another process is writing, event by event as it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.node.journal import parse_line

if TYPE_CHECKING:
    from pathlib import Path

    from runnel.node.events import Event

_MAX_READ_BYTES = 4 * 2**20


class JournalTail:
    """Reads what is new each time it is asked. For screens: after a rotation it goes on with the new file.

    Args:
        folder: below which the journal appears, once the peer knows its run.
        pattern: where in there.
    """

    def __init__(self, folder: Path, pattern: str) -> None:
        self._folder, self._pattern = folder, pattern
        self._place, self._rest = 0, b""
        self.path: Path | None = None

    def new_events(self) -> list[Event]:
        """Whole lines since the last call; none while there is no journal. Damaged lines are skipped."""
        if self.path is None:
            self.path = next(iter(sorted(self._folder.glob(self._pattern))), None)
        if self.path is None:
            return []
        try:
            with self.path.open("rb") as file:
                if self.path.stat().st_size < self._place:
                    self._place, self._rest = 0, b""
                file.seek(self._place)
                data = file.read(_MAX_READ_BYTES)
        except FileNotFoundError:  # between two files of a rotation
            return []
        self._place += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = (parse_line(line.decode("utf-8", "replace")) for line in lines)
        return [event for event in events if event is not None]
