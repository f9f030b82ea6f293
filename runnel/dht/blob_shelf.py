"""What this peer serves: named trees and blobs, in memory or as ranges of files."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.dht.blobs import CHUNK_BYTES, MAX_BLOB_BYTES, Tree, split
from runnel.errors import InputFileError, StorageError
from runnel.hashing import digest
from runnel.types import Digest, short

if TYPE_CHECKING:
    from typing_extensions import Buffer

_log = logging.getLogger(__name__)

MAX_ENTRIES = 1_000_000
"""Blobs on one shelf, whatever their size: about 300 MB of bookkeeping."""


@dataclass(frozen=True, slots=True)
class _Range:
    path: Path
    start: int
    size_bytes: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size_bytes)


_Places = dict[Digest, bytes | memoryview | _Range]
"""Where blobs are."""


class BlobShelf:
    """Trees and blobs by name; implements `runnel.protocols.BlobSource`. Safe to use from any thread.

    Whatever is added several times is held until it is dropped as often. Ranges of files are
    checked whenever they are read: a file that was changed or lost makes its chunks missing, never
    wrong.

    Args:
        max_memory_bytes: of what is held in memory, root blobs included; adding more is refused.
    """

    def __init__(self, *, max_memory_bytes: int = 1 << 32) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._lock = threading.Lock()
        # one entry for each time that it was added: equal content may lie in several files
        self._added: dict[Digest, list[_Places]] = {}
        # blob -> what it was added with -> where it is; equal chunks of several trees meet here
        self._places: dict[Digest, dict[Digest, bytes | memoryview | _Range]] = {}
        self._memory_by_name: dict[Digest, int] = {}
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes held in memory."""
        return self._held_bytes

    @property
    def num_held(self) -> int:
        """Trees and single blobs, each once."""
        with self._lock:
            return len(self._added)

    def add_bytes(self, *parts: Buffer, chunk_bytes: int = CHUNK_BYTES) -> Digest:
        """Holds the concatenation of `parts` as a tree in memory; its root.

        A single ``bytes`` object is kept by reference, anything else is copied. Costs one pass of
        hashing: give large content to a thread.

        Raises:
            StorageError: the shelf is full.
            ValueError: see `runnel.dht.blobs.split`.
        """
        content = parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else _join(parts)
        root, root_blob, chunks = split((content,), chunk_bytes=chunk_bytes)
        places: _Places = {root: root_blob}
        tree = Tree.decode(root_blob, max_total_bytes=len(content))
        places.update(zip(tree.digests, chunks, strict=True))
        self._add(root, places, len(root_blob) + len(content))
        return root

    def add_file(
        self,
        path: str | os.PathLike[str],
        offset: int = 0,
        size_bytes: int | None = None,
        *,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> Digest:
        """Holds a range of a file as a tree; its root. Only the root blob stays in memory.

        Reads and hashes the range: give it to a thread. The file must stay as it is while held.

        Args:
            path: of the file.
            offset: where the content starts, bytes.
            size_bytes: of the content; None for all up to the end.
            chunk_bytes: see `runnel.dht.blobs`.

        Raises:
            InputFileError: no such file, or it ends before the range does.
            StorageError: the shelf is full.
            ValueError: see `runnel.dht.blobs.split`.
        """
        path = Path(path).absolute()
        try:
            ranges = _ranges(path, offset, size_bytes, chunk_bytes)
            digests = tuple(digest(_read_whole(part)) for part in ranges)
        except OSError as error:
            raise InputFileError(
                f"{path} cannot be served ({(error.strerror or str(error)).lower()}), expected a"
                " readable file: check the path"
            ) from None
        total = sum(part.size_bytes for part in ranges)
        root_blob = Tree(total, chunk_bytes, digests).encode()
        root = digest(root_blob)
        places: _Places = {root: root_blob}
        places.update(zip(digests, ranges, strict=True))
        self._add(root, places, len(root_blob))
        return root

    def add_blob(self, content: bytes, *, name: Digest | None = None) -> Digest:
        """Holds one blob in memory, by reference; its name.

        Args:
            content: at most `MAX_BLOB_BYTES`.
            name: instead of the digest, for content that its readers check in another way, such as
                a list of leaves under its Merkle root.

        Raises:
            StorageError: the shelf is full.
            ValueError: too long.
        """
        if len(content) > MAX_BLOB_BYTES:
            raise ValueError(f"a blob of {len(content)} bytes, at most {MAX_BLOB_BYTES}")
        name = digest(content) if name is None else name
        self._add(name, {name: content}, len(content))
        return name

    def drop(self, name: Digest, path: str | os.PathLike[str] | None = None) -> bool:
        """Undoes one `add` of the tree or blob `name`, that of file `path` if there is one; false if it is not held."""
        file = Path(path).absolute() if path is not None else None
        with self._lock:
            if name not in self._added:
                return False
            added = self._added[name]
            gone = added.pop(
                next((i for i, places in enumerate(added) if _lie_in(places, file)), 0)
            )
            if added:
                for blob, place in added[-1].items():
                    self._places[blob][name] = place
                return True
            del self._added[name]
            self._held_bytes -= self._memory_by_name.pop(name)
            for blob in gone:
                del self._places[blob][name]
                if not self._places[blob]:
                    del self._places[blob]
            return True

    def read(self, name: Digest) -> bytes | None:
        """The bytes named `name`, or None. May read a file: not for the loop's thread."""
        with self._lock:
            places = tuple(self._places.get(name, {}).values())
        for place in places:
            if not isinstance(place, _Range):
                return bytes(place)
            content = _checked(place, name)
            if content is not None:
                return content
        return None

    def _add(
        self,
        name: Digest,
        places: _Places,
        memory_bytes: int,
    ) -> None:
        with self._lock:
            if name in self._added:
                added = self._added[name]
                both_in_memory = not (_lie_in_files(places) or _lie_in_files(added[-1]))
                added.append(added[-1] if both_in_memory else places)
                for blob, place in added[-1].items():
                    self._places[blob][name] = place
                return
            held = self._held_bytes
            if held + memory_bytes > self._max_memory_bytes:
                raise StorageError(
                    f"the shelf holds {held} bytes and {memory_bytes} more exceed its"
                    f" {self._max_memory_bytes}: drop what is no longer served"
                )
            if len(self._places) + len(places) > MAX_ENTRIES:
                raise StorageError(
                    f"the shelf holds {len(self._places)} blobs and {len(places)} more exceed its"
                    f" {MAX_ENTRIES}: drop what is no longer served, or use longer chunks"
                )
            self._added[name] = [places]
            self._memory_by_name[name] = memory_bytes
            self._held_bytes += memory_bytes
            for blob, place in places.items():
                self._places.setdefault(blob, {})[name] = place


def _lie_in(places: _Places, file: Path | None) -> bool:
    return any(isinstance(place, _Range) and place.path == file for place in places.values())


def _lie_in_files(places: _Places) -> bool:
    return any(isinstance(place, _Range) for place in places.values())


def _join(parts: tuple[Buffer, ...]) -> bytes:
    return b"".join(memoryview(part).cast("B") for part in parts if memoryview(part).nbytes)


def _ranges(path: Path, offset: int, size_bytes: int | None, chunk_bytes: int) -> list[_Range]:
    available = path.stat().st_size - offset
    size_bytes = available if size_bytes is None else size_bytes
    if offset < 0 or size_bytes < 0 or size_bytes > available:
        raise InputFileError(
            f"{path} has {available + offset} bytes, expected {size_bytes} from byte {offset} on:"
            " correct the range"
        )
    split((), chunk_bytes=chunk_bytes)  # the same check of the same number
    stops = range(0, size_bytes, chunk_bytes)
    return [_Range(path, offset + start, min(chunk_bytes, size_bytes - start)) for start in stops]


def _read_whole(part: _Range) -> bytes:
    content = part.read()
    if len(content) != part.size_bytes:
        raise InputFileError(f"{part.path} became shorter while it was read: try again")
    return content


def _checked(part: _Range, name: Digest) -> bytes | None:
    try:
        content = part.read()
    except OSError as error:
        _log.warning("blob %s cannot be served: %s", short(name), error)
        return None
    if digest(content) != name:
        _log.warning("blob %s cannot be served: %s has changed", short(name), part.path)
        return None
    return content
