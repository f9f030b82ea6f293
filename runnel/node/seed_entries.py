"""The rounds of a shared-seed run as a peer followed them: a file that only grows, some bytes per round.

With the base it is the whole run. No promise rests on it: a peer goes on without it, and what a crash
cut off is written again from the results of recent rounds. Everything here blocks.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from runnel.files import make_folder, write_new
from runnel.hashing import CHECKSUM_BYTES, checksum, digest
from runnel.node.chain import Chain
from runnel.node.saved_states import Step, steps_of
from runnel.optim.seed_rounds import MAX_ENTRY_BYTES
from runnel.types import Digest

logger = logging.getLogger(__name__)

ENTRIES_NAME = "seeds.entries"
"""In a run's folder."""

_HEAD = struct.Struct("<QI")
_RECENT = 320
"""So many rounds are looked at after a restart; results are kept for somewhat fewer."""


class EntryFile:
    """Appends the entries of rounds; those of rounds that are given up count no more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._broken = False

    def give_up(self, number: int) -> None:
        """The rounds from `number` on are not on the chain any more."""
        self.append(number, b"")

    def append(self, number: int, entry: bytes | memoryview) -> None:
        """Adds the entry of round `number`. A disk that refuses ends the history here, not the peer."""
        if self._broken:
            return
        head = _HEAD.pack(number, len(entry))
        try:
            make_folder(self._path.parent)
            with self._path.open("ab") as file:
                file.write(b"".join([head, entry, checksum(head, entry).digest()]))
        except OSError as error:
            self._broken = True
            logger.warning(
                "%s cannot be written (%s): the log of this run can be exported from here again once"
                " this peer was restarted soon",
                self._path,
                (error.strerror or str(error)).lower(),
            )

    def mend(
        self, chain: Chain, path: Sequence[Digest], entry_of: Callable[[Digest], bytes | None]
    ) -> None:
        """After a restart: cuts off what a crash left unfinished, and adds recent rounds that are missing.

        `entry_of` gives a round's result, if it is here.
        """
        kept, whole = _parsed(self._read())
        wanted = {step.record.number: step.record for step in _recent(chain, path)}
        first = min(wanted, default=0)
        good = [
            (number, entry)
            for number, entry in kept
            if number < first
            or (number in wanted and wanted[number].slices[0].root == digest(entry))
        ]
        if len(good) < len(kept) or whole < self._size():
            self._rewrite(good)
        known = {number for number, _ in good}
        newest = max(known, default=-1)
        for number in sorted(wanted):
            entry = entry_of(wanted[number].slices[0].root) if number > newest else None
            if entry is not None:
                self.append(number, entry)

    def entries(self, until: int) -> list[bytes]:
        """The entries of the rounds up to number `until` that this peer followed, in order."""
        return [entry for number, entry in _parsed(self._read())[0] if number <= until]

    def _rewrite(self, entries: Sequence[tuple[int, bytes]]) -> None:
        frames = []
        for number, entry in entries:
            head = _HEAD.pack(number, len(entry))
            frames += [head, entry, checksum(head, entry).digest()]
        beside = self._path.with_name(self._path.name + ".new")
        beside.unlink(missing_ok=True)
        write_new(beside, b"".join(frames))
        beside.replace(self._path)

    def _read(self) -> bytes:
        return self._path.read_bytes() if self._path.exists() else b""

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0


def _recent(chain: Chain, path: Sequence[Digest]) -> list[Step]:
    recent = []
    for step in steps_of(chain, path, 0, 1):
        recent.append(step)
        if len(recent) == _RECENT:
            break
    return recent


def _parsed(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """Entries by rising number, and how many bytes are whole frames."""
    entries: list[tuple[int, bytes]] = []
    at = 0
    while at + _HEAD.size <= len(data):
        number, size = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + size + CHECKSUM_BYTES
        if size > MAX_ENTRY_BYTES or end > len(data):
            break
        entry = data[at + _HEAD.size : end - CHECKSUM_BYTES]
        if checksum(data[at : at + _HEAD.size], entry).digest() != data[end - CHECKSUM_BYTES : end]:
            break
        while entries and entries[-1][0] >= number:
            entries.pop()
        if entry:
            entries.append((number, entry))
        at = end
    return entries, at
