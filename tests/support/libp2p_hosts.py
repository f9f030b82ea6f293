"""Hosts of libp2p for Python on the loopback, for tests; importing this imports libp2p."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from runnel.dht.daemon_process import free_port
from runnel.dht.identity import Identity
from runnel.dht.libp2p.guest import TrioGuest
from runnel.dht.libp2p.host import Libp2pHost
from runnel.dht.libp2p.transport import Libp2pTransport
from tests.support.daemons import LOOPBACK, in_s


@contextlib.asynccontextmanager
async def libp2p_pair() -> AsyncIterator[tuple[Libp2pTransport, Libp2pTransport]]:
    """Two transports over a host each, on one guest; the second knows where the first one is."""
    async with contextlib.AsyncExitStack() as stack:
        guest = await TrioGuest.start()
        stack.push_async_callback(guest.aclose)
        hosts, transports = [], []
        for _ in range(2):
            identity, port = Identity.generate(), free_port(LOOPBACK, 0)
            host = await Libp2pHost.start(guest, identity, listen_host=LOOPBACK, port=port)
            stack.push_async_callback(host.aclose)
            transport = Libp2pTransport(host, identity.peer_id)
            stack.push_async_callback(transport.aclose)
            hosts.append(host)
            transports.append(transport)
        first, addresses = await hosts[0].identify(deadline=in_s(10))
        await hosts[1].connect(first, addresses, deadline=in_s(10))
        yield transports[0], transports[1]
