"""Carrying bytes for two peers that cannot meet: the middle of a circuit.

The daemon has a relay of its own, which serves everybody, ends each connection after half an hour, and
until it has found out that it can be reached after two minutes or 128 KiB. This one takes its place: it
has no such limits for peers of the run, and firm ones for all others (`runnel.dht.relay_rules`). What
it carries is encrypted between the ends.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from runnel.dht.circuits import (
    HOP,
    MAX_MESSAGE_BYTES,
    STOP,
    Status,
    accepts,
    hop_answer,
    is_circuit,
    read_hop_request,
    stop_request,
)
from runnel.dht.connections import RefusalError
from runnel.dht.relay_rules import Grant, RelayRules
from runnel.errors import NetworkError
from runnel.types import PeerId, short

if TYPE_CHECKING:
    from runnel.dht.daemon_control import DaemonControl
    from runnel.dht.daemon_transport import HivemindTransport
    from runnel.dht.throttle import Throttle
    from runnel.dht.unix_stream import UnixStream

_log = logging.getLogger(__name__)

PIECE_BYTES = 64 * 1024
HANDSHAKE_S = 10.0


class Relay:
    """Serves circuits over a transport, by rules. Its tasks are the transport's."""

    def __init__(self, control: DaemonControl, rules: RelayRules, throttle: Throttle) -> None:
        """`throttle` caps what this peer sends, for others too."""
        self.rules, self._throttle = rules, throttle
        self._control = control
        self._carried_bytes = 0

    @property
    def carried_bytes(self) -> int:
        """What was carried so far, each byte once: it came in and went out."""
        return self._carried_bytes

    async def serve(self, transport: HivemindTransport) -> None:
        """Takes over from the daemon's own relay."""
        await transport.serve_bytes(HOP, self._on_request)

    async def _on_request(self, near: UnixStream) -> None:
        """One request for a circuit, and all that follows on the same stream."""
        loop = asyncio.get_running_loop()
        deadline, source = loop.time() + HANDSHAKE_S, near.remote
        try:
            async with asyncio.timeout_at(deadline):
                data = await near.read_sized(max_bytes=MAX_MESSAGE_BYTES)
            target = read_hop_request(data)
        except (OSError, ValueError) as error:
            _log.debug("a request of %s for a circuit: %s", short(source), error)
            await self._answer(near, Status.MALFORMED)
            return
        if target is None:
            await self._answer(near, Status.RESERVATION_REFUSED)
            return
        granted = self.rules.ask(source, target, loop.time())
        if isinstance(granted, str):
            _log.debug("no circuit from %s to %s: %s", short(source), short(target), granted)
            await self._answer(near, Status.PERMISSION_DENIED)
            return
        try:
            await self._connect(near, granted, deadline)
        finally:
            self.rules.end(granted)

    async def _connect(self, near: UnixStream, grant: Grant, deadline: float) -> None:
        if not await self._are_met({grant.source, grant.target}, deadline):
            await self._answer(near, Status.NO_RESERVATION)
            return
        try:
            far = await self._control.open_stream(grant.target, STOP, deadline=deadline)
        except (RefusalError, NetworkError, TimeoutError) as error:
            _log.debug("no circuit to %s: %s", short(grant.target), error)
            await self._answer(near, Status.CONNECTION_FAILED)
            return
        try:
            async with asyncio.timeout_at(deadline):
                await far.write(stop_request(grant.source))
                accepted = accepts(await far.read_sized(max_bytes=MAX_MESSAGE_BYTES))
            await self._answer(near, Status.OK if accepted else Status.CONNECTION_FAILED)
            if accepted:
                _log.debug("circuit %s to %s", short(grant.source), short(grant.target))
                await self._carry(near, far, grant)
        except (OSError, ValueError) as error:
            _log.debug("circuit to %s: %s", short(grant.target), error)
        finally:
            far.abort()

    async def _are_met(self, peers: set[PeerId], deadline: float) -> bool:
        """Whether we reach all of `peers` without help: circuits through circuits have no end."""
        try:
            found = await self._control.connections(deadline=deadline)
        except (NetworkError, TimeoutError) as error:
            _log.debug("a circuit: %s", error)
            return False
        return peers <= {one.peer for one in found if not is_circuit(one.address)}

    async def _answer(self, near: UnixStream, status: Status) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await near.write(hop_answer(status))
                if status is not Status.OK:
                    await near.read(1)  # closing first could lose it: see `runnel.dht.framing`
        except OSError as error:
            _log.debug("answering %s: %s", short(near.remote), error)

    async def _carry(self, near: UnixStream, far: UnixStream, grant: Grant) -> None:
        """Passes bytes both ways until one end closes, or its share is used up."""
        left = grant.max_bytes

        async def pass_on(source: UnixStream, sink: UnixStream) -> None:
            nonlocal left
            while piece := await source.read(min(PIECE_BYTES, self._throttle.piece_bytes)):
                if left is not None:
                    left -= len(piece)
                    if left < 0:
                        return
                await self._throttle.admit(len(piece), urgent=False)
                self._carried_bytes += len(piece)
                await sink.write(piece)

        loop = asyncio.get_running_loop()
        ways = [loop.create_task(pass_on(near, far)), loop.create_task(pass_on(far, near))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            near.abort()
            far.abort()
            for way in ways:
                way.cancel()
            ended = await asyncio.gather(*ways, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception) and not isinstance(error, OSError):
                raise error
