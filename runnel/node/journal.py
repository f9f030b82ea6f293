"""The journal: every event of a peer, appended as JSON lines by a thread of its own.

Each line is one JSON object whose last member is a CRC-32 of the text before it, so any JSON tool
reads the file, and a line that a crash or a full disk cut off is recognised. Rotated files are
``NAME.1`` (newest) to ``NAME.n``. The journal is for people, screens and reports; what the
protocol's safety needs is in `node/durable.py`.
"""

from __future__ import annotations

import glob
import logging
import os
import queue
import re
import threading
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from runnel.files import (
    make_folder,
    open_file,
    read_at,
    remove,
    replace,
    sync_directory,
    sync_file,
    write_all,
)
from runnel.node.disk import storage_error
from runnel.node.event_lines import from_json, to_json
from runnel.node.events import Event, PeerWarned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from runnel.errors import StorageError

log = logging.getLogger(__name__)

_CHECKED_LINE = re.compile(r'(\{.*), "crc": "([0-9a-f]{8})"\}', re.DOTALL)
_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalLimits:
    """Bounds in bytes, files and waiting events; at most ``max_file_bytes * (old_files + 1)`` on disk."""

    max_file_bytes: int = 16_000_000
    old_files: int = 3
    queue_events: int = 4096

    def __post_init__(self) -> None:
        if self.max_file_bytes < 1 or self.old_files < 0 or self.queue_events < 1:
            raise ValueError(f"journal limits must be positive, got {self}")


class EventSink(Protocol):
    """Where a peer's events are kept; `Journal` is one."""

    def append(self, event: Event) -> None:
        """Takes an event over; any thread, never waits."""
        ...

    def close(self) -> None:
        """Returns once all is kept. Idempotent."""
        ...


class Journal:
    """Appends events to a file without ever making the caller wait for the disk.

    Args:
        path: the newest file; its folder is made if missing. An existing file is continued.
        on_error: told once, on the journal's thread, of the first write that fails; events are
            lost while the disk refuses them, and training goes on.
        limits: sizes.

    Raises:
        StorageError: the file cannot be opened now.
    """

    def __init__(
        self,
        path: Path,
        *,
        on_error: Callable[[StorageError], None] | None = None,
        limits: JournalLimits | None = None,
    ) -> None:
        limits = limits or JournalLimits()
        self._file = _RotatingFile(path, limits)
        self._queue: queue.Queue[Event | threading.Event | None] = queue.Queue(limits.queue_events)
        self._on_error = on_error
        self._failing = self._reported = False
        self._lock = threading.Lock()
        self._dropped = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="runnel-journal", daemon=True)
        self._thread.start()

    def append(self, event: Event) -> None:
        """Hands over an event; any thread. If the queue is full it is dropped, and the drop is recorded."""
        with self._lock:
            if self._closed:
                log.warning("journal is closed; %s was not kept", type(event).__name__)
                return
            try:
                if self._dropped:
                    text = f"the journal fell behind and dropped {self._dropped} events"
                    self._queue.put_nowait(PeerWarned(unix_s=event.unix_s, text=text))
                    self._dropped = 0
                self._queue.put_nowait(event)
            except queue.Full:
                if not self._dropped:
                    log.warning("the disk is too slow for the journal; events are being dropped")
                self._dropped += 1

    def flush(self, timeout_s: float) -> bool:
        """Waits until all events appended so far are on the disk; False if not within `timeout_s`.

        False too if the disk refuses to write.
        """
        if self._closed:
            return not self._failing
        written = threading.Event()
        try:
            self._queue.put(written, timeout=timeout_s)
        except queue.Full:
            return False
        return written.wait(timeout_s) and not self._failing

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what waits, syncs, ends the thread. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            log.warning("journal %s is stuck; the last events are lost", self._file.path)
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.error("journal %s did not close within %.1f s", self._file.path, timeout_s)

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            while len(batch) < _BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            ended = None in batch
            waiting = [item for item in batch if isinstance(item, threading.Event)]
            lines = _lines(item for item in batch if isinstance(item, Event))
            self._write(lines, sync=bool(waiting) or ended)
            for written in waiting:
                written.set()
        self._file.close()

    def _write(self, lines: list[str], *, sync: bool) -> None:
        try:
            self._file.append(lines)
            if sync:
                self._file.sync()
        except OSError as cause:
            self._failing = True
            if self._reported:
                return
            self._reported = True
            error = storage_error("write the journal", self._file.path, cause)
            log.warning("%s; training goes on without a journal", error)
            self._report(error)
        else:
            if self._failing:
                log.warning("journal %s can be written again", self._file.path)
            self._failing = False

    def _report(self, error: StorageError) -> None:
        if self._on_error is None:
            return
        try:
            self._on_error(error)
        except Exception:  # foreign code: its failure must not end the journal
            log.exception("the journal's error callback failed")


class _RotatingFile:
    """Lines appended to a file that moves aside when it is full. One thread at a time."""

    def __init__(self, path: Path, limits: JournalLimits) -> None:
        self.path = path
        self._limits = limits
        self._descriptor: int | None = None
        self._size = 0
        self._torn = False
        try:
            make_folder(path.parent)
            self._open()
            sync_directory(path.parent)
        except OSError as error:
            raise storage_error("open the journal", path, error) from error

    def append(self, lines: list[str]) -> None:
        """Writes whole lines; after a failed attempt the torn one is closed off first."""
        for line in lines:
            data = line.encode() + b"\n"
            full = bool(self._size) and self._size + len(data) > self._limits.max_file_bytes
            descriptor = self._rotated() if full or self._descriptor is None else self._descriptor
            if self._torn:
                data = b"\n" + data
            self._torn = True
            write_all(descriptor, data)
            self._torn = False
            self._size += len(data)

    def sync(self) -> None:
        """Returns once all is on the disk."""
        if self._descriptor is not None:
            sync_file(self._descriptor)

    def close(self) -> None:
        """Closes the file. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        descriptor = open_file(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._descriptor, self._size = descriptor, os.fstat(descriptor).st_size
        self._torn = bool(self._size) and read_at(descriptor, 1, self._size - 1) != b"\n"
        return descriptor

    def _rotated(self) -> int:
        """The next file, open; after a failure none is, and the next attempt begins here again."""
        self.sync()
        self.close()  # what is open has its name for good on some systems
        if self.path.exists():  # not if an earlier attempt came to here and could not open
            names = [self.path, *_old_names(self.path, self._limits.old_files)]
            for index in range(len(names) - 1, 0, -1):
                if names[index - 1].exists():
                    replace(names[index - 1], names[index])
            remove(self.path)
        descriptor = self._open()
        sync_directory(self.path.parent)
        return descriptor


def checked_line(event: Event) -> str:
    """The JSON of `event` with the CRC of the text before it as last member."""
    body = to_json(event).rstrip()[:-1]
    return f'{body}, "crc": "{zlib.crc32(body.encode()):08x}"}}'


def parse_line(line: str) -> Event | None:
    """The event of a line that `checked_line` made, or None if the line is not as it was written."""
    match = _CHECKED_LINE.fullmatch(line)
    if match is None or zlib.crc32(match[1].encode("utf-8", "replace")) != int(match[2], 16):
        return None
    return from_json(match[1] + "}")


def _lines(events: Iterable[Event]) -> list[str]:
    lines = []
    for event in events:
        try:
            lines.append(checked_line(event))
        except (TypeError, ValueError):
            log.exception("a %s has fields that JSON cannot hold: not kept", type(event).__name__)
    return lines


def read_events(path: Path) -> Iterator[Event]:
    """The events of a journal, oldest first, its rotated files included.

    Lines that are cut off or damaged are skipped, and named in a warning. The last line of a
    journal that is being written may be incomplete.

    Raises:
        StorageError: the journal exists and cannot be read.
        FileNotFoundError: there is none.
    """
    old = [name for name in _old_names(path, _highest_number(path)) if name.exists()]
    for name in [*reversed(old), path]:
        yield from _read_file(name)


def _read_file(path: Path) -> Iterator[Event]:
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                text = line.rstrip("\n")
                event = parse_line(text)
                if event is not None:
                    yield event
                elif text:
                    log.warning("%s, line %d is damaged or cut off: skipped", path, number)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error("read the journal", path, error) from error


def _old_names(path: Path, count: int) -> list[Path]:
    return [path.with_name(f"{path.name}.{number}") for number in range(1, count + 1)]


def _highest_number(path: Path) -> int:
    suffixes = (
        name.name[len(path.name) + 1 :] for name in path.parent.glob(f"{glob.escape(path.name)}.*")
    )
    return max((int(suffix) for suffix in suffixes if suffix.isdecimal()), default=0)
