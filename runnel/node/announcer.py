"""Being found and finding others: publishes this peer under the run's name and looks others up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from runnel.dht.network import Network
from runnel.dht.wire import pack, unpack
from runnel.errors import NetworkError, PeerError
from runnel.node.ticket import run_name
from runnel.types import PeerId

logger = logging.getLogger(__name__)

_TTL_S = 300.0
_PUBLISH_S = 60.0
_LOOKUP_S = 5.0
_DEADLINE_S = 10.0


def directory_key(run: bytes) -> str:
    """Where peers of a run find each other; the part of its id that invites carry is enough."""
    return f"runnel/{run_name(run).hex()}"


class Announcer:
    """Publishes and looks up until cancelled. `found` gets peers of the run."""

    def __init__(
        self, network: Network, run: bytes, found: Callable[[Iterable[PeerId]], None]
    ) -> None:
        self._network, self._run, self._found = network, run, found

    async def run(self) -> None:
        """Goes on for ever; a directory that fails is tried again."""
        loop = asyncio.get_running_loop()
        published = float("-inf")
        while True:
            try:
                if loop.time() - published > _PUBLISH_S:
                    await self._publish()
                    published = loop.time()
                await self._look()
            except (NetworkError, TimeoutError) as error:
                logger.debug("directory: %s", error)
            await asyncio.sleep(_LOOKUP_S)

    async def _publish(self) -> None:
        deadline = asyncio.get_running_loop().time() + _DEADLINE_S
        value = pack(list(self._network.addresses())[:8])
        await self._network.directory.publish(
            directory_key(self._run), value, ttl_s=_TTL_S, deadline=deadline
        )

    async def _look(self) -> None:
        deadline = asyncio.get_running_loop().time() + _DEADLINE_S
        self._found(await find_peers(self._network, self._run, deadline=deadline))


async def find_peers(network: Network, run: bytes, *, deadline: float) -> list[PeerId]:
    """Peers of a run that the directory names; the transport learns their addresses."""
    records = await network.directory.lookup(directory_key(run), deadline=deadline)
    for peer, value in records.items():
        try:
            addresses = [str(text) for text in unpack(value, max_bytes=4096)]
        except (PeerError, TypeError) as error:
            logger.debug("directory: a malformed record: %s", error)
            continue
        network.learn(peer, addresses)
    return list(records)
