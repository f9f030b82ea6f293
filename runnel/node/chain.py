"""The chain of decided records: what each round derives from, who its members are, which fork wins.

Pure. A path is the list of record hashes from genesis (number -1) to the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runnel.node.aside import MAX_ASIDE_BYTES, Aside
from runnel.node.records import Record, RecordKind
from runnel.types import Digest, PeerId
from runnel.verification.agreement import Vote


@dataclass(frozen=True, slots=True)
class Certificate:
    """Why a record holds: the attempt it was decided in and a quorum of signed precommits.

    Of a record that a branch carries on from, a quorum of prevotes; of a branch, the signatures of all
    whom it lists, and a ticket of each (empty for members of the record it was called from).
    """

    attempt: int
    votes: tuple[Vote, ...]
    tickets: tuple[bytes, ...] = ()


_NOBODY = PeerId(b"")


def size_bytes_of(record: Record, certificate: Certificate | None) -> int:
    """Not less than the encoded size; a message of this size also stays within the limit of values."""
    votes = len(certificate.votes) + sum(map(len, certificate.tickets)) if certificate else 0
    names = len(record.view) + len(record.unproven) + len(record.finished)
    places = sum(len(piece.included) for piece in record.slices)
    pieces = len(record.shares) + len(record.slices)
    return 256 + 48 * names + 16 * places + 128 * pieces + 256 * votes


@dataclass(frozen=True, slots=True)
class Fork:
    """How to get from one path to another: records to give up (newest first) and to adopt (oldest first)."""

    given_up: tuple[Record, ...]
    adopted: tuple[Record, ...]


class Chain:
    """All records this peer knows and the path it follows. `open_rounds` is how many rounds overlap."""

    def __init__(self, genesis: Record, *, open_rounds: int) -> None:
        self.open_rounds = open_rounds
        self.path: list[Digest] = [genesis.hash]
        self._places: dict[Digest, int] = {genesis.hash: 0}
        self._records: dict[Digest, Record] = {genesis.hash: genesis}
        self._certificates: dict[Digest, Certificate] = {}
        self._aside = Aside()

    @property
    def head(self) -> Record:
        """The newest record followed."""
        return self._records[self.path[-1]]

    @property
    def number(self) -> int:
        """Number of the newest record; -1 at genesis."""
        return len(self.path) - 2

    def __contains__(self, name: Digest) -> bool:
        return name in self._records

    def follows(self, name: Digest) -> bool:
        """Whether a record is on the path followed."""
        return name in self._places

    def record(self, name: Digest) -> Record:
        """A known record by hash."""
        return self._records[name]

    def certificate(self, name: Digest) -> Certificate | None:
        """Why a known record holds, or None (genesis has none)."""
        return self._certificates.get(name)

    def add(
        self, record: Record, certificate: Certificate | None = None, source: PeerId = _NOBODY
    ) -> Digest:
        """Remembers a record that `source` told of; of two certificates the higher attempt stays."""
        if record.hash not in self._records:
            self._records[record.hash] = record
            self._aside.put(record.hash, size_bytes_of(record, certificate), source)
        if certificate is not None and self.improves(record.hash, certificate):
            self._certificates[record.hash] = certificate
        return record.hash

    def trim(self, wanted: Sequence[Digest]) -> PeerId | None:
        """Forgets records that were never followed, if there are too many; who told of most of them.

        Those of the path `wanted` stay.
        """
        if self._aside.total_bytes <= MAX_ASIDE_BYTES:
            return None
        gone, source = self._aside.excess(lambda name: self._records[name].parent, {*wanted})
        for name in gone:
            self._aside.take(name)
            del self._records[name]
            self._certificates.pop(name, None)
        return source if gone else None

    def improves(self, name: Digest, certificate: Certificate) -> bool:
        """Whether a certificate says more than the one we have of that record."""
        known = self._certificates.get(name)
        return known is None or certificate.attempt > known.attempt

    def base_of(self, number: int, path: Sequence[Digest] | None = None) -> Digest:
        """The record that round `number` derives from: number - k, or the newest branch if that is younger."""
        path = self.path if path is None else path
        oldest = max(number - self.open_rounds + 1, 0)
        for index in range(min(number, len(path) - 1), oldest, -1):
            if self._records[path[index]].kind in (RecordKind.BRANCH, RecordKind.GENESIS):
                return path[index]
        return path[oldest]

    def view_of(self, number: int, path: Sequence[Digest] | None = None) -> tuple[PeerId, ...]:
        """Members of round `number`."""
        return self._records[self.base_of(number, path)].view

    def voters_of(self, number: int, path: Sequence[Digest] | None = None) -> tuple[PeerId, ...]:
        """Members whose votes count: newcomers vote after their first decided contribution."""
        base = self._records[self.base_of(number, path)]
        proven = tuple(peer for peer in base.view if peer not in base.unproven)
        return proven or base.view

    def is_final(self, number: int) -> bool:
        """Whether round `number` is one of the closing, plainly averaged rounds."""
        return self._records[self.base_of(number)].closing

    def lineage(self, name: Digest) -> list[Digest]:
        """The path from genesis to a known record. KeyError if an ancestor is unknown."""
        beyond: list[Digest] = []
        while name and name not in self._places:
            beyond.append(name)
            name = self._records[name].parent
        return self.path[: self._places[name] + 1 if name else 0] + beyond[::-1]

    def common(self, path: Sequence[Digest]) -> int:
        """How many leading records `path` shares with ours. Cost: logarithmic in its length."""
        return _shared(path, self.path)

    def fork_to(self, path: Sequence[Digest]) -> Fork:
        """What changes when following `path` instead."""
        meet = self.common(path)
        return Fork(
            tuple(self._records[name] for name in reversed(self.path[meet:])),
            tuple(self._records[name] for name in path[meet:]),
        )

    def prefers(self, path: Sequence[Digest], to: Sequence[Digest] | None = None) -> bool:
        """Whether `path` (all known) beats `to` (ours by default), by the first record that differs.

        A certified record beats a branch, a higher attempt a lower; between branches more listed
        voters of the interrupted round, then the smaller hash.
        """
        other = self.path if to is None else to
        meet = _shared(path, other)
        if meet == len(path):
            return False
        return meet == len(other) or self._rank(path[meet]) > self._rank(other[meet])

    def _rank(self, name: Digest) -> tuple[int, int, bytes]:
        record = self._records[name]
        inverted = bytes(255 - byte for byte in name)
        certificate = self._certificates.get(name)
        if record.kind is RecordKind.BRANCH:
            return (1, record.listed, inverted)
        return (2, certificate.attempt if certificate else -1, inverted)

    def follow(self, path: Sequence[Digest]) -> None:
        """Makes `path` (all known) the one followed."""
        meet = self.common(path)
        for name in self.path[meet:]:
            del self._places[name]
        for name in path[meet:]:
            self._aside.take(name)
        self._places.update(zip(path[meet:], range(meet, len(path)), strict=True))
        self.path = list(path)

    def locator(self) -> tuple[Digest, ...]:
        """Own records from the head back, ever sparser: enough for a peer to find where paths part."""
        picked, index, stride = [], len(self.path) - 1, 1
        while index > 0:
            picked.append(self.path[index])
            stride = stride * 2 if len(picked) > 8 else 1
            index -= stride
        return (*picked, self.path[0])

    def after(self, locator: Iterable[Digest], limit: int) -> tuple[Record, ...]:
        """Up to `limit` of our records that follow the newest one of `locator` on our path."""
        start = max((self._places.get(name, 0) for name in locator), default=0)
        return tuple(self._records[name] for name in self.path[start + 1 : start + 1 + limit])

    def last_update(self, fragment: int, fragments: int, upto: int | None = None) -> Record | None:
        """The newest ROUND record of `fragment` at or before number `upto`, or None since genesis."""
        top = self.number if upto is None else upto
        for index in range(top + 1, 0, -1):
            record = self._records[self.path[index]]
            if record.kind is RecordKind.ROUND and record.number % fragments == fragment:
                return record
        return None

    def certificates(self) -> Mapping[Digest, Certificate]:
        """All certificates, by record."""
        return self._certificates


def _shared(path: Sequence[Digest], other: Sequence[Digest]) -> int:
    """How many leading records two paths share; each names its parent, so bisection finds it."""
    low, high = 0, min(len(path), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if path[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
