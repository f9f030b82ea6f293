"""Real daemons on the loopback, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

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


class DaemonPair:
    """Two daemons, of which the second knows where the first one is, and the loop that they live on.

    For all the tests of a module: to start a daemon takes most of a second of a processor. Each test
    has transports of its own.
    """

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
        self._loop_factory = loop_factory
        self._runner: asyncio.Runner | None = None
        self._daemons: list[Daemon] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While the daemons run."""
        with (
            tempfile.TemporaryDirectory() as folder,
            asyncio.Runner(loop_factory=self._loop_factory) as self._runner,
        ):
            try:
                self.run(lambda: self._start(Path(folder)))
                yield
            finally:
                self.run(self._close)

    def run(self, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a test on the daemons' loop, for a minute at most."""

        async def limited() -> None:
            async with asyncio.timeout(60):
                await test()

        assert self._runner is not None, "not running"
        self._runner.run(limited())

    @contextlib.asynccontextmanager
    async def transports(self) -> AsyncIterator[tuple[HivemindTransport, HivemindTransport]]:
        """A transport over each."""
        async with contextlib.AsyncExitStack() as stack:
            transports = []
            for daemon in self._daemons:
                transport = await HivemindTransport.start(daemon)
                stack.push_async_callback(transport.aclose)
                transports.append(transport)
            yield transports[0], transports[1]

    async def _start(self, folder: Path) -> None:
        for name in ("a", "b"):
            options = DaemonOptions(identity_path=new_key(folder, name), listen_host=LOOPBACK)
            self._daemons.append(await Daemon.start(options))
        first, second = self._daemons
        await second.control.connect(first.identity.peer_id, [address_of(first)], deadline=in_s(10))

    async def _close(self) -> None:
        while self._daemons:
            await self._daemons.pop().aclose()
