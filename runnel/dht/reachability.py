"""Whether others can reach this peer: they are asked to try, and say where they see it.

One connection to the address that the request came from, to a port of the asker's choice, a few times a
minute at most: nobody can point a peer at somebody else's machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runnel.dht.circuits import is_circuit
from runnel.dht.rates import Buckets, Rate
from runnel.dht.wire import pack, unpack
from runnel.errors import NetworkError, PeerError
from runnel.types import PeerId, short

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from runnel.dht.daemon_control import Connection, DaemonControl
    from runnel.protocols import Stream, Transport

_log = logging.getLogger(__name__)

REACH_PROTOCOL = "reach"
TRY_S = 3.0
"""How long a connection may take."""

ASK_S = 10.0
_RATE = Rate(per_s=1 / 10, burst=4)
_MAX_MESSAGE_BYTES = 256
GREETING = b"\x13/multistream/1.0.0\n"
"""What daemons say first."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a peer answered: at which IP address it sees us, and whether it could connect to our port there."""

    host: str
    reached: bool


class ReachService:
    """Tries, for others, whether they can be reached."""

    def __init__(
        self, control: DaemonControl, transport: Transport, passed_on: Container[PeerId] = ()
    ) -> None:
        """`passed_on` are peers whose connections do not show where they are."""
        self._control, self._transport, self._passed_on = control, transport, passed_on
        self._asked = Buckets(_RATE)

    async def serve(self) -> None:
        """Starts answering."""
        await self._transport.serve(REACH_PROTOCOL, self._on_stream)

    async def _on_stream(self, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ASK_S
        request = await stream.receive(max_bytes=_MAX_MESSAGE_BYTES, deadline=deadline)
        port = _port(unpack(bytes(request), max_bytes=_MAX_MESSAGE_BYTES))
        if not self._asked.take(stream.remote, loop.time()):
            return
        found = await self._control.connections(deadline=deadline)
        host = "" if stream.remote in self._passed_on else _seen_at(found, stream.remote)
        reached = bool(host) and await listens_at(host, port)
        await stream.send(pack([host, reached]), deadline=deadline)


async def ask_reach(transport: Transport, peer: PeerId, port: int) -> Sighting | None:
    """What `peer` says of us; None if it does not say, or talks to us through somebody else.

    Args:
        transport: ours.
        peer: whom to ask.
        port: the TCP port at which we should be reached.
    """
    deadline = asyncio.get_running_loop().time() + ASK_S
    try:
        stream = await transport.open(peer, REACH_PROTOCOL, deadline=deadline)
        try:
            await stream.send(pack([port]), deadline=deadline)
            answer = await stream.receive(max_bytes=_MAX_MESSAGE_BYTES, deadline=deadline)
        finally:
            await stream.aclose()
        return _sighting(unpack(bytes(answer), max_bytes=_MAX_MESSAGE_BYTES))
    except (NetworkError, PeerError, TimeoutError) as error:
        _log.debug("asking %s whether we can be reached: %s", short(peer), error)
        return None


async def listens_at(host: str, port: int) -> bool:
    """Whether a daemon answers at an IP address and TCP port."""
    try:
        async with asyncio.timeout(TRY_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return await reader.readexactly(len(GREETING)) == GREETING
            finally:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, asyncio.IncompleteReadError) as error:
        _log.debug("nothing of ours at %s port %d: %s", host, port, error)
        return False


def _seen_at(connections: Iterable[Connection], peer: PeerId) -> str:
    """The IP address from which a peer is connected to us; "" if it is not, or through others."""
    for one in connections:
        words = one.address.split("/")
        if one.peer == peer and not is_circuit(one.address) and words[1:2] in (["ip4"], ["ip6"]):
            return words[2]
    return ""


def _port(message: object) -> int:
    match message:
        case [int(port)] if 0 < port < 2**16:
            return port
    raise PeerError("malformed", "a question about reachability that names no port")


def _sighting(message: object) -> Sighting | None:
    match message:
        case ["", bool()]:
            return None
        case [str(host), bool(reached)]:
            with contextlib.suppress(ValueError):  # no address: malformed, as is anything else
                return Sighting(str(ipaddress.ip_address(host)), reached)
    raise PeerError("malformed", "an answer about reachability that names no address")
