"""Where signed records are kept: what a directory's service stands on, and a shelf in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from runnel.dht.records import author_of

if TYPE_CHECKING:
    from runnel.clock import Clock
    from runnel.dht.records import Record
    from runnel.types import PeerId

Found = dict["PeerId", tuple[bytes, float]]
"""By author: what is stored, and when it expires (seconds since 1970)."""

MAX_RECORDS = 4096
"""Records on one shelf, of up to 4 KB each; those that expire first go first."""

MAX_RECORDS_PER_AUTHOR = 16


class RecordKeeper(Protocol):
    """Keeps records that were checked, here or with others."""

    async def hold(self, record: Record, *, deadline: float) -> bool:
        """Keeps `record` in place of an older one of its author; whether anybody holds it now."""
        ...

    async def held(self, key_id: bytes, *, deadline: float) -> Found:
        """The live records under `key_id`; what was found by `deadline`."""
        ...


class RecordShelf:
    """Records in memory; implements `RecordKeeper`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[tuple[bytes, PeerId], Record] = {}
        self._per_author: Counter[PeerId] = Counter()

    def __len__(self) -> int:
        """Records, expired ones included."""
        return len(self._records)

    async def hold(self, record: Record, *, deadline: float) -> bool:
        """See `RecordKeeper.hold`; false for one that has expired, or an author with too many."""
        del deadline  # nobody is asked
        author = author_of(record.subkey)
        place = (record.key_id, author)
        known = self._records.get(place)
        if record.expires_s <= self._clock.unix_s():
            return False
        if known is None:
            self._drop_expired()
            if self._per_author[author] >= MAX_RECORDS_PER_AUTHOR:
                return False
            if len(self._records) >= MAX_RECORDS:
                self._drop(min(self._records, key=lambda at: self._records[at].expires_s))
            self._per_author[author] += 1
        if known is None or known.expires_s < record.expires_s:
            self._records[place] = record
        return True

    async def held(self, key_id: bytes, *, deadline: float) -> Found:
        """See `RecordKeeper.held`."""
        del deadline
        now_s = self._clock.unix_s()
        return {
            author: (record.stored, record.expires_s)
            for (at, author), record in self._records.items()
            if at == key_id and record.expires_s > now_s
        }

    def _drop_expired(self) -> None:
        now_s = self._clock.unix_s()
        for place in [at for at, record in self._records.items() if record.expires_s <= now_s]:
            self._drop(place)

    def _drop(self, place: tuple[bytes, PeerId]) -> None:
        del self._records[place]
        self._per_author[place[1]] -= 1
        self._per_author += Counter()  # forgets those with none


def merge(found: Found, others: Mapping[PeerId, tuple[bytes, float]]) -> None:
    """Adds to `found` what is newer in `others`: of each author the record that expires last."""
    for author, (stored, expires_s) in others.items():
        if author not in found or found[author][1] < expires_s:
            found[author] = (stored, expires_s)
