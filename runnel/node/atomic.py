"""Files that are there complete or not at all: written beside, synced, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from runnel.errors import ConfigError, StorageError
from runnel.node.disk import sync_directory, sync_file

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK})
"""What file systems without hard links say."""


def write_atomically(
    path: Path, content: bytes, *, overwrite: bool = True, mode: int = 0o644
) -> None:
    """Puts `content` at `path`; on any failure what was there before is there still, nothing else.

    Args:
        path: its folder is made if there is none.
        content: the whole file.
        overwrite: False refuses to replace a file, also one that appears meanwhile.
        mode: rights of the file.

    Raises:
        ConfigError: the file exists and is not to be replaced, or `path` names no file.
        StorageError: the folder or the disk refused.
    """
    if not path.name:  # what is left of an empty text is the folder itself
        raise ConfigError(
            f"'{path}' is a folder, expected the path of a file to write: name one, ./my-file for"
            " example"
        )
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(part, content, mode)
        if overwrite:
            part.replace(path)
        else:
            _link_new(part, path)
        sync_directory(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({(error.strerror or str(error)).lower()}), expected a"
            " folder with free space where you may write: choose another one"
        ) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _link_new(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except OSError as error:
        if not path.exists() and error.errno in _NO_LINKS:
            part.replace(path)
        elif path.exists():
            raise ConfigError(
                f"{path} exists, expected no such file: choose another name or remove it first"
            ) from None
        else:
            raise


def _write_new(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        sync_file(file.fileno())
