"""The libp2p daemon as a child that is watched: restarted when it dies, gone when we are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from runnel.dht.daemon_control import DaemonControl
from runnel.dht.daemon_process import (
    DaemonOptions,
    DaemonProcess,
    arguments_for,
    find_binary,
    free_port,
)
from runnel.dht.identity import Identity, to_base58
from runnel.dht.socket_folder import SocketFolder
from runnel.errors import NetworkError

_log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 30.0
STABLE_S = 60.0
"""A daemon that ran for this long is restarted without delay."""

__all__ = ["Daemon", "DaemonOptions"]

RestartHook = Callable[[], Awaitable[None]]


class Daemon:
    """A running p2pd. If it dies it is started again with the same identity and port.

    It dies with this process, however this one ends: it ends itself when the connections that hold
    it are gone. It has a session of its own, so that Ctrl-C does not reach it before we have said
    goodbye to others.
    """

    def __init__(self, options: DaemonOptions, identity: Identity, port: int) -> None:
        self._options = options
        self._identity = identity
        self._port = port
        self._folder = SocketFolder()
        self._control = DaemonControl(self._folder.daemon_socket)
        self._child: DaemonProcess | None = None
        self._hooks: list[RestartHook] = []
        self._up = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._num_restarts = 0

    @classmethod
    async def start(cls, options: DaemonOptions) -> Daemon:
        """Starts a daemon and waits until it answers.

        Raises:
            InputFileError: the key file is missing or not an Ed25519 one.
            ConfigError: `listen_host` is not an IP address.
            NetworkError: the step of the start that failed, and what the daemon said last.
        """
        identity = Identity.load(options.identity_path)
        daemon = cls(options, identity, free_port(options.listen_host, options.port))
        try:
            daemon._child = await daemon._launch()
        except BaseException:
            daemon._folder.remove()
            raise
        daemon._up.set()
        daemon._watching = asyncio.get_running_loop().create_task(daemon._watch(daemon._child))
        return daemon

    @property
    def identity(self) -> Identity:
        """Who the daemon is for others."""
        return self._identity

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the present child; 0 while there is none."""
        return self._child.pid if self._child is not None else 0

    @property
    def control(self) -> DaemonControl:
        """Requests to it."""
        return self._control

    @property
    def folder(self) -> SocketFolder:
        """Where its sockets are."""
        return self._folder

    @property
    def num_restarts(self) -> int:
        """How often it was started again."""
        return self._num_restarts

    def on_restart(self, hook: RestartHook) -> None:
        """Calls `hook` after each restart: the new daemon has no handlers and no connections."""
        self._hooks.append(hook)

    async def ready(self) -> None:
        """Waits until a daemon runs and answers."""
        await self._up.wait()

    async def aclose(self) -> None:
        """Ends the daemon and removes its sockets. Idempotent."""
        watching, self._watching = self._watching, None
        try:
            if watching is not None:
                watching.cancel()
                await asyncio.wait([watching])
            if self._child is not None:
                await self._child.stop()
        finally:
            self._child = None
            self._folder.remove()

    async def _watch(self, child: DaemonProcess) -> None:
        loop, backoff_s = asyncio.get_running_loop(), FIRST_BACKOFF_S
        while True:
            started_s = loop.time()
            code = await child.ended()
            self._up.clear()
            self._child = None
            await child.stop()
            if loop.time() - started_s > STABLE_S:
                backoff_s = FIRST_BACKOFF_S
            _log.warning(
                "the network daemon ended with code %s (last words: %s); restarting it",
                code,
                child.last_line or "none",
            )
            while True:
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
                try:
                    child = self._child = await self._launch()
                    break
                except NetworkError as error:
                    _log.warning("%s; trying again in %.1f s", error, backoff_s)
            self._num_restarts += 1
            self._up.set()
            await self._run_hooks()

    async def _run_hooks(self) -> None:
        for hook in self._hooks:
            try:
                await hook()
            except (NetworkError, TimeoutError) as error:
                _log.warning("after the daemon's restart: %s", str(error) or "no answer in time")

    async def _launch(self) -> DaemonProcess:
        binary = find_binary(self._options.binary)
        self._folder.remove_socket()
        arguments = arguments_for(self._options, self._port, self._folder.daemon_socket)
        child = await DaemonProcess.spawn(binary, arguments)
        self._folder.note_daemon(child.pid)
        try:
            await self._bring_up(child)
        except TimeoutError:
            await child.stop()
            raise NetworkError(
                f"the network daemon was not ready after {self._options.startup_timeout_s:g} s "
                f"(last words: {child.last_line or 'none'}); a busy machine may need a longer "
                "startup timeout"
            ) from None
        except BaseException:
            await child.stop()
            raise
        return child

    async def _bring_up(self, child: DaemonProcess) -> None:
        deadline = asyncio.get_running_loop().time() + self._options.startup_timeout_s
        async with asyncio.timeout_at(deadline):
            await child.ready()
        child.hold(await self._control.hold(deadline=deadline))
        peer, _ = await self._control.identify(deadline=deadline)
        if peer != self._identity.peer_id:
            raise NetworkError(
                f"the network daemon calls itself {to_base58(peer)}, expected "
                f"{to_base58(self._identity.peer_id)}; was the key file replaced?"
            )
