"""What every writer of files needs: all the bytes, on the disk, under a name that is there as well.

All of it blocks and raises plain OSError: who knows what a file is for says what to do about it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer

_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone leaves data in the drive
_PART_BYTES = 6
_PART = re.compile(r"\..+\.[0-9a-f]{12}")
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK})
"""What file systems without hard links say."""


def sync_file(descriptor: int) -> None:
    """Returns once the file's bytes and size are on the disk."""
    if _FULL_SYNC is not None:
        fcntl.fcntl(descriptor, _FULL_SYNC)
    else:
        os.fsync(descriptor)


def sync_directory(directory: Path) -> None:
    """Returns once the names in `directory` are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
            path.unlink()


def write_new(path: Path, content: Buffer, *, mode: int = 0o644) -> None:
    """Makes a file, which must not be there yet, and returns once `content` is on the disk.

    Its name is not yet: it is to be renamed, or its folder synced.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
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
        part.replace(path)
