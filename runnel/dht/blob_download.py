"""One download: blobs by name from several donors at once. The driver around `BlobBoard`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runnel.dht.blob_board import BlobBoard
from runnel.dht.blob_server import PROTOCOL, Status, encode_request
from runnel.errors import NetworkError, PeerError, StorageError
from runnel.types import short

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from runnel.protocols import Stream, Transport
    from runnel.types import Digest, PeerId

_log = logging.getLogger(__name__)

GOODBYE_S = 1.0
"""How long ending a conversation in order may take."""

_DONORS_NAMED = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchLimits:
    """How a fetch deals with its donors.

    Attributes:
        streams_per_donor: conversations with one donor at the same time.
        open_s: how long opening one may take.
        hold_s: how long a donor that is not connected keeps others from what it was to bring.
        blob_s: how long one blob may take; doubles with each failure of the donor in a row, so
            that a slow link is not given up for a dead one.
        failures: in a row, after which a donor is given up.
        retry_s: pause after a failure; doubles with each in a row.
        busy_s: pause after a donor said that it is busy.
        hedge_after_s: when nothing else is left, how long one donor may hold a blob before a second
            one is asked for it too.
    """

    streams_per_donor: int = 2
    open_s: float = 10.0
    hold_s: float = 0.5
    blob_s: float = 30.0
    failures: int = 4
    retry_s: float = 0.5
    busy_s: float = 0.5
    hedge_after_s: float = 5.0

    def __post_init__(self) -> None:
        if self.streams_per_donor < 1 or self.failures < 1:
            raise ValueError(f"counts below 1 fetch nothing: {self}")
        if (
            min(
                self.open_s, self.hold_s, self.blob_s, self.retry_s, self.busy_s, self.hedge_after_s
            )
            <= 0
        ):
            raise ValueError(f"times must be positive: {self}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob to fetch.

    Attributes:
        name: what to ask for.
        max_bytes: longer ones are refused from the announcement alone.
        exact: its length is known to be `max_bytes`, so a longer one is a lie.
    """

    name: Digest
    max_bytes: int
    exact: bool


@dataclass(slots=True, eq=False)
class Donor:
    """What one donor has done in this download."""

    peer: PeerId
    failures: int = 0
    received_bytes: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all downloads of one fetcher share.

    Attributes:
        transport: to open conversations.
        limits: see `FetchLimits`.
        executor: checks and stores blobs; None for the loop's own.
        bad: donors that sent something wrong, and what; downloads add to it and avoid them.
        late: donors that took long to be reached or to answer, or did not: asked after all others.
    """

    transport: Transport
    limits: FetchLimits
    executor: Executor | None
    bad: dict[PeerId, str]
    late: set[PeerId]


class Download:
    """Fetches `wanted` from `donors`; use once.

    Args:
        surroundings: see `Surroundings`.
        wanted: the blobs.
        donors: whom to ask, the preferred ones first.
        accept: ``accept(index, content)`` checks and stores a blob, in the executor; false if it is
            not what was asked for. May be called twice for an index.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        wanted: Sequence[Wanted],
        donors: Sequence[PeerId],
        accept: Callable[[int, memoryview], bool],
    ) -> None:
        self._around = surroundings
        self._wanted = wanted
        self._accept = accept
        self.donors = [Donor(peer) for peer in donors]
        self._board = BlobBoard(len(wanted), hedge_after_s=surroundings.limits.hedge_after_s)
        self._working = 0
        self._failure: StorageError | None = None
        self._waiting: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        """Returns when every blob was accepted.

        Raises:
            NetworkError: no donor is left that could have what is still missing.
            StorageError: `accept` raised it.
        """
        streams = min(self._around.limits.streams_per_donor, len(self._wanted))
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._work(donor))
                for _ in range(streams)
                for donor in self.donors
            ]
            self._working = len(tasks)
            while self._working and not self._over:
                await self._change(None)
            for task in tasks:
                task.cancel()
        if self._failure is not None:
            raise self._failure
        if not self._board.finished:
            raise NetworkError(self._explain())

    @property
    def _over(self) -> bool:
        return self._board.finished or self._failure is not None

    async def _work(self, donor: Donor) -> None:
        limits = self._around.limits
        try:
            while donor.failures < limits.failures and donor.peer not in self._around.bad:
                try:
                    await self._converse(donor)
                except (PeerError, NetworkError, TimeoutError) as error:
                    donor.trouble = str(error) or "too slow"
                    pause_s = limits.busy_s
                    if not (isinstance(error, PeerError) and error.reason == "busy"):
                        pause_s = limits.retry_s * 2**donor.failures
                        donor.failures += 1
                else:
                    return
                _log.debug("blobs from %s: %s", short(donor.peer), donor.trouble)
                await asyncio.sleep(pause_s)
        finally:
            self._working -= 1
            self._wake()

    async def _converse(self, donor: Donor) -> None:
        """Fetches over one stream as long as there is something to fetch."""
        stream: Stream | None = None
        try:
            while (index := await self._take(donor)) is not None:
                try:
                    if stream is None:
                        stream = await self._open(donor, index)
                        if not self._board.holds(index, donor.peer):
                            continue
                    answer = await self._ask(stream, index, donor)
                    await self._use(index, answer, donor)
                finally:
                    self._board.give_back(index, donor.peer)  # unless it is complete by now
                    self._wake()
        finally:
            if stream is not None:
                await _part(stream)

    async def _open(self, donor: Donor, index: int) -> Stream:
        """A conversation. Others get `index` if that takes long: many who are named have left long ago."""
        loop, around = asyncio.get_running_loop(), self._around
        letting_go = loop.call_later(around.limits.hold_s, self._let_go, donor, index)
        try:
            deadline = loop.time() + around.limits.open_s
            stream = await around.transport.open(donor.peer, PROTOCOL, deadline=deadline)
        except (PeerError, NetworkError, TimeoutError):
            around.late.add(donor.peer)
            raise
        finally:
            letting_go.cancel()
        around.late.discard(donor.peer)
        return stream

    def _let_go(self, donor: Donor, index: int) -> None:
        self._around.late.add(donor.peer)
        self._board.give_back(index, donor.peer)
        self._wake()

    async def _take(self, donor: Donor) -> int | None:
        """The next blob for `donor`, or None once it has no more to do here."""
        loop = asyncio.get_running_loop()
        while (
            not self._over
            and donor.peer not in self._around.bad
            and donor.failures < self._around.limits.failures
            and self._board.has_use_for(donor.peer)
        ):
            index = self._board.assign(donor.peer, loop.time())
            if index is not None:
                return index
            await self._change(self._board.next_hedge_s(donor.peer))
        return None

    async def _ask(self, stream: Stream, index: int, donor: Donor) -> memoryview:
        wanted, around = self._wanted[index], self._around
        loop = asyncio.get_running_loop()
        deadline = loop.time() + around.limits.blob_s * 2**donor.failures
        slow = loop.call_later(around.limits.hedge_after_s, around.late.add, donor.peer)
        try:
            await stream.send(encode_request([wanted.name]), deadline=deadline)
            return await stream.receive(max_bytes=1 + wanted.max_bytes, deadline=deadline)
        except PeerError as error:
            if error.reason == "malformed" or (error.reason == "too-large" and wanted.exact):
                self._blame(donor, f"blob {short(wanted.name)}: {error}")
            raise
        finally:
            slow.cancel()

    async def _use(self, index: int, answer: memoryview, donor: Donor) -> None:
        name = self._wanted[index].name
        status, content = bytes(answer[:1]), answer[1:]
        if status == bytes((Status.FOUND,)):
            if not await self._store(index, content):
                self._blame(donor, f"blob {short(name)} with other content")
                raise PeerError("wrong-content", f"for blob {short(name)}")
            donor.failures, donor.trouble = 0, ""
            if self._board.complete(index):
                donor.received_bytes += content.nbytes
        elif status == bytes((Status.MISSING,)) and not content.nbytes:
            donor.failures, donor.trouble = 0, f"has no blob {short(name)}"
            self._board.lacks(index, donor.peer)
        elif status == bytes((Status.BUSY,)) and not content.nbytes:
            raise PeerError("busy")
        else:
            self._blame(donor, f"blob {short(name)} with a status that does not exist")
            raise PeerError("malformed", "an answer without a known status")

    async def _store(self, index: int, content: memoryview) -> bool:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._around.executor, self._accept, index, content)
        except StorageError as error:
            self._failure = error
            self._wake()
            raise PeerError("closed", "our disk failed") from error

    def _blame(self, donor: Donor, what: str) -> None:
        self._around.bad[donor.peer] = what
        _log.warning("peer %s sent %s and is not asked again", short(donor.peer), what)
        self._wake()

    def _explain(self) -> str:
        items = self._board.open_items
        name = short(self._wanted[items[0]].name)
        told = [
            f"{short(d.peer)}: {self._around.bad.get(d.peer) or d.trouble or 'no answer'}"
            for d in self.donors
        ]
        shown = "; ".join(told[:_DONORS_NAMED]) + ("; ..." if len(told) > _DONORS_NAMED else "")
        return (
            f"{len(items)} of {len(self._wanted)} blobs (first {name}) were not to be had from"
            f" {len(told)} donors ({shown or 'nobody to ask'}): try again with other peers"
        )

    async def _change(self, until: float | None) -> None:
        """Waits until something happens, or until `until` (loop time)."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await future

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


async def _part(stream: Stream) -> None:
    """Ends a conversation; in order if it still works."""
    deadline = asyncio.get_running_loop().time() + GOODBYE_S
    try:
        with contextlib.suppress(PeerError, TimeoutError):
            await stream.send(encode_request([]), deadline=deadline)
    finally:
        await stream.aclose()
