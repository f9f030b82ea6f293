"""What every writer of files needs: all the bytes, on the disk, under a name that is there as well.

What systems do differently with files is here and nowhere else: locks, syncs of folders, line ends,
and that Windows moves and deletes nothing that anybody has open. So whoever renames a file has closed
it, on every system. All of it blocks and raises plain OSError: who knows what a file is for says what
to do about it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Buffer

_PART_BYTES = 6
_PART = re.compile(r"\..+\.[0-9a-f]{12}")
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK})
"""What file systems without hard links say."""
_BINARY = getattr(os, "O_BINARY", 0)
"""Windows translates line ends without it."""

if sys.platform == "win32":
    _FULL_SYNC = None
    _ATTEMPTS = 40
    _LOCKED_BYTE = 1 << 30
    """Beyond what is read: nobody reads a locked byte, whose holder is named in the first ones."""
else:
    _FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone leaves data in the drive
    _ATTEMPTS = 1
_PAUSE_S = 0.05


def open_file(path: Path, flags: int, mode: int = 0o666) -> int:
    """As `os.open`; bytes are read and written as they are."""
    return os.open(path, flags | _BINARY, mode)


def read_at(descriptor: int, size_bytes: int, offset: int) -> bytes:
    """Up to `size_bytes` from `offset` on; moves the position, so one thread at a time."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size_bytes)


def write_at(descriptor: int, data: Buffer, offset: int) -> None:
    """Writes every byte from `offset` on; moves the position, so one thread at a time."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    write_all(descriptor, data)


def try_lock(descriptor: int) -> bool:
    """Locks a file until it is closed or the process ends, however that ends; False if another holds it.

    The holder may write to the file, and others may read what is written in its first GiB.

    Raises:
        OSError: files cannot be locked there.
    """
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            return False
        raise
    return True


def is_ours(path: Path) -> bool:
    """Whether a file or folder is this user's and no link; Windows keeps others out of the user's folders."""
    if path.is_symlink():
        return False
    return sys.platform == "win32" or path.stat().st_uid == os.getuid()


def sync_file(descriptor: int) -> None:
    """Returns once the file's bytes and size are on the disk."""
    if sys.platform != "win32" and _FULL_SYNC is not None:
        fcntl.fcntl(descriptor, _FULL_SYNC)
    else:
        os.fsync(descriptor)


def sync_directory(directory: Path) -> None:
    """Returns once the names in `directory` are on the disk; Windows knows no such call."""
    if sys.platform != "win32":
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Renames a file or folder; a file of the new name is replaced, a folder of that name is not.

    Windows refuses while anybody has either open, a virus scanner or `runnel status`, which takes a
    moment: it is tried again for two seconds.
    """
    _patiently(lambda: source.replace(target))


def remove(path: Path) -> None:
    """Deletes a file; none is no error. See `replace` for those that others have open."""
    _patiently(lambda: path.unlink(missing_ok=True))


def _patiently(change: Callable[[], object]) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            change()
        except PermissionError:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_PAUSE_S)
        else:
            return


def make_folder(directory: Path, *, mode: int = 0o777) -> None:
    """Makes a folder and those above it where they are missing; returns once its name is on the disk.

    `mode` is the folder's own; those above it have the usual rights.
    """
    missing = [directory]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        folder.mkdir(mode=mode if folder == directory else 0o777, exist_ok=True)
        with suppress(PermissionError):  # what we may write to we may not be able to open
            sync_directory(folder.parent)


def write_all(descriptor: int, data: Buffer) -> None:
    """Writes every byte: one `os.write` may take fewer, and never more than 2 GiB."""
    view = memoryview(data).cast("B")
    while view:
        written = os.write(descriptor, view)
        if written == 0:
            raise OSError(errno.ENOSPC, "nothing more could be written")
        view = view[written:]


def part_beside(path: Path) -> Path:
    """A name in the same folder that nobody uses, for a file that is to be `path` when it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(_PART_BYTES)}")


def remove_parts(folder: Path) -> None:
    """Deletes what writers left that were killed; only for who alone writes there, and before writing."""
    for path in folder.iterdir():
        if _PART.fullmatch(path.name) and not path.is_dir():
            remove(path)


def write_new(path: Path, content: Buffer, *, mode: int = 0o644) -> None:
    """Makes a file, which must not be there yet, and returns once `content` is on the disk.

    Its name is not yet: it is to be renamed, or its folder synced.
    """
    descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        write_all(descriptor, content)
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def name_new(part: Path, path: Path) -> None:
    """Gives the file at `part` the name `path`, whole or not at all; `part` may be left as well.

    Raises:
        FileExistsError: there is one, and it stays.
    """
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        replace(part, path)
