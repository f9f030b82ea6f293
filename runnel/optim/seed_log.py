r"""The history of a shared-seed run as bytes: a head that names its base, then chunks of updates.

::

    head    "runnel seeds 1\n" | size u32 | zlib of msgpack [base, first step, key0, key1, names] | xxh3-128
    chunk   size u32 | steps u32 | first step u32 | zlib of the columns | xxh3-128 of the last one and this
    end     as a chunk without columns: 0 | 0 | the step that would come next
    columns groups u32 | code bytes u8 | step, counter, unit, tensor, size: 5 x i64 per group, differences
            | slots: u32 per entry, differences | codes: i8, i16 or i32 per entry

Numbers are little-endian. Each chunk's checksum covers the one before it, so none can be missing or
swapped; steps follow each other without a gap, and one without an update is an empty group. What is
compressed may differ between machines, what comes out of it does not. A swarm's signatures are
elsewhere: a checksum finds accidents.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from runnel.errors import InputFileError, RunMismatchError
from runnel.hashing import CHECKSUM_BYTES, checksum
from runnel.optim.fixed_point import Key, MasterWeights
from runnel.optim.seed_updates import SeedUpdate
from runnel.types import DIGEST_BYTES, Digest, short

MAGIC = b"runnel seeds "
VERSION = 1
STEPS_PER_CHUNK = 1024
MAX_CHUNK_BYTES = 1 << 26

_U32 = 4
_COLUMNS = 5
_CHUNK_HEAD = 12
_HEAD_WORDS = 3
_WIDTHS = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class LogHead:
    """What a log is for.

    Attributes:
        base: `MasterWeights.digest` of the weights that it starts from.
        key: of the directions.
        tensors: names of the tensors that the run tunes, in the order of their ids; the base may
            hold more.
        first_step: the first step that is not in the base.
    """

    base: Digest
    key: Key
    tensors: tuple[str, ...] = ()
    first_step: int = 0

    @classmethod
    def of(cls, weights: MasterWeights) -> LogHead:
        """The head of a log that starts from these weights. Reads all of them."""
        return cls(weights.digest(), weights.key, tuple(weights.ids))


def encode_log(head: LogHead, updates: Iterable[SeedUpdate]) -> Iterator[bytes]:
    """The bytes of a whole log: head, a chunk per 1,024 steps, end.

    Args:
        head: what it is for.
        updates: by rising step from the head's first, none left out.

    Raises:
        ValueError: a step is missing, or comes too early.
    """
    encoded = encode_head(head)
    yield encoded
    last, expected = encoded[-CHECKSUM_BYTES:], head.first_step
    waiting: list[SeedUpdate] = []
    steps = 0
    for step, group in groupby(updates, key=lambda update: update.step):
        if step != expected:
            raise ValueError(f"step {step} after {expected - 1}: a log has every step once")
        expected += 1
        if steps == STEPS_PER_CHUNK:
            chunk = encode_chunk(waiting, last)
            yield chunk
            last, waiting, steps = chunk[-CHECKSUM_BYTES:], [], 0
        waiting += group
        steps += 1
    if waiting:
        chunk = encode_chunk(waiting, last)
        yield chunk
        last = chunk[-CHECKSUM_BYTES:]
    end = _chunk_head(0, 0, expected)
    yield end + checksum(last, end).digest()


def encode_head(head: LogHead) -> bytes:
    """The first bytes of a log."""
    body = zlib.compress(
        msgpack.packb([head.base, head.first_step, *head.key, list(head.tensors)]), 9
    )
    start = MAGIC + b"%d\n" % VERSION + len(body).to_bytes(_U32, "little") + body
    return start + checksum(start).digest()


def encode_chunk(updates: Sequence[SeedUpdate], last_checksum: bytes) -> bytes:
    """One chunk, of whole steps that follow each other.

    Args:
        updates: by rising step, at least one.
        last_checksum: the last 16 bytes of what comes before it in the log.

    Raises:
        ValueError: a step is missing, or comes too early.
    """
    steps = np.array([update.step for update in updates], np.int64)
    if not steps.size or ((np.diff(steps) != 0) & (np.diff(steps) != 1)).any():
        raise ValueError("the steps of a chunk must follow each other without a gap")
    rows = np.array([_row(update) for update in updates], np.int64)
    slots = np.concatenate([update.slots for update in updates])
    codes = np.concatenate([update.codes for update in updates])
    code = _narrowest(codes)
    columns = [
        len(updates).to_bytes(_U32, "little"),
        code.itemsize.to_bytes(1, "little"),
        np.diff(rows, axis=0, prepend=0).T.astype("<i8").tobytes(),
        np.diff(slots, prepend=np.uint32(0)).astype("<u4").tobytes(),
        codes.astype(code).tobytes(),
    ]
    plain = b"".join(columns)
    if len(plain) > MAX_CHUNK_BYTES:
        raise ValueError(f"a chunk of {len(plain)} bytes, at most {MAX_CHUNK_BYTES}: cut it")
    packed = zlib.compress(plain, 9)
    count = int(steps[-1] - steps[0]) + 1
    start = _chunk_head(len(packed), count, int(steps[0]))
    return start + packed + checksum(last_checksum, start, packed).digest()


def _chunk_head(size: int, steps: int, first: int) -> bytes:
    return b"".join(number.to_bytes(_U32, "little") for number in (size, steps, first))


def _row(update: SeedUpdate) -> tuple[int, ...]:
    return update.step, update.counter, update.unit, update.tensor, len(update)


def _narrowest(codes: npt.NDArray[np.int32]) -> np.dtype[Any]:
    largest = int(np.abs(codes.astype(np.int64)).max(initial=0))
    return np.dtype("<i1" if largest < 1 << 7 else "<i2" if largest < 1 << 15 else "<i4")


class LogReader:
    """Reads a log from memory; what is wrong with it is told in one line that says where.

    Args:
        data: the whole log.
        name: of the file, for messages.
    """

    def __init__(self, data: bytes | memoryview, name: str) -> None:
        self._data, self._name, self._at = memoryview(data), name, 0
        self.head = self._read_head()

    def require_base(self, base: Digest) -> None:
        """Checks that these are the weights that the log starts from.

        Raises:
            RunMismatchError: they are not; the line names both.
        """
        if base != self.head.base:
            raise RunMismatchError(
                f"{self._name} is for the base {self.head.base.hex()}, these weights are {base.hex()}"
                f" ({short(self.head.base)} and {short(base)}): name the checkpoint it was made from"
            )

    def chunks(self) -> Iterator[tuple[SeedUpdate, ...]]:
        """The updates of one chunk after the other, each checked before it is given out.

        Raises:
            InputFileError: the log is cut off, damaged, or lacks steps.
        """
        last = bytes(self._data[self._at - CHECKSUM_BYTES : self._at])
        expected, ended = self.head.first_step, False
        while not ended:
            place = self._at
            start = self._take(_CHUNK_HEAD)
            size, count, first = (int.from_bytes(start[k : k + _U32], "little") for k in (0, 4, 8))
            if size > MAX_CHUNK_BYTES:
                raise self._damaged(place)
            packed = self._take(size)
            found = bytes(self._take(CHECKSUM_BYTES))
            if first != expected:
                raise InputFileError(
                    f"{self._name} goes on with step {first}, expected step {expected}: steps are"
                    " missing, get the whole log"
                )
            if found != checksum(last, start, packed).digest():
                raise self._damaged(place)
            last, expected, ended = found, first + count, not size
            if not ended:
                yield self._updates(packed, place, range(first, expected))
        if self._at != len(self._data):
            raise self._damaged(self._at)

    def _read_head(self) -> LogHead:
        start = bytes(self._data[: len(MAGIC)])
        if start != MAGIC:
            raise InputFileError(
                f"{self._name} is no log of seeds: expected one of `export --as log`"
            )
        line = bytes(self._data[len(MAGIC) : len(MAGIC) + 8]).split(b"\n")[0]
        if line != b"%d" % VERSION:
            raise InputFileError(
                f"{self._name} has version {line.decode(errors='replace')!r}, expected {VERSION}:"
                " install a runnel that writes it"
            )
        self._at = len(MAGIC) + len(line) + 1
        size = int.from_bytes(self._take(_U32), "little")
        body = self._take(size)
        end = self._at
        if bytes(self._take(CHECKSUM_BYTES)) != checksum(self._data[:end]).digest():
            raise self._damaged(0)
        try:
            base, *words, names = msgpack.unpackb(_inflated(body))
        except (ValueError, TypeError, zlib.error, msgpack.exceptions.UnpackException):
            raise self._damaged(0) from None
        fits = isinstance(base, bytes) and len(base) == DIGEST_BYTES and len(words) == _HEAD_WORDS
        numbers = all(type(word) is int and 0 <= word < 1 << 32 for word in words)
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not (fits and numbers and named):
            raise self._damaged(0)
        first, key0, key1 = words
        return LogHead(Digest(base), (key0, key1), tuple(names), first)

    def _updates(self, packed: memoryview, place: int, steps: range) -> tuple[SeedUpdate, ...]:
        try:
            updates = _decoded(_inflated(packed))
        except (ValueError, IndexError, OverflowError, zlib.error):
            raise self._damaged(place) from None
        if sorted({update.step for update in updates}) != list(steps):
            raise self._damaged(place)
        return updates

    def _take(self, count: int) -> memoryview:
        if count > len(self._data) - self._at:
            raise InputFileError(
                f"{self._name} ends after {len(self._data)} bytes in the middle of a chunk: it was cut"
                " off, get it again"
            )
        self._at += count
        return self._data[self._at - count : self._at]

    def _damaged(self, place: int) -> InputFileError:
        return InputFileError(f"{self._name} is damaged at byte {place}: get it again")


def _inflated(packed: memoryview) -> bytes:
    inflate = zlib.decompressobj()
    plain = inflate.decompress(packed, MAX_CHUNK_BYTES)
    if not inflate.eof or inflate.unused_data:
        raise ValueError("more than a chunk may hold")
    return plain


def _decoded(plain: bytes) -> tuple[SeedUpdate, ...]:
    groups, width = int.from_bytes(plain[:_U32], "little"), plain[_U32]
    at = _U32 + 1
    end = at + 8 * _COLUMNS * groups
    table = np.frombuffer(plain[at:end], "<i8").reshape(_COLUMNS, groups)
    rows = np.cumsum(table, axis=1).T.tolist()
    entries = sum(row[4] for row in rows)
    if width not in _WIDTHS or any(row[4] < 0 for row in rows):
        raise ValueError(f"codes of {width} bytes, or a negative size")
    if len(plain) != end + entries * (_U32 + width):
        raise ValueError("columns of unequal length")
    steps = np.frombuffer(plain[end : end + _U32 * entries], "<u4")
    slots = np.cumsum(steps, dtype=np.uint32)
    codes = np.frombuffer(plain[end + _U32 * entries :], f"<i{width}").astype(np.int32)
    updates, first = [], 0
    for step, counter, unit, tensor, size in rows:
        part = slice(first, first + size)
        first += size
        updates.append(
            SeedUpdate(
                step=step,
                counter=counter,
                unit=unit,
                slots=slots[part],
                codes=codes[part],
                tensor=tensor,
            )
        )
    return tuple(updates)
