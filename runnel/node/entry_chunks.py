"""Entries of rounds that were before this peer's time: asked of members chunk by chunk, each proven by its record.

A record names the entry of its round by hash, and a newcomer has all records. So whoever tells an entry is
not believed: what is another one is named, and the next member asked. Entries travel in the order of their
rounds, some kilobytes at a time, and stay on disk: a break costs one chunk.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from runnel.dht.wire import pack, unpack
from runnel.errors import InputFileError, NetworkError, PeerError, StorageError
from runnel.hashing import digest
from runnel.node.chain import Chain
from runnel.node.fields import blob, integer, items, row
from runnel.node.records import Record, RecordKind
from runnel.node.run_service import ENTRIES, ask
from runnel.node.seed_entries import EntryFile
from runnel.optim.seed_rounds import MAX_ENTRY_BYTES
from runnel.protocols import Transport
from runnel.types import Digest, PeerId, short

logger = logging.getLogger(__name__)

CHUNK_ROUNDS = 1024
CHUNK_BYTES = 1 << 16
"""A phone line carries it before the question runs out of time; one entry may be longer."""
_MAX_ANSWER_BYTES = 4 << 20
_LOOK_S = 5.0
_PAUSE_S = 0.05
_PATIENCE = 60
"""Turns in vain, each over all members, before a person is told that the history has a gap."""

Wanted = Mapping[int, Digest]
"""The names of entries by round, ascending."""


def entries_answer(chain: Chain, entries: EntryFile, names: Sequence[Digest]) -> bytes:
    """What a member answers: entries of the rounds from the record `names[0]` on, as many as fit; may block.

    It ends where this peer lacks one; for a record that it does not know it is empty.
    """
    number = chain.number_of(names[0]) if names else None
    path = chain.path
    if number is None or not 0 <= number <= len(path) - 2 or path[number + 1] != names[0]:
        return pack([])
    stop = min(len(path), number + 1 + CHUNK_ROUNDS)
    wanted = entry_names(chain.at(path, index) for index in range(number + 1, stop))
    told, room = list[list[Any]](), CHUNK_BYTES
    found = entries.read(wanted)
    for round_number in wanted:
        entry = found.get(round_number)
        room -= len(entry or b"")
        if entry is None or (room < 0 and told):
            break
        told.append([round_number, entry])
    return pack(told)


def sound_entries(answer: bytes, wanted: Wanted) -> list[tuple[int, bytes]]:
    """Those entries of an answer that are wanted; others are passed over.

    Raises:
        PeerError: it is malformed, or one of them is not what the record of its round names.
    """
    rows = items(unpack(answer, max_bytes=_MAX_ANSWER_BYTES), CHUNK_ROUNDS)
    found = dict[int, bytes]()
    for number, entry in (row(one, 2) for one in rows):
        root = wanted.get(integer(number))
        if root is None:
            continue
        found[number] = blob(entry, MAX_ENTRY_BYTES)
        if digest(entry) != root:
            raise PeerError("hash-mismatch", f"another entry of round {number} than was decided")
    return sorted(found.items())


def entry_names(records: Iterable[Record]) -> dict[int, Digest]:
    """The names of the entries of records' rounds, by round."""
    return {
        record.number: record.slices[0].root
        for record in records
        if record.kind is RecordKind.ROUND
    }


@dataclass(frozen=True, slots=True)
class HistorySource:
    """Whom to ask about which run: those who are `near` just now; `disk` runs what may block."""

    transport: Transport
    run: bytes
    near: Callable[[], Sequence[PeerId]]
    disk: Callable[..., Awaitable[Any]]


class EntryDownload:
    """Brings entries of rounds that are not on the disk yet. For the I/O thread.

    Who is slow, or gives little, is asked after all others from then on.

    Attributes:
        rounds: how many entries came.
        given: how many bytes of them, by donor.
        bad: who told something else than was decided, and is not asked again.
    """

    def __init__(self, source: HistorySource, entries: EntryFile) -> None:
        self._source, self._entries = source, entries
        self._failings: Counter[PeerId] = Counter()
        self.bad: set[PeerId] = set()
        self.given: Counter[PeerId] = Counter()
        self.rounds = 0

    async def complete(
        self, path: Sequence[Digest], wanted: Wanted, *, turns: int = 0, pause_s: float = 0.0
    ) -> None:
        """Brings what is missing of the rounds of a path, block by block.

        Args:
            path: names of records; of round n at n + 1.
            wanted: the entries of these rounds are to be here afterwards.
            turns: so many times all peers are asked for an entry that nobody gives; 0 waits for ever.
            pause_s: between two questions, so that nobody else waits long for a disk.

        Raises:
            NetworkError: nobody in reach has an entry.
            StorageError, InputFileError: the disk refused.
        """
        disk, numbers = self._source.disk, list(wanted)
        for start in range(0, len(numbers), CHUNK_ROUNDS):
            block = {number: wanted[number] for number in numbers[start : start + CHUNK_ROUNDS]}
            held = await disk(self._entries.read, block)
            missing = {number: root for number, root in block.items() if number not in held}
            while missing:
                told = await self._chunk(path, missing, turns)
                await disk(self._entries.add_older, told)
                self.rounds += len(told)
                for number, _ in told:
                    del missing[number]
                await asyncio.sleep(pause_s)

    async def _chunk(
        self, path: Sequence[Digest], wanted: Wanted, turns: int
    ) -> list[tuple[int, bytes]]:
        """The first of what is wanted, from whoever has it."""
        number = next(iter(wanted))
        for turn in count(1):
            for peer in sorted(self._source.near(), key=self._failings.__getitem__):
                if peer in self.bad:
                    continue
                told = await self._ask(peer, path[number + 1], wanted)
                size = sum(len(entry) for _, entry in told)
                if 2 * len(told) < len(wanted) and 2 * size < CHUNK_BYTES:
                    self._failings[peer] += 1
                if told:
                    self.given[peer] += size
                    return told
            if turn == turns:
                raise NetworkError(f"nobody in reach has the entry of round {number}")
            if turn == _PATIENCE:
                logger.warning(
                    "nobody in reach has the entry of round %d: this run's log cannot be exported from"
                    " here until somebody who has it is there",
                    number,
                )
            await asyncio.sleep(_LOOK_S)
        raise AssertionError("unreachable")

    async def _ask(self, peer: PeerId, first: Digest, wanted: Wanted) -> list[tuple[int, bytes]]:
        try:
            answer = await ask(self._source.transport, peer, self._source.run, ENTRIES, [first])
            return sound_entries(answer, wanted)
        except PeerError as error:
            logger.warning("entries of peer %s are not taken: %s", short(peer), error)
            self.bad.add(peer)
        except (NetworkError, TimeoutError) as error:
            logger.debug("entries of peer %s: %s", short(peer), error)
        return []


class HistoryFetch:
    """Completes a peer's history behind its training, for as long as it takes part. For the I/O thread."""

    def __init__(self, source: HistorySource, chain: Chain, entries: EntryFile) -> None:
        self._disk, self._chain, self._entries = source.disk, chain, entries
        self._download = EntryDownload(source, entries)

    async def run(self) -> None:
        """Fetches what is missing, again after each state that was taken in place of results."""
        while True:
            if self._entries.may_lack:
                self._entries.may_lack = False
                try:
                    await self._complete()
                except (StorageError, InputFileError) as error:
                    logger.warning("%s; the run's history is not completed here", error)
                    return
            await asyncio.sleep(_LOOK_S)

    async def _complete(self) -> None:
        """One pass over the chain, block by block; each of the path of its time, as branches are given up."""
        before, start = self._download.rounds, 1
        while start < len(path := self._chain.path):
            places = range(start, min(len(path), start + CHUNK_ROUNDS))
            wanted = await self._disk(self._wanted, path, places)
            await self._download.complete(path, wanted, pause_s=_PAUSE_S)
            await asyncio.sleep(_PAUSE_S)
            start = places.stop
        if self._download.rounds > before:
            logger.info(
                "the run's history is whole here: %d rounds of it came from members",
                self._download.rounds - before,
            )

    def _wanted(self, path: Sequence[Digest], places: range) -> Wanted:
        return entry_names(self._chain.at(path, index) for index in places)
