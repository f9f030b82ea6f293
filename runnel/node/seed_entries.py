"""The rounds of a shared-seed run as a peer followed them: a file that only grows, some bytes per round.

With the base it is the whole run. No promise rests on it: a peer goes on without it, and what a crash
cut off is written again from the results of recent rounds. Everything here blocks.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from runnel.errors import InputFileError, StorageError
from runnel.files import make_folder
from runnel.hashing import CHECKSUM_BYTES, checksum, digest
from runnel.node.atomic import write_atomically
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
        try:
            make_folder(self._path.parent)
            with self._path.open("ab") as file:
                file.write(_frame(number, entry))
        except OSError as error:
            self._give_in(error.strerror or str(error))

    def mend(
        self, chain: Chain, path: Sequence[Digest], entry_of: Callable[[Digest], bytes | None]
    ) -> None:
        """After a restart: cuts off what a crash left unfinished, and adds recent rounds that are missing.

        `entry_of` gives a round's result, if it is here.
        """
        try:
            self._mend(chain, path, entry_of)
        except OSError as error:
            self._give_in(error.strerror or str(error))
        except StorageError as error:
            self._give_in(str(error))

    def entries(self, until: int) -> list[bytes]:
        """The entries of the rounds up to number `until` that this peer followed, in order.

        Raises:
            InputFileError: they cannot be read.
        """
        try:
            kept, _ = _parsed(self._read())
        except OSError as error:
            raise InputFileError(
                f"{self._path} cannot be read ({(error.strerror or str(error)).lower()}): export the"
                " log from another peer"
            ) from None
        return [entry for number, entry in kept if number <= until]

    def _give_in(self, reason: str) -> None:
        self._broken = True
        logger.warning(
            "%s cannot be written (%s): the log of this run can be exported from here again once this"
            " peer was restarted soon",
            self._path,
            reason.lower(),
        )

    def _mend(
        self, chain: Chain, path: Sequence[Digest], entry_of: Callable[[Digest], bytes | None]
    ) -> None:
        data = self._read()
        kept, whole = _parsed(data)
        wanted = {step.record.number: step.record for step in _recent(chain, path)}
        first = min(wanted, default=0)
        good = [
            (number, entry)
            for number, entry in kept
            if number < first
            or (number in wanted and wanted[number].slices[0].root == digest(entry))
        ]
        if len(good) < len(kept) or whole < len(data):
            write_atomically(self._path, b"".join(_frame(*one) for one in good))
        newest = good[-1][0] if good else -1
        for number in sorted(wanted):
            entry = entry_of(wanted[number].slices[0].root) if number > newest else None
            if entry is not None:
                self.append(number, entry)

    def _read(self) -> bytes:
        return self._path.read_bytes() if self._path.exists() else b""


def _frame(number: int, entry: bytes | memoryview) -> bytes:
    head = _HEAD.pack(number, len(entry))
    return b"".join([head, entry, checksum(head, entry).digest()])


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
