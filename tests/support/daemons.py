"""Real daemons on the loopback, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from runnel.dht.daemon import Daemon, DaemonOptions
from runnel.dht.daemon_transport import HivemindTransport
from runnel.dht.identity import Identity

LOOPBACK = "127.0.0.1"


def in_s(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def new_key(folder: Path, name: str) -> Path:
    path = folder / name
    Identity.load_or_create(path)
    return path


def address_of(daemon: Daemon) -> str:
    return f"/ip4/{LOOPBACK}/tcp/{daemon.port}"


@contextlib.asynccontextmanager
async def transport_pair() -> AsyncIterator[tuple[HivemindTransport, HivemindTransport]]:
    """Two transports over a daemon each; the second knows where the first one is."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        daemons, transports = [], []
        for name in ("a", "b"):
            options = DaemonOptions(identity_path=new_key(folder, name), listen_host=LOOPBACK)
            daemon = await Daemon.start(options)
            stack.push_async_callback(daemon.aclose)
            transport = await HivemindTransport.start(daemon)
            stack.push_async_callback(transport.aclose)
            daemons.append(daemon)
            transports.append(transport)
        first, second = daemons
        await second.control.connect(first.identity.peer_id, [address_of(first)], deadline=in_s(10))
        yield transports[0], transports[1]
