"""hivemind's directory from when it is first needed on: loading it takes a processor more than half a second."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from runnel.dht.asked_directory import AskedDirectory
from runnel.dht.network import require_alone
from runnel.dht.records import SignedRecordValidator
from runnel.errors import ConfigError, NetworkError

if TYPE_CHECKING:
    from runnel.clock import Clock
    from runnel.dht.daemon import Daemon
    from runnel.dht.hivemind.directory import HivemindDirectory
    from runnel.dht.record_shelf import Found
    from runnel.dht.records import Record
    from runnel.protocols import Transport
    from runnel.types import PeerId

_log = logging.getLogger(__name__)

_CONNECTED_S = 3.0
_JOIN_S = 5.0


class LateDirectory:
    """Signed records in a DHT that this peer begins to carry when it is the first time to publish or to hold one.

    Until then those whom it has joined answer for it, as they do for peers that carry no directory. A
    newcomer needs no more to find its run. Implements `runnel.protocols.PeerDirectory` and
    `runnel.dht.record_shelf.RecordKeeper`. Every peer that loads its own greets all who are connected, so that of
    two the later one makes them neighbours.
    """

    def __init__(self, daemon: Daemon, transport: Transport, clock: Clock) -> None:
        self._daemon, self._transport, self._clock = daemon, transport, clock
        self._records = SignedRecordValidator(daemon.identity, clock)
        self._early = self._asked()
        self._joined: set[PeerId] = set()
        self._loaded: HivemindDirectory | None = None
        self._loading: asyncio.Task[HivemindDirectory] | None = None
        self._closed, self._never = False, ""
        daemon.on_restart(self._reattach)  # before whoever is told later greets others again

    @property
    def records(self) -> SignedRecordValidator:
        """What signs and checks the records here."""
        return self._records

    @property
    def is_loaded(self) -> bool:
        """Whether this peer carries the DHT with the others."""
        return self._loaded is not None

    async def whole(self, *, deadline: float) -> HivemindDirectory:
        """The DHT's own directory, loaded at the first call.

        Raises:
            NetworkError: hivemind cannot be imported, the daemon has gone (the next call tries again), or this
                directory is closed.
            TimeoutError: it is not there by `deadline`, or the daemon does not answer; the next call tries again.
        """
        if self._closed:
            raise NetworkError("the directory is closed")
        if self._loaded is not None:
            return self._loaded
        if self._never:
            raise NetworkError(self._never)
        if self._loading is None or self._loading.done():
            self._loading = asyncio.get_running_loop().create_task(self._load())
            self._loading.add_done_callback(_note)  # who waited for it may have gone
        async with asyncio.timeout_at(deadline):
            return await asyncio.shield(self._loading)

    async def publish(self, key: str, value: bytes, *, ttl_s: float, deadline: float) -> bool:
        """See `HivemindDirectory.publish`; raises as `whole` does."""
        directory = await self.whole(deadline=deadline)
        return await directory.publish(key, value, ttl_s=ttl_s, deadline=deadline)

    async def lookup(self, key: str, *, deadline: float) -> Mapping[PeerId, bytes]:
        """All live, correctly signed values under `key`, by peer; what was found by `deadline`.

        Raises as `whole` does where there is nobody to ask.
        """
        if self._loaded is None and self._joined:
            return await self._early.lookup(key, deadline=deadline)
        return await (await self.whole(deadline=deadline)).lookup(key, deadline=deadline)

    async def hold(self, record: Record, *, deadline: float) -> bool:
        """See `HivemindDirectory.hold`; raises as `whole` does."""
        return await (await self.whole(deadline=deadline)).hold(record, deadline=deadline)

    async def held(self, key_id: bytes, *, deadline: float) -> Found:
        """See `HivemindDirectory.held`; raises as `whole` does."""
        return await (await self.whole(deadline=deadline)).held(key_id, deadline=deadline)

    async def join(self, peers: Iterable[PeerId], *, deadline: float) -> set[PeerId]:
        """Makes `peers` neighbours; those who answered by `deadline`."""
        if self._loaded is not None:
            return await self._loaded.join(peers, deadline=deadline)
        answered = await self._early.join(peers, deadline=deadline)
        self._joined |= answered
        return answered

    async def aclose(self) -> None:
        """Leaves the directory. Idempotent."""
        self._closed = True
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        if self._loaded is not None:
            await self._loaded.aclose()

    def _asked(self) -> AskedDirectory:
        control, identity = self._daemon.control, self._daemon.identity
        return AskedDirectory(self._transport, control, identity, self._clock, only_joined=True)

    async def _load(self) -> HivemindDirectory:
        loop, restarts = asyncio.get_running_loop(), self._daemon.num_restarts
        try:
            require_alone("hivemind")
            module = await loop.run_in_executor(
                None, importlib.import_module, "runnel.dht.hivemind.directory"
            )
        except (ConfigError, ImportError) as error:
            advice = ": install runnel again" if isinstance(error, ImportError) else ""
            self._never = f"hivemind cannot be imported ({error}){advice}"
            _log.warning("newcomers find this peer through others alone: %s", self._never)
            raise NetworkError(self._never) from error
        directory: HivemindDirectory = await module.HivemindDirectory.start(
            self._daemon, self._clock, self._records
        )
        directory.also_ask(self._asked())
        self._loaded = directory
        if self._daemon.num_restarts != restarts:  # perhaps after it was attached to
            await directory.reattach()
        await directory.join(await self._neighbours(), deadline=loop.time() + _JOIN_S)
        return directory

    async def _reattach(self) -> None:
        if self._loaded is not None:
            await self._loaded.reattach()

    async def _neighbours(self) -> set[PeerId]:
        deadline = asyncio.get_running_loop().time() + _CONNECTED_S
        try:
            connected = await self._daemon.control.connected_peers(deadline=deadline)
        except (NetworkError, TimeoutError) as error:
            _log.debug("who is connected: %s", str(error) or "no answer in time")
            connected = []
        return {*connected, *self._joined}


def _note(loading: asyncio.Task[HivemindDirectory]) -> None:
    if not loading.cancelled() and loading.exception() is not None:
        _log.debug("the directory was not loaded: %r", loading.exception())
