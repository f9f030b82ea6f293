"""The transport and the directory without a network: for tests, simulations and demonstrations."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING

from runnel.dht.framing import FramedStream
from runnel.dht.handling import run_handler
from runnel.dht.memory_network import (
    Cut,
    Fault,
    Heal,
    Kill,
    Link,
    MemoryNetwork,
    Partition,
    Relink,
)
from runnel.dht.memory_stream import MemoryByteStream
from runnel.dht.throttle import Throttle
from runnel.dht.traffic import ByteCounter
from runnel.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runnel.protocols import StreamHandler
    from runnel.types import PeerId

__all__ = [
    "Cut",
    "Fault",
    "Heal",
    "Kill",
    "Link",
    "MemoryDirectory",
    "MemoryNetwork",
    "MemoryTransport",
    "Partition",
    "Relink",
]


class MemoryTransport:
    """One peer on a `MemoryNetwork`; implements `runnel.protocols.Transport`."""

    def __init__(
        self, network: MemoryNetwork, peer_id: PeerId, throttle: Throttle | None = None
    ) -> None:
        """`throttle` caps what is sent."""
        self.throttle = throttle or Throttle()
        self._network = network
        self._peer_id = peer_id
        self._traffic = ByteCounter()
        self._handlers: dict[str, StreamHandler] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}  # in order: histories must repeat
        self._closed = False
        self._context = contextvars.copy_context()  # handlers run in ours, not in the dialler's
        network.attach(peer_id, self)

    @property
    def local_id(self) -> PeerId:
        """This peer."""
        return self._peer_id

    @property
    def traffic(self) -> ByteCounter:
        """Bytes by purpose and direction, framing included."""
        return self._traffic

    async def open(self, peer: PeerId, protocol: str, *, deadline: float) -> FramedStream:
        """A new stream to `peer`; see `runnel.protocols.Transport.open`."""
        if self._closed:
            raise NetworkError("this transport is closed")
        async with asyncio.timeout_at(deadline):
            stream = await self._network.connect(self._peer_id, peer, protocol)
        return FramedStream(stream, self._traffic, protocol, throttle=self.throttle)

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Runs `handler` for each incoming stream of `protocol`; the stream closes when it returns."""
        self._handlers[protocol] = handler

    async def aclose(self) -> None:
        """Stops serving, closes all streams, cancels all handlers. Idempotent."""
        if not self._closed:
            self._network.detach(self._peer_id)
            self.die()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        await asyncio.gather(*tasks, return_exceptions=True)

    def accept(self, protocol: str, stream: MemoryByteStream) -> bool:
        """For the network: takes an incoming stream; false if `protocol` is not served."""
        handler = self._handlers.get(protocol)
        if handler is None:
            return False
        framed = FramedStream(stream, self._traffic, protocol, throttle=self.throttle)
        task = asyncio.get_running_loop().create_task(
            run_handler(handler, framed), context=self._context
        )
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return True

    def die(self) -> None:
        """For the network: cancels all handlers, as the end of the process would."""
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()


class MemoryDirectory:
    """What the peers of a `MemoryNetwork` publish; implements `runnel.protocols.PeerDirectory`.

    Each call takes a round trip to the middle of the network. Records of peers behind a cut are
    not found.
    """

    def __init__(self, network: MemoryNetwork, peer_id: PeerId) -> None:
        self._network = network
        self._peer_id = peer_id

    async def publish(self, key: str, value: bytes, *, ttl_s: float, deadline: float) -> bool:
        """Stores `value` under (`key`, this peer) for `ttl_s`; whether it is stored now."""
        if not await self._ask(deadline):
            return False
        expires_s = asyncio.get_running_loop().time() + ttl_s
        self._network.records.setdefault(key, {})[self._peer_id] = (value, expires_s)
        return True

    async def lookup(self, key: str, *, deadline: float) -> Mapping[PeerId, bytes]:
        """All live values under `key`, by peer, in order of their ids; empty if it took too long."""
        if not await self._ask(deadline):
            return {}
        now = asyncio.get_running_loop().time()
        records = self._network.records.get(key, {})
        return {
            peer: value
            for peer, (value, expires_s) in sorted(records.items())
            if now < expires_s and not self._network.separated(peer, self._peer_id)
        }

    async def aclose(self) -> None:
        """Leaves the directory; what was published stays until it expires."""

    async def _ask(self, deadline: float) -> bool:
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.sleep(self._network.latency_s(self._peer_id, self._peer_id))
        except TimeoutError:
            return False
        return self._network.alive(self._peer_id)
