"""Tensors in safetensors files: written in one pass with their hash, checked before they are read.

The layout is that of safetensors (8 bytes of header length, a JSON header, the values), written here
so that equal tensors make equal bytes under every version of the library, and without a copy of all
values in memory. Reading goes through the library.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

from runnel.errors import InputFileError
from runnel.files import open_file, sync_file, write_all
from runnel.types import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from runnel.protocols import Float32

_PIECE_BYTES = 4 * 1024 * 1024
_ALIGNMENT = 8
_RESERVED = "__metadata__"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a manifest says of a file: its size and blake3-256."""

    size_bytes: int
    digest: Digest


def write_tensors(path: Path, tensors: Mapping[str, Float32]) -> FileEntry:
    """Writes float32 tensors of any shape to a new file, sorted by name, and syncs it.

    Raises:
        ValueError: another dtype, or a name that safetensors cannot hold.
        OSError: the disk refused.
    """
    descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    hasher, size_bytes = blake3(), 0
    try:
        for piece in _pieces(tensors):
            hasher.update(piece)
            write_all(descriptor, piece)
            size_bytes += len(piece)
        sync_file(descriptor)
    finally:
        os.close(descriptor)
    return FileEntry(size_bytes, Digest(hasher.digest()))


def read_tensors(path: Path, entry: FileEntry) -> dict[str, Float32]:
    """The tensors of a file, once its size and hash are those of `entry`; nothing else is looked at.

    Raises:
        InputFileError: the file is missing, no plain file, of another size or hash, no safetensors
            file, or holds something other than float32.
    """
    from safetensors import SafetensorError, safe_open

    _check_file(path, entry)
    tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                dtype = file.get_slice(name).get_dtype()
                if dtype != "F32":
                    raise InputFileError(
                        f"{path}: tensor {name!r} is {dtype}, expected F32: this is no checkpoint"
                        " of runnel"
                    )
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise InputFileError(
            f"{path} is no safetensors file ({error}): this is no checkpoint of runnel"
        ) from None
    return tensors


def _check_file(path: Path, entry: FileEntry) -> None:
    advice = "copy it again or use another checkpoint"
    if path.is_symlink() or not path.is_file():
        raise InputFileError(f"{path} is missing or no plain file: {advice}")
    try:
        size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes:
            raise InputFileError(
                f"{path} has {size_bytes} bytes, expected {entry.size_bytes}: {advice}"
            )
        hasher = blake3()
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                hasher.update(piece)
    except OSError as error:
        raise InputFileError(
            f"{path} cannot be read ({(error.strerror or str(error)).lower()}): {advice}"
        ) from None
    if hasher.digest() != entry.digest:
        raise InputFileError(
            f"{path} has hash {hasher.hexdigest()[:16]}, expected {entry.digest.hex()[:16]}: {advice}"
        )


def _pieces(tensors: Mapping[str, Float32]) -> Iterator[bytes | memoryview]:
    header, offset = {}, 0
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.dtype != np.float32:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}, expected float32")
        if name == _RESERVED:
            raise ValueError(f"a tensor cannot be called {name!r}: safetensors keeps that name")
        stop = offset + tensor.nbytes
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    yield struct.pack("<Q", len(encoded)) + encoded
    for name in header:
        flat = np.asarray(tensors[name], dtype="<f4", order="C").reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _PIECE_BYTES):
            yield flat[start : start + _PIECE_BYTES].data
