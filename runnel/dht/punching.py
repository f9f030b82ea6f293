"""Connections between two peers behind routers, without anybody in the middle ("hole punching").

A router lets in what answers to what went out. So both ends, who talk through a third peer meanwhile,
connect to each other at the same time, each from the port that its router has shown to the world: the one
that the daemon listens on. Each packet that goes out makes room for the other's, and TCP knows how two
dials become one connection. Daemons do not: each would take itself for the dialler. So the connection is
ours, and we pass on what the daemons say: the asker's daemon dials us on this machine, and at the other
end we dial the daemon. It is encrypted from daemon to daemon, who prove to each other who they are.

Routers that give each connection a port of its own are not passed so.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING

from runnel.dht.connections import RefusalError
from runnel.dht.rates import Buckets, Rate
from runnel.dht.reachability import GREETING
from runnel.dht.routes import endpoint
from runnel.dht.wire import pack, unpack
from runnel.errors import NetworkError, PeerError
from runnel.types import PeerId, short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runnel.dht.daemon_control import DaemonControl
    from runnel.protocols import Stream, Transport

_log = logging.getLogger(__name__)

PUNCH_PROTOCOL = "punch"

_HERE = "127.0.0.1"
_HELLO = b"runnel punch 1\n"
"""What the asker says first, so that the other end knows what has come in."""
_ASK_S = 10.0
_MEET_S = 5.0
"""How long both try: the system sends the first packet at once, again after one second, and after three."""
_PIECE_BYTES = 64 * 1024
_RATE = Rate(per_s=1 / 10, burst=4)
_MAX_MESSAGE_BYTES = 256
_REUSE = [
    getattr(socket, name) for name in ("SO_REUSEADDR", "SO_REUSEPORT") if hasattr(socket, name)
]

Endpoint = tuple[str, int]
Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Puncher:
    """Meets peers of the run behind their routers and ours."""

    def __init__(
        self,
        control: DaemonControl,
        transport: Transport,
        port: int,
        *,
        knows: Callable[[PeerId], bool],
        neighbours: Callable[[], Iterable[PeerId]],
    ) -> None:
        """`port` is where our daemon listens, 0 for nowhere; `neighbours` are connected to us directly."""
        self._control, self._transport, self._port = control, transport, port
        self._knows, self._neighbours = knows, neighbours
        self._asked = Buckets(_RATE)
        self._passing: set[asyncio.Task[None]] = set()
        self.met: set[PeerId] = set()
        """Peers whose connection passes through us on this machine: where it seems to lead says nothing."""

    async def serve(self) -> None:
        """Starts answering."""
        await self._transport.serve(PUNCH_PROTOCOL, self._on_stream)

    async def aclose(self) -> None:
        """Ends the connections that this peer asked for. Idempotent."""
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def meet(self, peer: PeerId) -> bool:
        """Makes a direct connection to `peer` in place of the one through others; whether it stands.

        Of two peers only the one with the lower id asks. Nothing is given up before the other's daemon
        has answered on the new way.
        """
        if not self._port or self._transport.local_id > peer:
            return False
        ours = await self._seen_as()
        theirs = await self._ask(peer, ours) if ours else None
        if theirs is None:
            return False
        try:
            far = await _connect(self._port, theirs)
        except OSError as error:
            _log.debug("no meeting %s at %s port %d: %s", short(peer), *theirs, error)
            return False
        try:
            async with asyncio.timeout(_MEET_S):
                far[1].write(_HELLO)
                greeting = await far[0].readexactly(len(GREETING))
            if greeting != GREETING:
                raise OSError("not a daemon's greeting")  # noqa: TRY301 - same end
            return await self._hand_over(peer, far, greeting)
        except (OSError, asyncio.IncompleteReadError) as error:
            _log.debug("met %s, but not its daemon: %s", short(peer), error)
            far[1].transport.abort()
            return False

    async def _hand_over(self, peer: PeerId, far: Pipe, greeting: bytes) -> bool:
        """Lets our daemon dial `peer` on this machine, where it comes out at `far`."""
        arrived: asyncio.Future[Pipe] = asyncio.get_running_loop().create_future()

        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if arrived.done():
                writer.transport.abort()
                return
            writer.write(greeting)
            arrived.set_result((reader, writer))
            task = asyncio.get_running_loop().create_task(self._pass(peer, (reader, writer), far))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

        server = await asyncio.start_server(take, _HERE, 0)
        deadline = asyncio.get_running_loop().time() + _MEET_S
        try:
            port = server.sockets[0].getsockname()[1]
            await self._control.disconnect(peer, deadline=deadline)
            await self._control.connect(peer, [f"/ip4/{_HERE}/tcp/{port}"], deadline=deadline)
        except (RefusalError, TimeoutError) as error:
            _log.debug("our daemon does not meet %s: %s", short(peer), error)
            return False
        finally:
            server.close()
            if not arrived.done():
                far[1].transport.abort()
        return arrived.done()

    async def _seen_as(self) -> Endpoint | None:
        """Where our connections come from, as somebody says who has one of them."""
        for peer in [peer for peer in self._neighbours() if self._knows(peer)][:2]:
            found = await self._ask(peer, None)
            if found is not None:
                return found
        return None

    async def _ask(self, peer: PeerId, ours: Endpoint | None) -> Endpoint | None:
        """Asks where we are seen; or, with `ours`, to come and meet us, and from where."""
        deadline = asyncio.get_running_loop().time() + _ASK_S
        try:
            stream = await self._transport.open(peer, PUNCH_PROTOCOL, deadline=deadline)
            try:
                await stream.send(pack(list(ours or ())), deadline=deadline)
                answer = await stream.receive(max_bytes=_MAX_MESSAGE_BYTES, deadline=deadline)
            finally:
                await stream.aclose()
            return _endpoint(unpack(bytes(answer), max_bytes=_MAX_MESSAGE_BYTES))
        except (NetworkError, PeerError, TimeoutError) as error:
            _log.debug("asking %s for a direct way: %s", short(peer), error)
            return None

    async def _on_stream(self, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        deadline, peer = loop.time() + _ASK_S, stream.remote
        request = await stream.receive(max_bytes=_MAX_MESSAGE_BYTES, deadline=deadline)
        message = unpack(bytes(request), max_bytes=_MAX_MESSAGE_BYTES)
        # a packet to wherever a stranger says is nobody's business
        if not self._knows(peer) or not self._asked.take(peer, loop.time()):
            return
        if message == []:
            found = await self._control.connections(deadline=deadline)
            seen = (endpoint(one.address) for one in found if one.peer == peer)
            at = next((place for place in seen if place is not None), None)
            await stream.send(pack(list(at or ("", 0))), deadline=deadline)
            return
        theirs = _endpoint(message)
        ours = await self._seen_as() if self._port and theirs else None
        if theirs is None or ours is None:
            await stream.send(pack(["", 0]), deadline=deadline)
            return
        meeting = loop.create_task(_connect(self._port, theirs))
        try:
            await stream.send(pack(list(ours)), deadline=deadline)
            await stream.aclose()  # the asker waits for that, and must not be late
            far = await meeting
        except OSError as error:
            _log.debug("no meeting %s at %s port %d: %s", short(peer), *theirs, error)
            return
        finally:
            meeting.cancel()
        await self._let_in(peer, far)

    async def _let_in(self, peer: PeerId, far: Pipe) -> None:
        """Passes on what comes from `far` to our daemon, until either ends."""
        try:
            async with asyncio.timeout(_MEET_S):
                hello = await far[0].readexactly(len(_HELLO))
                if hello != _HELLO:
                    return
                near = await asyncio.open_connection(_HERE, self._port)
            await self._pass(peer, near, far)
        except (OSError, asyncio.IncompleteReadError) as error:
            _log.debug("nobody came through: %s", error)
        finally:
            far[1].transport.abort()

    async def _pass(self, peer: PeerId, near: Pipe, far: Pipe) -> None:
        self.met.add(peer)
        _log.info("peer %s is met through both routers, without others' help", short(peer))
        try:
            await _pass(near, far)
        finally:
            self.met.discard(peer)


async def _connect(port: int, theirs: Endpoint) -> Pipe:
    """A connection to `theirs` from our own `port`, at which our daemon listens, too.

    Raises:
        OSError: none came about in time.
    """
    made = socket.socket(
        socket.AF_INET6 if ":" in theirs[0] else socket.AF_INET, socket.SOCK_STREAM
    )
    try:
        made.settimeout(0.0)
        for option in _REUSE:
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        made.bind(("", port))
        async with asyncio.timeout(_MEET_S):
            await asyncio.get_running_loop().sock_connect(made, theirs)
            return await asyncio.open_connection(sock=made)
    except BaseException:
        made.close()
        raise


async def _pass(one: Pipe, other: Pipe) -> None:
    """Passes bytes both ways until either end closes; closes both."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()

    loop = asyncio.get_running_loop()
    ways = [
        loop.create_task(pass_on(one[0], other[1])),
        loop.create_task(pass_on(other[0], one[1])),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        one[1].transport.abort()
        other[1].transport.abort()
        ended = await asyncio.gather(*ways, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception) and not isinstance(error, OSError):
            raise error


def _endpoint(message: object) -> Endpoint | None:
    match message:
        case ["", 0]:
            return None
        case [str(host), int(port)] if 0 < port < 2**16:
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(host)
                if not (address.is_loopback or address.is_unspecified or address.is_multicast):
                    return str(address), port
    raise PeerError("malformed", "an endpoint that is none")
