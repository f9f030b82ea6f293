"""The rounds of a shared-seed run as a peer followed them: a file that only grows, some bytes per round.

With the base it is the whole run. No promise rests on it: a peer goes on without it, and what a crash
cut off is written again from the results of recent rounds. Everything here blocks.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from runnel.errors import InputFileError, StorageError
from runnel.files import make_folder
from runnel.hashing import CHECKSUM_BYTES, checksum, digest
from runnel.node.atomic import write_atomically
from runnel.node.chain import Chain
from runnel.node.disk import storage_error
from runnel.node.saved_states import Step, steps_of
from runnel.node.wording import count_text
from runnel.optim.seed_rounds import MAX_ENTRY_BYTES
from runnel.types import Digest

logger = logging.getLogger(__name__)

ENTRIES_NAME = "seeds.entries"
"""In a run's folder."""
OLDER_SUFFIX = ".older"
"""Of the file beside it, with entries of rounds that this peer did not follow, in any order."""
MAX_OLDER_BYTES = 1 << 32

_HEAD = struct.Struct("<QI")
_BLOCK_ROUNDS = 1024
_RECENT = 320
"""So many rounds are looked at after a restart; results are kept for somewhat fewer."""


class EntryFile:
    """Appends the entries of rounds; those of rounds that are given up count no more.

    Attributes:
        may_lack: whether rounds before the newest one may be missing, to be looked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._broken = False
        self.may_lack = True
        self._older = path.with_name(path.name + OLDER_SUFFIX)
        self._indexes = (FrameIndex(path), FrameIndex(self._older))

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

    def all_of(self, wanted: Mapping[int, Digest]) -> list[bytes]:
        """The entries of all these rounds, in their order.

        Raises:
            InputFileError: they cannot be read, or some are not here.
        """
        found = self.read(wanted)
        missing = [number for number in wanted if number not in found]
        if missing:
            raise InputFileError(
                f"this peer's history lacks {count_text(len(missing), 'round')} from {missing[0]} to"
                f" {missing[-1]}: a peer that takes part fetches them from members; let it, or export"
                " the log from another one"
            )
        return [found[number] for number in wanted]

    def read(self, wanted: Mapping[int, Digest]) -> dict[int, bytes]:
        """Those of these entries that are here, by round; each is what its record names.

        Raises:
            InputFileError: they cannot be read.
        """
        try:
            found = dict[int, bytes]()
            for index in self._indexes:
                rest = {n: root for n, root in wanted.items() if n not in found}
                found |= index.read(rest)
        except OSError as error:
            raise InputFileError(
                f"{self._path} cannot be read ({(error.strerror or str(error)).lower()}): export the"
                " log from another peer"
            ) from None
        return found

    def add_older(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Keeps entries of rounds that this peer did not follow.

        Raises:
            StorageError: the disk refused, or there are too many.
        """
        data = b"".join(_frame(number, entry) for number, entry in entries)
        try:
            make_folder(self._older.parent)
            with self._older.open("ab") as file:
                file.truncate(self._indexes[-1].whole_bytes())
                if file.tell() + len(data) > MAX_OLDER_BYTES:
                    raise StorageError(f"{self._older} has over {MAX_OLDER_BYTES} bytes")
                file.write(data)
        except OSError as error:
            raise storage_error("write entries to", self._older, error) from error

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


class FrameIndex:
    """Where in a file of entries the rounds begin, roughly; grows with the file. One thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[int, int] = {}
        self._known_bytes = 0

    def read(self, wanted: Mapping[int, Digest]) -> dict[int, bytes]:
        """Those of these entries that are in the file."""
        if not wanted or not self._path.exists():
            return {}
        self._grow()
        found = dict[int, bytes]()
        blocks = {number // _BLOCK_ROUNDS for number in wanted}
        start = min((self._places[b] for b in blocks if b in self._places), default=None)
        if start is None:
            return {}
        with self._path.open("rb") as file:
            for _, number, entry in _frames(file, start):
                if number not in found and digest(entry) == wanted.get(number):
                    found[number] = entry
                if len(found) == len(wanted):
                    break
        return found

    def whole_bytes(self) -> int:
        """How long the file is up to what a full disk or a crash cut off."""
        if self._path.exists():
            self._grow()
        return self._known_bytes

    def _grow(self) -> None:
        """Looks through what was added since. A file that became shorter is another one."""
        if self._path.stat().st_size < self._known_bytes:
            self._known_bytes = 0
        if not self._known_bytes:
            self._places = {}
        with self._path.open("rb") as file:
            for place, number, entry in _frames(file, self._known_bytes):
                self._places.setdefault(number // _BLOCK_ROUNDS, place)
                self._known_bytes = place + _HEAD.size + len(entry) + CHECKSUM_BYTES


def _frames(file: BinaryIO, start: int) -> Iterator[tuple[int, int, bytes]]:
    """(place, round, entry) of each whole frame from byte `start` on, up to the first that is not."""
    file.seek(start)
    while True:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return
        number, size = _HEAD.unpack(head)
        if size > MAX_ENTRY_BYTES:
            return
        rest = file.read(size + CHECKSUM_BYTES)
        entry = rest[:size]
        if rest[size:] != checksum(head, entry).digest():
            return
        yield start, number, entry
        start += len(head) + len(rest)


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
