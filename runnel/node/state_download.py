"""Downloading the states of fragments by their names, from several donors at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runnel import files
from runnel.dht.blob_fetch import BlobFetcher
from runnel.dht.blob_sinks import PART_SUFFIX
from runnel.errors import PeerError, StorageError
from runnel.node.disk import storage_error
from runnel.node.events import StateFetched
from runnel.optim.exchange import raw
from runnel.protocols import Float32
from runnel.types import Digest, PeerId, short

_FETCH_S = 600.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A state that came: after which record, and how; `bytes_by_donor` by their short names.

    It was downloaded, or rebuilt from the log of so many rounds if there are `log_rounds`.
    """

    number: int
    size_bytes: int
    kept_bytes: int
    seconds: float
    bytes_by_donor: Mapping[str, int]
    liars: tuple[str, ...]
    numbers: tuple[int, ...]
    log_rounds: int = 0

    def event(self) -> StateFetched:
        """What the journal says of it."""
        return StateFetched(
            unix_s=0.0,
            round=self.number,
            size_bytes=self.size_bytes,
            seconds=self.seconds,
            donors=tuple(sorted(self.bytes_by_donor)),
            bytes_by_donor=self.bytes_by_donor,
            kept_bytes=self.kept_bytes,
            liars=self.liars,
            log_rounds=self.log_rounds,
        )


class StateDownload:
    """Brings the states of fragments, from several donors at once, and tells how it went.

    Args:
        fetcher: knows who sent wrong bytes before.
        donors: see `BlobFetcher`.
        keep: a folder in which what has arrived outlives this process; None keeps it in memory.
    """

    def __init__(
        self, fetcher: BlobFetcher, donors: Sequence[PeerId], *, keep: Path | None = None
    ) -> None:
        self._fetcher, self._donors, self._keep = fetcher, donors, keep
        self._began_s = asyncio.get_running_loop().time()
        self._size = self._kept = 0
        self._given: Counter[str] = Counter()

    async def fetch(self, root: Digest, sizes: tuple[int, int]) -> tuple[Float32, Float32]:
        """Both parts of a fragment's state, of so many words each.

        Raises:
            NetworkError, PeerError, TimeoutError: they cannot be had.
            StorageError: the disk refused to keep them.
        """
        loop, both = asyncio.get_running_loop(), np.empty(sum(sizes), dtype=np.float32)
        file = self._keep / root.hex() if self._keep is not None else None
        report = await self._fetcher.fetch_tree(
            root,
            self._donors,
            out=raw(both) if file is None else _unfinished(file),
            max_total_bytes=both.nbytes,
            deadline=loop.time() + _FETCH_S,
        )
        if report.size_bytes != both.nbytes:
            raise PeerError("wrong-size", f"{report.size_bytes} bytes, expected {both.nbytes}")
        if file is not None:
            await loop.run_in_executor(None, _read_into, file, both)
            self._kept += report.kept_bytes
        self._size += report.size_bytes
        given = {short(peer): count for peer, count in report.bytes_by_donor.items() if count}
        self._given.update(given)
        return both[: sizes[0]], both[sizes[0] :]

    async def keep_only(self, roots: Collection[Digest]) -> None:
        """Deletes what is kept of other states than these: they are not wanted any more."""
        if self._keep is not None:
            names = {root.hex() for root in roots}
            await asyncio.get_running_loop().run_in_executor(None, _clear, self._keep, names)

    def report(self, number: int, numbers: tuple[int, ...] = ()) -> Fetched:
        """What was fetched until now: the state after record `number`."""
        bad = set(self._fetcher.bad) & set(self._donors)
        return Fetched(
            number=number,
            size_bytes=self._size,
            kept_bytes=self._kept,
            seconds=asyncio.get_running_loop().time() - self._began_s,
            bytes_by_donor=dict(self._given),
            liars=tuple(sorted(map(short, bad))),
            numbers=numbers,
        )


def _unfinished(file: Path) -> Path:
    """The path itself; what an earlier download finished there is looked through again, not fetched."""
    try:
        if file.exists():
            files.replace(file, file.with_name(file.name + PART_SUFFIX))
    except OSError as error:
        raise storage_error("go on with", file, error) from error
    return file


def _clear(folder: Path, names: Collection[str]) -> None:
    try:
        for file in list(folder.iterdir()) if folder.exists() else []:
            if file.name.removesuffix(PART_SUFFIX) not in names:
                files.remove(file)
    except OSError as error:
        raise storage_error("delete old files of", folder, error) from error


def _read_into(file: Path, both: Float32) -> None:
    try:
        both[:] = np.fromfile(file, dtype=np.float32)
    except (OSError, ValueError) as error:
        raise StorageError(f"{file} cannot be read back ({error}): check the disk") from error
