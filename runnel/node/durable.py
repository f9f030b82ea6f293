"""What must be on disk before it is sent: a write-ahead log of small values, and large blobs beside it.

One folder belongs to one process. ``NAME.log`` files hold records of updates, ``NAME.state`` files
a whole state (one record); NAME is a generation that grows with each compaction. The records' format
is in `node/log_records.py`.

Everything here blocks on the disk: call it from the disk thread of `node/runtime.py`.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, NoReturn

import msgpack

from runnel.errors import BugError, InputFileError, StorageError
from runnel.files import make_folder, open_file, remove, sync_directory, sync_file, write_all
from runnel.node.blobs import BlobFolder
from runnel.node.disk import DirectoryLock, replace_file, storage_error
from runnel.node.log_records import damaged, decode_records, encode_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from typing_extensions import Buffer

log = logging.getLogger(__name__)

_SNAPSHOT_ATTEMPTS = 16


class DurableLog:
    """A small map from names to bytes whose every write is atomic and survives a crash.

    Safe to call from several threads; writes happen one after the other.

    Args:
        directory: made if missing; locked until `close`.
        compact_bytes: when the log is longer than this and than twice the state, the state is
            written out and the log starts anew.

    Raises:
        ConfigError: another process uses the folder.
        InputFileError: the files are damaged; nothing was changed.
        StorageError: the folder cannot be made, read or written.
    """

    def __init__(self, directory: Path, *, compact_bytes: int = 1 << 20) -> None:
        self._directory = directory
        self._compact_bytes = compact_bytes
        self._mutex = threading.Lock()
        self._failure: str | None = None
        self._descriptor: int | None = None
        try:
            make_folder(directory)
        except OSError as error:
            raise storage_error("make the folder", directory, error) from error
        self._lock = DirectoryLock(directory)
        try:
            self._blobs = BlobFolder(directory / "blobs")
            self._open()
        except OSError as error:
            self.close()
            raise storage_error("open", directory, error) from error
        except BaseException:
            self.close()
            raise

    def load(self) -> dict[str, bytes]:
        """The state: what all completed writes left, those of earlier processes included."""
        with self._mutex:
            return dict(self._state)

    def write(self, updates: Mapping[str, bytes | None]) -> None:
        """Sets values (None deletes one), all or none; returns once that is on the disk.

        Raises:
            StorageError: the disk refused. The state is as before, also after a crash, unless the
                message says that the folder must be opened anew.
        """
        with self._mutex:
            descriptor = self._require_usable()
            payload = msgpack.packb(dict(updates))
            record = encode_record(self._generation, self._sequence, payload)
            try:
                write_all(descriptor, record)
            except OSError as error:
                self._roll_back(descriptor, error)
            try:
                sync_file(descriptor)
            except OSError as error:  # after a failed sync nobody knows what the disk holds
                self._fail(error)
            self._sequence += 1
            self._size += len(record)
            _apply(self._state, updates)
            if self._size > self._compact_at:
                self._compact()

    def write_blob(self, name: str, parts: Iterable[Buffer], *, large: bool = False) -> None:
        """Stores the concatenation of `parts` under `name`, replacing what was there; durable on return.

        A `large` one bypasses the system's cache: for what is read after a restart, if ever.

        Raises:
            StorageError: the disk refused; an older blob of this name is as it was.
        """
        self._blobs.write(name, parts, large=large)

    def read_blob(self, name: str) -> bytes:
        """The bytes stored under `name`, their checksum tested.

        Raises:
            InputFileError: there is no such blob, or it is damaged.
        """
        return self._blobs.read(name)

    def has_blob(self, name: str) -> bool:
        """Whether there is a blob `name`."""
        return self._blobs.holds(name)

    def blob_path(self, name: str) -> Path:
        """Where the blob `name` lies: its content starts at byte 0; its checksum follows it."""
        return self._blobs.path(name)

    def blob_names(self) -> set[str]:
        """The names of all blobs."""
        return self._blobs.names()

    def delete_blobs(self, names: Iterable[str]) -> None:
        """Deletes these blobs; those that are not there are no error.

        Raises:
            StorageError: the disk refused; some may be left.
        """
        self._blobs.delete(names)

    def close(self) -> None:
        """Lets the folder go. Idempotent; everything written is on disk already."""
        with self._mutex:
            self._failure = self._failure or f"{self._directory} is closed"
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            self._lock.close()

    def _open(self) -> None:
        self._generation = _clean_up(self._directory)
        self._state = _written_state(self._directory, self._generation)
        path = self._path("log")
        # it is made before all that is written beside it: what it held could have been sent
        if not path.exists() and (self._generation or self._blobs.names()):
            raise InputFileError(
                f"{path} is missing and what it held may have been promised to others: restore the"
                f" folder {self._directory} from a backup, or move it away and join again with a new"
                " identity"
            )
        data = path.read_bytes() if path.exists() else b""
        records, good = decode_records(self._generation, data, path)
        for updates in records:
            _apply(self._state, updates)
        self._sequence = len(records)
        self._size = good
        self._compact_at = max(self._compact_bytes, 2 * _state_bytes(self._state))
        self._descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if good < len(data):
            lost = len(data) - good
            log.warning("%s ends in %d bytes of an unfinished write: dropped", path, lost)
            os.ftruncate(self._descriptor, good)
        sync_file(self._descriptor)
        sync_directory(self._directory)

    def _compact(self) -> None:
        """Writes the state as generation + 1. Until its file has its name, the old generation counts."""
        self._compact_at = max(self._compact_bytes, 2 * _state_bytes(self._state), 2 * self._size)
        following = self._generation + 1
        log_path = self._path("log", following)
        record = encode_record(following, 0, msgpack.packb(self._state))
        try:
            descriptor = open_file(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            log.warning("%s; it will be tried again", storage_error("compact", log_path, error))
            return
        try:
            sync_file(descriptor)
            replace_file(self._path("state", following), [record])
        except OSError as error:
            os.close(descriptor)
            if self._path("state", following).exists():  # named, but is the name on disk?
                self._fail(error)
            log.warning("%s; it will be tried again", storage_error("compact", log_path, error))
            return
        previous, self._descriptor = self._descriptor, descriptor
        if previous is not None:
            os.close(previous)
        self._generation, self._sequence, self._size = following, 0, 0
        self._compact_at = max(self._compact_bytes, 2 * len(record))
        try:
            _clean_up(self._directory)
        except OSError as error:
            log.warning("%s", storage_error("delete old files of", self._directory, error))

    def _roll_back(self, descriptor: int, error: OSError) -> NoReturn:
        try:
            os.ftruncate(descriptor, self._size)
            sync_file(descriptor)
        except OSError:
            self._fail(error)
        raise storage_error("write", self._path("log"), error) from error

    def _fail(self, error: OSError) -> NoReturn:
        failure = storage_error("write", self._path("log"), error)
        self._failure = f"{failure}, then start this peer again: what the disk holds is unknown"
        raise StorageError(self._failure) from error

    def _require_usable(self) -> int:
        if self._failure is not None:
            raise StorageError(self._failure)
        if self._descriptor is None:
            raise BugError(f"{self._directory} is not open")
        return self._descriptor

    def _path(self, kind: str, generation: int | None = None) -> Path:
        number = self._generation if generation is None else generation
        return _path(self._directory, kind, number)


def read_snapshot(directory: Path) -> dict[str, bytes]:
    """What a `DurableLog` held a moment ago; takes no lock and changes nothing.

    Its owner may be writing meanwhile: a record that is not complete yet is left out, and files
    that a compaction took away are looked for under their new generation.

    Raises:
        InputFileError: there is no log, or its files are damaged.
        StorageError: the disk refused to read.
    """
    problem = InputFileError(
        f"{directory} holds no saved state, expected what launch or join leave there: start the"
        " peer once"
    )
    generation = -1
    for _ in range(_SNAPSHOT_ATTEMPTS):
        before, generation = generation, _newest_generation(directory)
        try:
            state = _written_state(directory, generation)
            path = _path(directory, "log", generation)
            for updates in decode_records(generation, path.read_bytes(), path)[0]:
                _apply(state, updates)
        except FileNotFoundError:
            if before == generation:  # nothing took it away between two looks: it is not there
                break
        except InputFileError as error:  # a write may be rolled back while it is read
            problem = error
        except OSError as error:
            raise storage_error("read", directory, error) from error
        else:
            return state
    raise problem


def _path(directory: Path, kind: str, generation: int) -> Path:
    return directory / f"{generation:08d}.{kind}"


def _newest_generation(directory: Path) -> int:
    states = [int(path.stem) for path in directory.glob("*.state") if path.stem.isdecimal()]
    return max(states, default=0)


def _written_state(directory: Path, generation: int) -> dict[str, bytes]:
    """The state that a generation begins with; FileNotFoundError if its file is gone."""
    if generation == 0:
        return {}
    path = _path(directory, "state", generation)
    data = path.read_bytes()
    records, good = decode_records(generation, data, path)
    if len(records) != 1 or good != len(data):
        raise damaged(path, good)
    return {name: value for name, value in records[0].items() if value is not None}


def _apply(state: dict[str, bytes], updates: Mapping[str, bytes | None]) -> None:
    for name, value in updates.items():
        if value is None:
            state.pop(name, None)
        else:
            state[name] = bytes(value)


def _state_bytes(state: Mapping[str, bytes]) -> int:
    return sum(len(name) + len(value) + 8 for name, value in state.items())


def _clean_up(directory: Path) -> int:
    """Deletes what an interrupted or finished compaction left; returns the generation that counts."""
    current = _newest_generation(directory)
    logs = [path for path in directory.glob("*.log") if path.stem.isdecimal()]
    for path in logs:
        if int(path.stem) > current and path.stat().st_size > 0:
            state = path.with_suffix(".state")
            raise InputFileError(f"{path} has records, but {state} is missing: restore it")
    for path in [*logs, *directory.glob("*.state"), *directory.glob("*.tmp")]:
        if path.suffix == ".tmp" or (path.stem.isdecimal() and int(path.stem) != current):
            remove(path)
    return current
