"""Files that survive a crash: atomic replacement, a lock on a folder, and what to tell people.

Blocking; never called from the I/O thread.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
from typing import TYPE_CHECKING

from runnel.errors import ConfigError, StorageError
from runnel.files import (
    open_file,
    read_at,
    remove,
    remove_parts,
    replace,
    sync_directory,
    sync_file,
    try_lock,
    write_all,
    write_at,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from typing_extensions import Buffer

log = logging.getLogger(__name__)

_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux
_STAGE_BYTES = 2 * 1024 * 1024
_BLOCK_BYTES = 4096


class Stage:
    """Memory through which large files go past the system's cache, where the file system lets them.

    That costs a fifth of the processor's time, and leaves the cache to others. Direct writes need
    whole blocks from memory that begins at a page. For any thread; one file at a time.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._turn = threading.Lock()

    def write(self, descriptor: int, parts: Iterable[Buffer]) -> None:
        """Writes the concatenation of `parts` to a file that was opened for direct writes."""
        with self._turn:
            if self._memory is None:
                self._memory = mmap.mmap(-1, _STAGE_BYTES)
            with memoryview(self._memory) as stage:
                size = self._write_blocks(descriptor, parts, stage)
        os.ftruncate(descriptor, size)

    def _write_blocks(self, descriptor: int, parts: Iterable[Buffer], stage: memoryview) -> int:
        filled = size = 0
        for part in parts:
            rest = memoryview(part).cast("B")
            size += rest.nbytes
            while rest:
                piece = rest[: _STAGE_BYTES - filled]
                stage[filled : filled + piece.nbytes] = piece
                filled, rest = filled + piece.nbytes, rest[piece.nbytes :]
                if filled == _STAGE_BYTES:
                    write_all(descriptor, stage)
                    filled = 0
        write_all(descriptor, stage[: filled + -filled % _BLOCK_BYTES])
        return size


def replace_file(path: Path, parts: Iterable[Buffer], *, stage: Stage | None = None) -> None:
    """Puts a file with the concatenation of `parts` at `path`: afterwards all of it is there, or the old one.

    Written beside it under another name, synced, renamed, the folder synced. With a `stage` it goes
    past the system's cache where it can. Each part is used before the next one is asked for.

    Raises:
        OSError: the old file is as it was (unless the folder's own sync failed: then either).
    """
    # two threads may put the same content under its name at the same time
    temporary = path.with_name(f"{path.name}.{threading.get_ident()}.tmp")
    direct, descriptor = _create(temporary, direct=stage is not None)
    try:
        try:
            if direct and stage is not None:
                stage.write(descriptor, parts)
            else:
                for part in parts:
                    write_all(descriptor, part)
            sync_file(descriptor)
        finally:
            os.close(descriptor)
        replace(temporary, path)
    except OSError:
        remove(temporary)
        raise
    sync_directory(path.parent)


def _create(path: Path, *, direct: bool) -> tuple[bool, int]:
    """A new file to write to, and whether it bypasses the cache: not all file systems let it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if direct and _DIRECT:
        try:
            return True, open_file(path, flags | _DIRECT, 0o600)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return False, open_file(path, flags, 0o600)


_NO_FOLDER = "a file is in the place of a folder: choose another path"


def storage_error(action: str, path: Path, error: OSError) -> StorageError:
    """The error for a person: what failed where, why, and what helps."""
    remedies = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space of your quota",
        errno.EROFS: "mount the disk for writing or choose another folder",
        errno.EEXIST: _NO_FOLDER,
        errno.ENOTDIR: _NO_FOLDER,
        errno.EACCES: "give this user the right to write there or choose another folder",
    }
    remedy = remedies.get(error.errno or 0, "check the disk")
    return StorageError(f"cannot {action} {path}: {error.strerror or error}; {remedy}")


def clear_parts(folder: Path) -> None:
    """Deletes what killed writers left in a folder that is locked; what cannot be deleted stays."""
    try:
        remove_parts(folder)
    except OSError as error:
        log.warning("%s", storage_error("delete old files of", folder, error))


class DirectoryLock:
    """Holds a folder for one process until closed or until the process ends, however it ends.

    Raises:
        ConfigError: another process (named by its id) holds the folder.
        StorageError: the lock file cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        try:
            descriptor = open_file(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise storage_error("lock", self._path, error) from error
        try:
            locked = try_lock(descriptor)
            if locked:
                os.ftruncate(descriptor, 0)
                write_at(descriptor, str(os.getpid()).encode(), 0)
            holder = read_at(descriptor, 20, 0).decode("ascii", "replace").strip()
        except OSError as error:
            os.close(descriptor)
            raise storage_error("lock", self._path, error) from error
        if not locked:
            os.close(descriptor)
            raise ConfigError(
                f"{directory} is in use by process {holder or 'unknown'}; "
                f"stop that peer or give this one another home folder"
            )
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        """Lets the folder go. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
