"""The chain of decided records: what each round derives from, who its members are, which fork wins.

Pure, but that old records are read from wherever the archive has them. A path leads from genesis (number
-1) to the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runnel.node.archive import Archive, Block, Pair
from runnel.node.aside import MAX_ASIDE_BYTES, Aside
from runnel.node.certificates import Certificate
from runnel.node.path import Path
from runnel.node.records import Record, RecordKind
from runnel.types import Digest, PeerId

_NOBODY = PeerId(b"")
_MAX_SOUGHT = 32
"""Names of a locator that are looked for among the old ones: an honest one has fewer."""


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


@dataclass(frozen=True, slots=True)
class Folded:
    """What a chain let go of: a block to write, and records of branches that it gave up long ago."""

    block: Block
    names: tuple[Digest, ...]
    dropped: tuple[Digest, ...]


class Chain:
    """All records this peer knows and the path it follows. `open_rounds` is how many rounds overlap.

    Those that are far behind its head are in the archive alone, see `fold`; to read one of them may
    raise InputFileError or StorageError.
    """

    def __init__(
        self, genesis: Record, *, open_rounds: int, archive: Archive | None = None
    ) -> None:
        self.open_rounds = open_rounds
        self.archive = Archive() if archive is None else archive
        first = () if len(self.archive) else (genesis.hash,)
        self.path = Path(self.archive.names, len(self.archive), first)
        self._places: dict[Digest, int] = {genesis.hash: 0}
        self._records: dict[Digest, Record] = {genesis.hash: genesis}
        self._certificates: dict[Digest, Certificate] = {}
        self._aside = Aside()
        self._lost: dict[Digest, int] = {}

    @property
    def head(self) -> Record:
        """The newest record followed."""
        return self.record(self.path[-1])

    @property
    def number(self) -> int:
        """Number of the newest record; -1 at genesis."""
        return len(self.path) - 2

    def __contains__(self, name: Digest) -> bool:
        return name in self._records or self.follows(name)

    def is_at_hand(self, name: Digest) -> bool:
        """Whether a record is known and not in the archive alone."""
        return name in self._records

    def knows(self, record: Record) -> bool:
        """Whether a record is known, archived or not."""
        return record.hash in self._records or self._is_archived(record.hash, record.number)

    def knows_parent(self, record: Record) -> bool:
        """Whether the record before this one is known, archived or not."""
        return record.parent in self._records or self._is_archived(record.parent, record.number - 1)

    def follows(self, name: Digest, number: int | None = None) -> bool:
        """Whether a record is on the path followed. To know its `number` saves a search."""
        return self._place_of(name, number) is not None

    def record(self, name: Digest) -> Record:
        """A known record by hash."""
        known = self._records.get(name)
        return known if known is not None else self._archived(name)[0]

    def number_of(self, name: Digest) -> int | None:
        """The number of a record, None if it is not known any more; nothing is read."""
        known = self._records.get(name)
        place = self.archive.names.find(name) if known is None else known.number + 1
        return place - 1 if place >= 0 else None

    def at(self, path: Sequence[Digest], index: int) -> Record:
        """The record at a place of a path; the same as `record`, without a search for its name."""
        return self.pair_at(path, index)[0]

    def certificate(self, name: Digest) -> Certificate | None:
        """Why a known record holds, or None (genesis has none)."""
        known = self._certificates.get(name)
        return known if known is not None or name in self._records else self._archived(name)[1]

    def add(
        self, record: Record, certificate: Certificate | None = None, source: PeerId = _NOBODY
    ) -> Digest:
        """Remembers a record that `source` told of; of two certificates the higher attempt stays.

        An archived one stays as it is: nobody asks any more why it holds.
        """
        if self._is_archived(record.hash, record.number):
            return record.hash
        if record.hash not in self._records:
            self._records[record.hash] = record
            self._aside.put(record.hash, size_bytes_of(record, certificate), source)
        if certificate is not None and self.improves(record, certificate):
            self._certificates[record.hash] = certificate
        return record.hash

    def trim(self, wanted: Sequence[Digest]) -> PeerId | None:
        """Forgets records that were never followed, if there are too many; who told of most of them.

        Those of the path `wanted` stay.
        """
        if self._aside.total_bytes <= MAX_ASIDE_BYTES:
            return None
        kept = {*wanted[self.common(wanted) :]}
        gone, source = self._aside.excess(lambda name: self._records[name].parent, kept)
        for name in gone:
            self._aside.take(name)
            del self._records[name]
            self._certificates.pop(name, None)
        return source if gone else None

    def improves(self, record: Record, certificate: Certificate) -> bool:
        """Whether a certificate says more than the one we have of that record, which is not archived."""
        known = self._certificates.get(record.hash)
        newer = known is None or certificate.attempt > known.attempt
        return newer and not self._is_archived(record.hash, record.number)

    def base_of(self, number: int, path: Sequence[Digest] | None = None) -> Digest:
        """The record that round `number` derives from: number - k, or the newest branch if that is younger."""
        path = self.path if path is None else path
        oldest = max(number - self.open_rounds + 1, 0)
        for index in range(min(number, len(path) - 1), oldest, -1):
            if self.at(path, index).kind in (RecordKind.BRANCH, RecordKind.GENESIS):
                return path[index]
        return path[oldest]

    def view_of(self, number: int, path: Sequence[Digest] | None = None) -> tuple[PeerId, ...]:
        """Members of round `number`."""
        return self.record(self.base_of(number, path)).view

    def voters_of(self, number: int, path: Sequence[Digest] | None = None) -> tuple[PeerId, ...]:
        """Members whose votes count: newcomers vote after their first decided contribution."""
        base = self.record(self.base_of(number, path))
        proven = tuple(peer for peer in base.view if peer not in base.unproven)
        return proven or base.view

    def is_final(self, number: int) -> bool:
        """Whether round `number` is one of the closing, plainly averaged rounds."""
        return self.record(self.base_of(number)).closing

    def lineage(self, name: Digest) -> Path:
        """The path from genesis to a known record. KeyError if an ancestor is unknown."""
        beyond: list[Digest] = []
        known = self._records.get(name)
        place = self._place_of(name, known.number if known is not None else None)
        while name and place is None:
            record = self._records[name]
            beyond.append(name)
            name = record.parent
            place = self._place_of(name, record.number - 1)
        return self.path.upto(0 if place is None else place + 1).then(*reversed(beyond))

    def common(self, path: Sequence[Digest]) -> int:
        """How many leading records `path` shares with ours. Cost: logarithmic in its length."""
        return _shared(path, self.path)

    def fork_to(self, path: Sequence[Digest]) -> Fork:
        """What changes when following `path` instead."""
        meet = self.common(path)
        ours = range(len(self.path) - 1, meet - 1, -1)
        return Fork(
            tuple(self.at(self.path, index) for index in ours),
            tuple(self.at(path, index) for index in range(meet, len(path))),
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
        record = self.record(name)
        inverted = bytes(255 - byte for byte in name)
        certificate = self.certificate(name)
        if record.kind is RecordKind.BRANCH:
            return (1, record.listed, inverted)
        return (2, certificate.attempt if certificate else -1, inverted)

    def follow(self, path: Sequence[Digest]) -> tuple[Record, ...]:
        """Makes `path` (all known) the one followed; those of its records that come back from the archive.

        They do where it parts from ours in an archived block.
        """
        meet = self.common(path)
        ends = meet == len(path) == len(self.archive)  # nothing of it would be at hand
        back = self._reopen(meet) if meet < len(self.archive) or ends else ()
        farther = max(len(path), len(self.path))
        for name in self.path[meet:]:
            self._places.pop(name, None)
            self._lost[name] = farther
        low = len(self.archive)
        self.path = Path(self.archive.names, low, path[low:])
        for index in range(max(meet, low), len(path)):
            name = path[index]
            self._places[name] = index
            self._aside.take(name)
            self._lost.pop(name, None)
        return back

    def _reopen(self, meet: int) -> tuple[Record, ...]:
        """Takes back what is archived of the block in which another path parts from ours, and all after it.

        Returns those of its records that both paths have.
        """
        kept = max(meet - 1, 0) // self.archive.block
        low, names = kept * self.archive.block, self.path[kept * self.archive.block :]
        pairs = [self.archive.read(index) for index in range(low, len(self.archive))]
        for index, (record, certificate) in enumerate(pairs, low):
            self._records[record.hash] = record
            self._places[record.hash] = index
            if certificate is not None:
                self._certificates[record.hash] = certificate
        self.archive.cut(kept)
        self.path = Path(self.archive.names, low, names)
        return tuple(record for record, _ in pairs[: meet - low])

    def fold(self, keep: int, wanted: Sequence[Digest] = ()) -> Folded | None:
        """Archives a block of the oldest records if at least the newest `keep` stay at hand; None if not.

        What was given up before either path was as long as the archive is by now goes for good, unless the
        path `wanted` has it.
        """
        low, size = len(self.archive), self.archive.block
        if len(self.path) - low < keep + size:
            return None
        names = tuple(self.path[low : low + size])
        block = self.archive.append([self.pair_at(self.path, low + i) for i in range(size)])
        self.path = Path(self.archive.names, low + size, self.path[low + size :])
        kept = {*wanted[self.common(wanted) :], self.path[0]}
        old = tuple(name for name, at in self._lost.items() if at <= low + size)
        dropped = tuple(name for name in old if name not in kept)
        for name in (*names, *dropped):
            if name not in kept:
                self._lost.pop(name, None)
                self._places.pop(name, None)
                self._records.pop(name, None)
                self._certificates.pop(name, None)
        return Folded(block, names, dropped)

    def leave_rest(self) -> None:
        """Takes what is aside for records that were given up: they came from the disk."""
        for name in self._records:
            if not self.follows(name, self._records[name].number):
                self._aside.take(name)
                self._lost[name] = len(self.path)

    def locator(self) -> tuple[Digest, ...]:
        """Own records from the head back, ever sparser: enough for a peer to find where paths part."""
        picked, index, stride = [], len(self.path) - 1, 1
        while index > 0:
            picked.append(self.path[index])
            stride = stride * 2 if len(picked) > 8 else 1
            index -= stride
        return (*picked, self.path[0])

    def meeting(self, locator: Sequence[Digest]) -> int:
        """The place on our path of the newest record of `locator` that it has; 0 (genesis) for none."""
        recent = max((self._places.get(name, 0) for name in locator), default=0)
        if recent:
            return recent
        for name in locator[:_MAX_SOUGHT]:  # the newest comes first
            place = self.archive.names.find(name) if name != self.path[0] else 0
            if place >= 0:
                return place
        return 0

    def after(self, locator: Sequence[Digest], limit: int) -> Iterator[Pair]:
        """Up to `limit` of our records that follow the newest one of `locator` on our path, and why they hold."""
        start, path = self.meeting(locator) + 1, self.path
        for index in range(start, min(start + limit, len(path))):
            yield self.pair_at(path, index)

    def pair_at(self, path: Sequence[Digest], index: int) -> Pair:
        """The record at a place of a path, and why it holds."""
        name = path[index]
        known = self._records.get(name)
        if known is None and index < len(self.archive):
            return self.archive.read(index)
        return self._records[name], self._certificates.get(name)

    def _place_of(self, name: Digest, number: int | None) -> int | None:
        place = self._places.get(name)
        if place is not None:
            return place
        if number is None:
            place = self.archive.names.find(name)
            return place if place >= 0 else None
        return number + 1 if self._is_archived(name, number) else None

    def _is_archived(self, name: Digest, number: int) -> bool:
        return 0 <= number + 1 < len(self.archive) and self.path[number + 1] == name

    def _archived(self, name: Digest) -> Pair:
        place = self.archive.names.find(name)
        if place < 0:
            raise KeyError(name)
        return self.archive.read(place)

    def walk(self) -> Iterator[Record]:
        """All records of the path, genesis first; old ones are read block by block."""
        path = self.path
        return (self.at(path, index) for index in range(len(path)))

    def last_update(self, fragment: int, fragments: int, upto: int | None = None) -> Record | None:
        """The newest ROUND record of `fragment` at or before number `upto`, or None since genesis."""
        top = self.number if upto is None else upto
        for index in range(top + 1, 0, -1):
            if (index - 1) % fragments == fragment:
                record = self.at(self.path, index)
                if record.kind is RecordKind.ROUND:
                    return record
        return None


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
