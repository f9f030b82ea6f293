"""Old records of the path followed: their names in memory, they themselves in blocks on the disk.

A run of any length must fit into memory, so records that hardly anybody asks for any more leave it: a
block is a blob of so many records with their certificates, and a key of the log names those in it. The
blob is durable before the key is written, in one write with the deletion of the records' own keys: a
crash leaves either them or the block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runnel.dht.wire import pack, unpack
from runnel.errors import InputFileError, PeerError
from runnel.node.certificates import Certificate
from runnel.node.fields import items, row
from runnel.node.messages import certificate_from_wire, certificate_to_wire
from runnel.node.path import NAME_BYTES, Names
from runnel.node.records import Record

BLOCK_RECORDS = 256
"""Few enough to be read for one of them, enough for few files."""

_MAX_RECORD_BYTES = 1 << 20
_MAX_BLOCK_BYTES = 1 << 28

Pair = tuple[Record, Certificate | None]
ReadBlob = Callable[[str], bytes]
"""Gives the content of a blob; InputFileError or StorageError if it cannot be had."""


@dataclass(frozen=True, slots=True)
class Block:
    """Records that follow each other: which of the archive's blocks, their names, themselves."""

    number: int
    names: bytes
    pairs: tuple[Pair, ...]

    @property
    def key(self) -> str:
        """The log's key, whose value are the names."""
        return block_key(self.number)

    @property
    def blob(self) -> str:
        """The blob's name."""
        return block_blob(self.number, self.names)

    def content(self) -> bytes:
        """What the blob holds; takes some ten milliseconds."""
        return pack([record_value(record, certificate) for record, certificate in self.pairs])


def block_key(number: int) -> str:
    """The log's key of a block."""
    return f"archive/{number}"


def block_blob(number: int, names: bytes) -> str:
    """The blob of a block; another path's block of the same number has another name."""
    return f"archive-{number}-{names[-NAME_BYTES:][:8].hex()}"


def record_value(record: Record, certificate: Certificate | None) -> bytes:
    """A record and why it holds, as the disk has them."""
    return pack([record.to_wire(), certificate_to_wire(certificate)])


def read_record(value: bytes) -> Pair:
    """A record and why it holds; PeerError for anything malformed."""
    record, certificate = row(unpack(value, max_bytes=_MAX_RECORD_BYTES), 2)
    return Record.from_wire(record), certificate_from_wire(certificate)


def nothing(name: str) -> bytes:
    """A `ReadBlob` where there are none."""
    raise InputFileError(f"there is no {name}: nothing was archived here")


class Archive:
    """The oldest records of the path followed, genesis first, in whole blocks.

    It changes on one thread; any may read. What it takes in stays in memory until it is `written`.

    Attributes:
        names: of all of them.
    """

    def __init__(
        self,
        read: ReadBlob = nothing,
        rows: Sequence[bytes] = (),
        *,
        block: int = BLOCK_RECORDS,
    ) -> None:
        """`rows` are the names in each block, which has `block` records where there is none yet.

        Raises:
            ValueError: blocks of different sizes.
        """
        size = len(rows[0]) // NAME_BYTES if rows else block
        if any(len(names) != size * NAME_BYTES for names in rows) or size < 1:
            raise ValueError("blocks of an archive that differ in size")
        self.names = Names(size, rows)
        self._read = read
        self._fresh: dict[str, Block] = {}
        self._opened: tuple[str, list[bytes]] = ("", [])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def block(self) -> int:
        """Records in a block."""
        return self.names.row

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self.names.rows)

    def append(self, pairs: Sequence[Pair]) -> Block:
        """Takes in the next records, a block of them; what is to be written."""
        names = b"".join(record.hash for record, _ in pairs)
        block = Block(self.blocks, names, tuple(pairs))
        self._fresh[block.blob] = block
        self.names.rows.append(names)
        return block

    def written(self, block: Block) -> None:
        """Lets go of a block's memory: the disk has it."""
        self._fresh.pop(block.blob, None)

    def cut(self, blocks: int) -> None:
        """Forgets all but the first `blocks`: the path is to part from what it was in the next one."""
        self.names = Names(self.block, self.names.rows[:blocks])

    def read(self, index: int) -> Pair:
        """The record at a place of the path, and why it holds.

        Raises:
            InputFileError: the disk does not have it any more, or not as it was.
            StorageError: the disk refused to read.
        """
        number, place = divmod(index, self.block)
        name = block_blob(number, self.names.rows[number])
        fresh = self._fresh.get(name)
        if fresh is not None:
            return fresh.pairs[place]
        try:
            return read_record(self._values(name)[place])
        except (PeerError, IndexError) as error:
            raise InputFileError(
                f"the blob {name} is no block of records ({error}): restore the folder from a backup,"
                " or move it away and join again"
            ) from error

    def _values(self, name: str) -> list[bytes]:
        """The block looked at last is kept: whoever asks for a record goes on to its neighbours."""
        opened, values = self._opened
        if opened != name:
            values = items(unpack(self._read(name), max_bytes=_MAX_BLOCK_BYTES), self.block)
            self._opened = name, values
        return values
