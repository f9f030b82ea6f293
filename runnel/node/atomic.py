"""Files that are there complete or not at all: written beside, synced, then renamed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from runnel.errors import ConfigError, StorageError
from runnel.files import (
    make_folder,
    name_new,
    part_beside,
    remove,
    replace,
    sync_directory,
    write_new,
)


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
    part = part_beside(path)
    try:
        make_folder(path.parent)
        write_new(part, content, mode=mode)
        if overwrite:
            replace(part, path)
        else:
            _name_new(part, path)
        sync_directory(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({(error.strerror or str(error)).lower()}), expected a"
            " folder with free space where you may write: choose another one"
        ) from None
    finally:
        with suppress(OSError):
            remove(part)


def _name_new(part: Path, path: Path) -> None:
    try:
        name_new(part, path)
    except FileExistsError:
        raise ConfigError(
            f"{path} exists, expected no such file: choose another name or remove it first"
        ) from None
