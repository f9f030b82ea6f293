"""Where a node's text comes from: this machine if it has the run's, the run's folder, or members.

A manifest names the text by one root. Whatever is on this machine counts only if it has that root;
else index and chunks are fetched by hash, kept in the run's folder, and taken up from there after a
break. Files that a stranger's manifest names are never opened.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from runnel.dht.blob_fetch import BlobFetcher
from runnel.errors import InputFileError, NetworkError, PeerError, StorageError
from runnel.node.atomic import write_atomically
from runnel.node.corpus import Corpus, CorpusIndex, file_corpus, stdlib_corpus
from runnel.node.dataset_exchange import ChunkCache, decode_index, encode_index, fetch_index
from runnel.node.outer_state import last_members
from runnel.node.place import Local
from runnel.node.wording import count_text, size_text

if TYPE_CHECKING:
    from runnel.node.entrance import Entrance
    from runnel.node.manifest import RunSpec
    from runnel.node.runtime import PeerRuntime
    from runnel.protocols import Transport
    from runnel.types import Digest, PeerId

logger = logging.getLogger(__name__)

FOLDER_NAME = "text"
INDEX_NAME = "index"
STDLIB = "stdlib"
MAX_TEXT_BYTES = 4 << 30
"""A fetched text is held in memory; a longer one is refused."""

_AT_ONCE = 4
_CHUNK_S = 120.0
_PATIENCE_S = 120.0
_RETRY_S = 2.0
_REPORT_S = 5.0
_POLL_S = 0.2

T = TypeVar("T")
FindDonors = Callable[[], Awaitable[Sequence["PeerId"]]]


def own_corpus(spec: RunSpec) -> Corpus:
    """The text that `spec` names, from this machine, cut as all peers of the run cut it.

    Raises:
        InputFileError: it is not here, or too short.
    """
    seed, share, size = spec.run.seed, spec.data.validation_share, spec.data.chunk_bytes
    if spec.data.text == STDLIB:
        return stdlib_corpus(seed=seed, validation_share=share, max_chunk_bytes=size)
    return file_corpus(spec.data.text, seed=seed, validation_share=share, max_chunk_bytes=size)


def corpus_of_run(
    entrance: Entrance,
    own: Corpus | None,
    find_donors: FindDonors,
    stop: threading.Event,
) -> Corpus:
    """The text of the run that `entrance` leads to: `own` if it is that, else fetched from members.

    Args:
        entrance: to the run.
        own: the text of whoever launches; None looks for the standard library, if that is wanted.
        find_donors: members that may have it; called on the I/O thread.
        stop: set, it ends the wait.

    Raises:
        InputFileError: `own` is another text than the run's, and there is no other member to ask.
        NetworkError: nobody has it.
        StorageError: it is too long.
        KeyboardInterrupt: `stop` was set.
    """
    manifest = entrance.manifest
    if manifest is None:
        assert own is not None  # who founds a run has its text
        return own
    root, spec = manifest.genesis.data_root, manifest.spec
    own = _stdlib_if_wanted(spec) if own is None else own
    if own is not None and own.root == root:
        return own
    alone = own is not None and _is_alone(entrance)
    if own is not None and not alone:
        logger.info(
            "the text on this machine has root %s, the run's %s: fetching that from members%s",
            own.root.hex()[:8],
            root.hex()[:8],
            "" if isinstance(entrance.place, Local) else " (another Python version, perhaps)",
        )
    wanted = TextRequest(
        root=root,
        folder=entrance.folder() / FOLDER_NAME,
        find_donors=find_donors,
        patience_s=0.0 if alone else _PATIENCE_S,
    )
    try:
        return _result_of(entrance.runtime, stop, fetch_corpus, entrance.network.transport, wanted)
    except NetworkError:
        if not alone:
            raise
        raise InputFileError(
            f"the text {spec.data.text} is not the one that the run began with, and no other member"
            " is known to have that: restore the file, or begin another run with --set run.name=NAME"
        ) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRequest:
    """Which text to fetch, and how.

    Attributes:
        root: of the text; see `CorpusIndex.root`.
        folder: where index and chunks are kept; made if there is none.
        find_donors: members that may have it, asked again after each failure.
        max_bytes: a longer text is refused.
        patience_s: how long nothing may arrive before it is given up.
    """

    root: Digest
    folder: Path
    find_donors: FindDonors
    max_bytes: int = MAX_TEXT_BYTES
    patience_s: float = _PATIENCE_S


async def fetch_corpus(transport: Transport, wanted: TextRequest) -> Corpus:
    """A whole text: what is in the folder from an earlier time is checked, the rest is fetched.

    Raises:
        NetworkError: nothing arrived for `patience_s`.
        StorageError: it is longer than `max_bytes`.
    """
    fetch = _Fetch(transport, wanted)
    index = await fetch.index()
    return await fetch.chunks(index)


@dataclass(slots=True)
class _Tally:
    """How far a fetch is."""

    began_s: float
    moved_s: float
    told_s: float
    size_bytes: int = 0
    chunks: dict[int, bytes] = field(default_factory=dict)


class _Fetch:
    """One fetch of one text."""

    def __init__(self, transport: Transport, wanted: TextRequest) -> None:
        now = asyncio.get_running_loop().time()
        self._wanted, self._fetcher = wanted, BlobFetcher(transport)
        self._donors: Sequence[PeerId] = ()
        self._tally = _Tally(now, now, now)

    async def index(self) -> CorpusIndex:
        loop, wanted = asyncio.get_running_loop(), self._wanted
        kept = await loop.run_in_executor(None, _kept_index, wanted)
        if kept is not None:
            return kept
        while True:
            try:
                deadline = loop.time() + _CHUNK_S
                index = await fetch_index(
                    self._fetcher, wanted.root, self._donors, deadline=deadline
                )
            except (NetworkError, TimeoutError) as error:
                await self._look_for_donors(str(error) or "no answer in time")
                continue
            await loop.run_in_executor(None, _keep_index, wanted, index)
            return index

    async def chunks(self, index: CorpusIndex) -> Corpus:
        digests = (*index.chunk_digests, *index.held_out_digests)
        cache = ChunkCache(
            self._wanted.folder, digests, self._fetcher, max_bytes=self._wanted.max_bytes
        )
        todo = list(range(len(digests)))
        logger.info(
            "the run's text: %s, %s of it here already; what is missing comes from members",
            count_text(len(digests), "chunk"),
            size_text(cache.held_bytes),
        )
        while todo:
            batch, todo = todo[:_AT_ONCE], todo[_AT_ONCE:]
            missing, reason = await self._take(cache, batch)
            todo = missing + todo
            self._tell(len(digests))
            if missing:
                await self._look_for_donors(reason)
        return self._finish(len(index.chunk_digests), len(digests))

    async def _take(self, cache: ChunkCache, batch: Sequence[int]) -> tuple[list[int], str]:
        """Those of a batch that could not be had, and why."""
        loop, tally = asyncio.get_running_loop(), self._tally
        deadline = loop.time() + _CHUNK_S
        found = await asyncio.gather(
            *(cache.chunk(index, self._donors, deadline=deadline) for index in batch),
            return_exceptions=True,
        )
        missing, reason = [], ""
        for index, outcome in zip(batch, found, strict=True):
            if isinstance(outcome, bytes):
                tally.chunks[index] = outcome
                tally.size_bytes += len(outcome)
                tally.moved_s = loop.time()
            elif isinstance(outcome, NetworkError | TimeoutError):
                missing.append(index)
                reason = str(outcome) or "no answer in time"
            else:
                raise outcome
        if tally.size_bytes > self._wanted.max_bytes:
            raise StorageError(
                f"the run's text has over {size_text(self._wanted.max_bytes)}, expected one that"
                " fits into memory: join a run with less text"
            )
        return missing, reason

    async def _look_for_donors(self, reason: str) -> None:
        """Finds members to ask, after a pause if some were asked in vain.

        Raises:
            NetworkError: it has taken too long since something arrived.
        """
        loop, wanted = asyncio.get_running_loop(), self._wanted
        silent_s = loop.time() - self._tally.moved_s
        if silent_s >= wanted.patience_s:
            raise NetworkError(
                f"the run's text cannot be had from members ({reason}): join again when more of"
                " them are there; what has arrived is kept"
            )
        if self._donors:
            logger.debug("text: %s", reason)
            await asyncio.sleep(_RETRY_S)
        self._donors = tuple(await wanted.find_donors())
        if not self._donors:
            await asyncio.sleep(_RETRY_S)

    def _tell(self, count: int) -> None:
        tally, now = self._tally, asyncio.get_running_loop().time()
        if now - tally.told_s >= _REPORT_S and len(tally.chunks) < count:
            tally.told_s = now
            here, size = len(tally.chunks), size_text(tally.size_bytes)
            logger.info("text: %d of %s, %s", here, count_text(count, "chunk"), size)

    def _finish(self, training: int, count: int) -> Corpus:
        tally = self._tally
        seconds = asyncio.get_running_loop().time() - tally.began_s
        size = size_text(tally.size_bytes)
        logger.info("the run's text is here: %s in %.1f s, hashes match", size, seconds)
        chunks = tuple(tally.chunks[index] for index in range(count))
        return Corpus(chunks[:training], chunks[training:])


def _is_alone(entrance: Entrance) -> bool:
    """Whether this peer goes on with a run of its own of which it was the only member."""
    manifest = entrance.manifest
    if manifest is None or not isinstance(entrance.place, Local):
        return False
    try:
        members = last_members(manifest, entrance.folder())
    except InputFileError:  # without a state, members are asked for that as well
        return False
    return set(members) <= {entrance.identity.peer_id}


def _stdlib_if_wanted(spec: RunSpec) -> Corpus | None:
    if spec.data.text != STDLIB:
        return None
    try:
        return own_corpus(spec)
    except InputFileError as error:
        logger.info("%s; fetching the run's text from members", error)
        return None


def _kept_index(wanted: TextRequest) -> CorpusIndex | None:
    """The index that an earlier fetch left, if it is right."""
    try:
        index = decode_index((wanted.folder / INDEX_NAME).read_bytes())
    except (OSError, PeerError):
        return None
    return index if index.root == wanted.root else None


def _keep_index(wanted: TextRequest, index: CorpusIndex) -> None:
    try:
        wanted.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(wanted.folder / INDEX_NAME, encode_index(index), overwrite=True)
    except (OSError, StorageError) as error:  # fetched again the next time
        logger.warning("the index of the run's text could not be kept: %s", error)


def _result_of(
    runtime: PeerRuntime,
    stop: threading.Event,
    work: Callable[..., Coroutine[Any, Any, T]],
    *args: Any,
) -> T:
    """Runs a coroutine on the I/O thread for as long as it takes."""
    future = runtime.submit(work, *args)
    while True:
        try:
            return future.result(_POLL_S)
        except TimeoutError:
            if future.done():
                raise
            if stop.is_set():
                future.cancel()
                raise KeyboardInterrupt from None
