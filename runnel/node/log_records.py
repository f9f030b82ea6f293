"""Records of the write-ahead log: what a crash can do to them is told apart from damage.

A record is, big-endian::

    magic 4 | sequence 8 | payload length 4 | payload hash 16 | header hash 8 | payload (msgpack)

Hashes are the first bytes of blake3, over the generation and sequence with the payload or with the
header's fields: a record out of place is damage too. A crash can only leave the last record
unfinished, because each one is synced before the next begins: such a tail was never acknowledged,
and is dropped. Any other damage could hide a vote that was sent, and is refused.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgpack

from runnel.errors import InputFileError
from runnel.hashing import digest

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = b"RNL1"
_FIELDS = struct.Struct(">4sQI16s")
_HEADER_BYTES = _FIELDS.size + 8
_SECTOR_BYTES = 512


def encode_record(generation: int, sequence: int, payload: bytes) -> bytes:
    """One record, ready to append."""
    position = struct.pack(">QQ", generation, sequence)
    fields = _FIELDS.pack(_MAGIC, sequence, len(payload), digest(position, payload)[:16])
    return fields + digest(position, fields)[:8] + payload


def decode_records(
    generation: int, data: bytes, path: Path
) -> tuple[list[dict[str, bytes | None]], int]:
    """The updates of all whole records, and the number of bytes they fill; the rest is an unfinished write.

    Raises:
        InputFileError: damage that no crash during an append explains.
    """
    records: list[dict[str, bytes | None]] = []
    start = 0
    while start < len(data):
        payload = _payload_at(generation, len(records), data, start, path)
        if payload is None:
            break
        records.append(_updates(payload, path, start))
        start += _HEADER_BYTES + len(payload)
    return records, start


def _payload_at(
    generation: int, sequence: int, data: bytes, start: int, path: Path
) -> bytes | None:
    """The checked payload of the record at `start`, or None if the record is unfinished."""
    rest = len(data) - start
    if rest < _HEADER_BYTES:
        first = struct.pack(">4sQ", _MAGIC, sequence)
        if data[start : start + len(first)] != first[:rest]:
            _check_unfinished(data, start, path)
        return None
    position = struct.pack(">QQ", generation, sequence)
    fields = data[start : start + _FIELDS.size]
    header_hash = data[start + _FIELDS.size : start + _HEADER_BYTES]
    if digest(position, fields)[:8] != header_hash:
        _check_unfinished(data, start, path)
        return None
    _, _, length, payload_hash = _FIELDS.unpack(fields)
    if rest < _HEADER_BYTES + length:
        return None
    payload = data[start + _HEADER_BYTES : start + _HEADER_BYTES + length]
    if digest(position, payload)[:16] != payload_hash:
        _check_unfinished(data, start, path)
        return None
    return payload


def _check_unfinished(data: bytes, start: int, path: Path) -> None:
    """Raises unless the file's last sector is zeros: some file systems lengthen a file before its bytes arrive."""
    sector = (len(data) - 1) // _SECTOR_BYTES * _SECTOR_BYTES
    if any(data[max(start, sector) :]):
        raise damaged(path, start)


def damaged(path: Path, offset: int) -> InputFileError:
    """The error for a file that lost or changed bytes it once held."""
    return InputFileError(
        f"{path} is damaged at byte {offset} and cannot be trusted: check the disk, restore the "
        f"folder {path.parent} from a backup, or move it away and join again with a new identity"
    )


def _updates(payload: bytes, path: Path, offset: int) -> dict[str, bytes | None]:
    try:
        updates: Any = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        raise damaged(path, offset) from error
    if not isinstance(updates, dict):
        raise damaged(path, offset)
    return updates
