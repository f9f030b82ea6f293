"""Fetching content by hash: from several donors at once, every chunk checked, resumable."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.dht.blob_download import Download, FetchLimits, Surroundings, Wanted
from runnel.dht.blob_sinks import BufferSink, FileSink, Sink
from runnel.dht.blobs import MAX_BLOB_BYTES, Tree
from runnel.hashing import digest

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from typing_extensions import Buffer

    from runnel.protocols import Transport
    from runnel.types import Digest, PeerId

MAX_BAD = 1024
"""Bad donors remembered; beyond, the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class FetchReport:
    """How a fetch went.

    Attributes:
        size_bytes: of the content.
        kept_bytes: of it that an earlier fetch had left here.
        seconds: in all, loop time.
        bytes_by_donor: who brought how much that was right; the root blob not counted.
        bad: donors that were given and were found bad, now or before, and why.
    """

    size_bytes: int
    kept_bytes: int
    seconds: float
    bytes_by_donor: Mapping[PeerId, int]
    bad: Mapping[PeerId, str]


class BlobFetcher:
    """Fetches trees and blobs; remembers who sent wrong bytes and does not ask them again.

    All calls: `donors` are peers that may have what is wanted, the preferred ones first; this peer
    itself and bad donors are left out. `deadline` is loop time in seconds.

    Args:
        transport: where the donors are.
        executor: hashes and writes chunks, so that the loop never waits for either; None for the
            loop's own.
        limits: how to deal with slow and busy donors.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        executor: Executor | None = None,
        limits: FetchLimits | None = None,
    ) -> None:
        self._around = Surroundings(transport, limits or FetchLimits(), executor, {}, set())

    @property
    def bad(self) -> Mapping[PeerId, str]:
        """Peers that sent something wrong, and what; the newest last."""
        return dict(self._around.bad)

    async def fetch_tree(
        self,
        root: Digest,
        donors: Sequence[PeerId],
        *,
        out: Buffer | str | os.PathLike[str],
        max_total_bytes: int,
        deadline: float,
    ) -> FetchReport:
        """Fetches the content of a tree into a buffer or a file.

        A file is written as ``NAME.part`` and renamed when complete; what is right in a ``.part``
        file from an earlier fetch is kept. On failure or cancellation it stays for the next one,
        and a buffer holds some of the content.

        Args:
            root: name of the tree.
            donors: see the class.
            out: a writable buffer of exactly the content's size, or a path.
            max_total_bytes: a tree that claims more is refused before anything is allocated.
            deadline: see the class.

        Raises:
            NetworkError: no donor is left that could have what is missing.
            PeerError: "too-large", "malformed" or "wrong-size": whoever named this root is to
                blame, not the donors.
            StorageError: the disk refused.
            TimeoutError: not complete by `deadline`.
        """
        # str and PathLike are told apart from buffers first: no path is a buffer.
        path = Path(out) if isinstance(out, str | os.PathLike) else None

        def sink(tree: Tree) -> Sink:
            return BufferSink(tree, out) if path is None else FileSink(tree, path)  # type: ignore[arg-type]

        async with asyncio.timeout_at(deadline):
            return await self._fetch(root, donors, max_total_bytes, sink)

    async def fetch_bytes(
        self, root: Digest, donors: Sequence[PeerId], *, max_total_bytes: int, deadline: float
    ) -> bytearray:
        """The content of a tree in new memory; otherwise like `fetch_tree`."""
        content = bytearray()

        def sink(tree: Tree) -> Sink:
            content.extend(bytes(tree.size_bytes))
            return BufferSink(tree, content)

        async with asyncio.timeout_at(deadline):
            await self._fetch(root, donors, max_total_bytes, sink)
        return content

    async def fetch_blob(
        self,
        name: Digest,
        donors: Sequence[PeerId],
        *,
        max_bytes: int = MAX_BLOB_BYTES,
        deadline: float,
        is_right: Callable[[memoryview], bool] | None = None,
    ) -> bytes:
        """One blob.

        Args:
            name: of the blob.
            donors: see the class.
            max_bytes: longer ones are refused unread.
            deadline: see the class.
            is_right: whether bytes are what `name` names, called in the executor; default: their
                digest is `name`.

        Raises:
            NetworkError: nobody has it.
            TimeoutError: not here by `deadline`.
        """
        async with asyncio.timeout_at(deadline):
            return await self._fetch_blob(name, donors, max_bytes, is_right)

    async def _fetch_blob(
        self,
        name: Digest,
        donors: Sequence[PeerId],
        max_bytes: int,
        is_right: Callable[[memoryview], bool] | None = None,
    ) -> bytes:
        found: list[bytes] = []

        def accept(_: int, content: memoryview) -> bool:
            right = digest(content) == name if is_right is None else is_right(content)
            if right:
                found.append(bytes(content))
            return right

        await self._download([Wanted(name, max_bytes, exact=False)], donors, accept)
        return found[0]

    async def _fetch(
        self,
        root: Digest,
        donors: Sequence[PeerId],
        max_total_bytes: int,
        make_sink: Callable[[Tree], Sink],
    ) -> FetchReport:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        root_blob = await self._fetch_blob(root, donors, MAX_BLOB_BYTES)
        tree = Tree.decode(root_blob, max_total_bytes=max_total_bytes)
        sink = make_sink(tree)
        try:
            missing = await loop.run_in_executor(self._around.executor, sink.open)
            brought = await self._fetch_chunks(tree, missing, donors, sink)
            await loop.run_in_executor(self._around.executor, sink.finish)
        finally:
            sink.close()
        return FetchReport(
            size_bytes=tree.size_bytes,
            kept_bytes=tree.size_bytes - sum(brought.values()),
            seconds=loop.time() - started_s,
            bytes_by_donor=brought,
            bad={peer: self._around.bad[peer] for peer in donors if peer in self._around.bad},
        )

    async def _fetch_chunks(
        self, tree: Tree, missing: list[int], donors: Sequence[PeerId], sink: Sink
    ) -> dict[PeerId, int]:
        if not missing:
            return {}
        spans = [tree.span(index) for index in missing]
        wanted = [
            Wanted(tree.digests[index], stop - start, exact=True)
            for index, (start, stop) in zip(missing, spans, strict=True)
        ]

        def accept(position: int, content: memoryview) -> bool:
            if digest(content) != wanted[position].name:
                return False
            sink.put(missing[position], content)
            return True

        download = await self._download(wanted, donors, accept)
        return {d.peer: d.received_bytes for d in download.donors if d.received_bytes}

    async def _download(
        self,
        wanted: Sequence[Wanted],
        donors: Sequence[PeerId],
        accept: Callable[[int, memoryview], bool],
    ) -> Download:
        bad = self._around.bad
        left_out = {self._around.transport.local_id, *bad}
        useful = [peer for peer in dict.fromkeys(donors) if peer not in left_out]
        late = self._around.late
        useful.sort(key=late.__contains__)
        late.intersection_update(useful)
        download = Download(self._around, wanted, useful, accept)
        try:
            await download.run()
        finally:
            while len(bad) > MAX_BAD:
                del bad[next(iter(bad))]
        return download
