"""Large byte strings by name, one file each, replaced as a whole and checked when read."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from runnel.errors import BugError, InputFileError
from runnel.files import make_folder, remove
from runnel.hashing import CHECKSUM_BYTES, checksum
from runnel.node.disk import Stage, replace_file, storage_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from typing_extensions import Buffer

_ADVICE = "restore it from a backup, or move this peer's folder away and join again"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class BlobFolder:
    """A folder of blobs. A file is the content and the checksum of its name and content.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stage = Stage()
        make_folder(directory)
        for leftover in directory.glob("*.tmp"):
            remove(leftover)

    def write(self, name: str, parts: Iterable[Buffer], *, large: bool = False) -> None:
        """Stores the concatenation of `parts`; durable on return. A `large` one bypasses the system's cache.

        Raises:
            StorageError: the disk refused; an older blob of this name is as it was.
        """
        path = self.path(name)
        try:
            replace_file(path, _with_checksum(name, parts), stage=self._stage if large else None)
        except OSError as error:
            raise storage_error("write", path, error) from error

    def read(self, name: str) -> bytes:
        """The content under `name`.

        Raises:
            InputFileError: there is none, or its checksum is wrong.
            StorageError: the disk refused to read.
        """
        return _read(self.path(name), name)

    def holds(self, name: str) -> bool:
        """Whether there is a blob `name`."""
        return self.path(name).exists()

    def names(self) -> set[str]:
        """The names of all blobs; other files are not ours.

        Raises:
            StorageError: the disk refused to read.
        """
        try:
            return {path.name for path in self._directory.iterdir() if _is_name(path.name)}
        except OSError as error:
            raise storage_error("list", self._directory, error) from error

    def delete(self, names: Iterable[str]) -> None:
        """Deletes these blobs; those that are not there are no error.

        What is to go is named, not what stays: meanwhile another thread may write a new one.

        Raises:
            StorageError: the disk refused; some may be left.
        """
        for name in names:
            path = self.path(name)
            try:
                remove(path)
            except OSError as error:
                raise storage_error("delete", path, error) from error

    def path(self, name: str) -> Path:
        """The file of the blob `name`; BugError for anything that is no name."""
        if not _is_name(name):
            raise BugError(
                f"{name!r} is no name for a blob: letters, digits, '_', '-' and '.' only"
            )
        return self._directory / name


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and not name.endswith(".tmp")


def read_blob(directory: Path, name: str) -> bytes:
    """The content under `name` in a folder of blobs that another process may be writing to.

    Raises:
        InputFileError: there is none, or its checksum is wrong.
        StorageError: the disk refused to read.
    """
    return _read(directory / name, name)


def _read(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size - CHECKSUM_BYTES
            content = file.read(max(size, 0))
            suffix = file.read()
    except FileNotFoundError as error:
        raise InputFileError(f"{path} is missing: {_ADVICE}") from error
    except OSError as error:
        raise storage_error("read", path, error) from error
    if size < 0 or _checksum(name, content) != suffix:
        raise InputFileError(
            f"{path} is damaged (its checksum is wrong): check the disk; {_ADVICE}"
        )
    return content


def _checksum(name: str, content: Buffer) -> bytes:
    return checksum(name.encode(), b"\0", content).digest()


def _with_checksum(name: str, parts: Iterable[Buffer]) -> Iterator[Buffer]:
    running = checksum(name.encode(), b"\0")
    for part in parts:
        running.update(part)
        yield part
    yield running.digest()
