"""Where fetched chunks go: a buffer, or a file that appears when it is complete.

Sinks are written from executor threads and closed from the loop's; after `close` a late job changes
nothing, so that a buffer belongs to its owner again as soon as a fetch has ended, in whatever way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runnel.errors import PeerError, StorageError
from runnel.files import (
    make_folder,
    open_file,
    read_at,
    replace,
    sync_directory,
    sync_file,
    write_at,
)
from runnel.hashing import digest

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from runnel.dht.blobs import Tree

PART_SUFFIX = ".part"
"""Ends the name of a file that is still being fetched."""


class Sink(Protocol):
    """Takes the chunks of one tree in any order."""

    def open(self) -> list[int]:
        """Prepares; the indices of the chunks that are not here yet."""
        ...

    def put(self, index: int, chunk: memoryview) -> None:
        """Stores a checked chunk."""
        ...

    def finish(self) -> None:
        """All chunks are here: makes them what was asked for."""
        ...

    def close(self) -> None:
        """Stops: later calls of the others do nothing. Idempotent."""
        ...


class BufferSink:
    """Writes into memory; see `Sink`.

    Args:
        tree: what will be written.
        out: a writable buffer of exactly the tree's size.

    Raises:
        PeerError: "wrong-size".
    """

    def __init__(self, tree: Tree, out: Buffer) -> None:
        view = memoryview(out)
        if view.readonly:
            raise ValueError("the buffer to fetch into is read-only")
        if view.nbytes != tree.size_bytes:
            raise PeerError("wrong-size", f"{tree.size_bytes} bytes, expected {view.nbytes}")
        self._tree = tree
        self._view = view.cast("B") if view.nbytes else memoryview(bytearray())
        self._lock = threading.Lock()
        self._closed = False

    def open(self) -> list[int]:
        """See `Sink.open`; nothing is kept of what the buffer holds."""
        return list(range(len(self._tree.digests)))

    def put(self, index: int, chunk: memoryview) -> None:
        """See `Sink.put`."""
        start, stop = self._tree.span(index)
        with self._lock:
            if not self._closed:
                self._view[start:stop] = chunk

    def finish(self) -> None:
        """See `Sink.finish`."""

    def close(self) -> None:
        """See `Sink.close`."""
        with self._lock:
            self._closed = True
            self._view.release()


class FileSink:
    """Writes beside a path and renames at the end; see `Sink`.

    What an interrupted fetch left in the ``.part`` file is hashed again, and kept where it is right:
    a file cut at any byte costs the chunk that the cut goes through.

    Raises (all methods):
        StorageError: the disk refused.
    """

    def __init__(self, tree: Tree, path: Path) -> None:
        self._tree = tree
        self._path = path
        self._part = path.with_name(path.name + PART_SUFFIX)
        self._lock = threading.Lock()
        self._file: int | None = None
        self._closed = False

    def open(self) -> list[int]:
        """See `Sink.open`; reads and hashes all that is in the ``.part`` file."""
        with self._storage_errors(), self._lock:
            if not self._closed:
                make_folder(self._path.parent)
                self._file = open_file(self._part, os.O_RDWR | os.O_CREAT, 0o644)
        return [i for i in range(len(self._tree.digests)) if not self._is_here(i)]

    def put(self, index: int, chunk: memoryview) -> None:
        """See `Sink.put`."""
        start, _ = self._tree.span(index)
        with self._storage_errors(), self._lock:
            if self._file is None:
                return
            write_at(self._file, chunk, start)

    def finish(self) -> None:
        """See `Sink.finish`: cut to size, synced, renamed, and the folder synced."""
        with self._storage_errors():
            with self._lock:
                if self._file is None:
                    return
                file, self._file = self._file, None
            try:  # outside the lock: a sync may take seconds, and `close` must not wait for it
                os.ftruncate(file, self._tree.size_bytes)
                sync_file(file)
            finally:
                os.close(file)
            replace(self._part, self._path)
            sync_directory(self._path.parent)

    def close(self) -> None:
        """See `Sink.close`; an unfinished ``.part`` file stays for the next time."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _is_here(self, index: int) -> bool:
        start, stop = self._tree.span(index)
        with self._storage_errors(), self._lock:  # one chunk at a time: `close` waits for no more
            if self._file is None:
                return False
            content = read_at(self._file, stop - start, start)
        return len(content) == stop - start and digest(content) == self._tree.digests[index]

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._part} cannot be written ({(error.strerror or str(error)).lower()}),"
                " expected a folder with free space where you may write: choose another one"
            ) from None
