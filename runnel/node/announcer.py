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
_WITHDRAW_S = 3.0
_GONE = "gone"
"""In place of addresses: this peer has left, and would only keep those waiting who look for it."""


def directory_key(run: bytes) -> str:
    """Where peers of a run find each other; the part of its id that invites carry is enough."""
    return f"runnel/{run_name(run).hex()}"


class Announcer:
    """Publishes and looks up until cancelled. `found` gets peers of the run."""

    def __init__(
        self, network: Network, run: bytes, found: Callable[[Iterable[PeerId]], None]
    ) -> None:
        self._network, self._run, self._found = network, run, found
        self._published = float("-inf")
        self._known = False

    async def run(self) -> None:
        """Goes on for ever; a directory that fails is tried again."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                if loop.time() - self._published > _PUBLISH_S:
                    self._known = True  # to somebody, perhaps, however this ends
                    await self._publish(list(self._network.addresses())[:8], _DEADLINE_S)
                    self._published = max(self._published, loop.time())
                await self._look()
            except (NetworkError, TimeoutError) as error:
                logger.debug("directory: %s", error)
            await asyncio.sleep(_LOOKUP_S)

    async def withdraw(self) -> None:
        """Says that this peer has left, if it ever began to say that it is there; in a few seconds at most."""
        if not self._known:
            return
        self._published = float("inf")  # and nothing after it
        try:
            await self._publish(_GONE, _WITHDRAW_S)
        except (NetworkError, TimeoutError) as error:
            logger.debug("directory: %s", error)

    async def _publish(self, told: list[str] | str, within_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + within_s
        await self._network.directory.publish(
            directory_key(self._run), pack(told), ttl_s=_TTL_S, deadline=deadline
        )

    async def _look(self) -> None:
        deadline = asyncio.get_running_loop().time() + _DEADLINE_S
        self._found(await find_peers(self._network, self._run, deadline=deadline))


async def find_peers(network: Network, run: bytes, *, deadline: float) -> list[PeerId]:
    """Peers of a run that the directory names, but those who left; the transport learns their addresses."""
    found = list[PeerId]()
    records = await network.directory.lookup(directory_key(run), deadline=deadline)
    for peer, value in records.items():
        try:
            told = unpack(value, max_bytes=4096)
            addresses = [] if told == _GONE else [str(text) for text in told]
        except (PeerError, TypeError) as error:
            logger.debug("directory: a malformed record: %s", error)
            continue
        if told != _GONE:
            network.learn(peer, addresses)
            found.append(peer)
    return found
