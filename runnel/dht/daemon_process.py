"""One process of the libp2p daemon p2pd, which hivemind's wheel brings: found, started, ended."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import platform
import socket
import stat
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.errors import ConfigError, NetworkError

if TYPE_CHECKING:
    from runnel.dht.unix_stream import UnixStream

_log = logging.getLogger(__name__)

IDLE_EXIT_S = 15
"""The daemon ends itself if nobody holds it for this long: we died before we could."""

STOP_S = 3.0
"""How long a daemon that was asked to end may take before it is killed."""

CONNECTIONS_LOW, CONNECTIONS_HIGH = 96, 192
"""Above the second number the daemon closes idle connections until the first is reached."""

_READY = b"Peer ID:"
_MAX_LINE_BYTES = 16 * 1024
_FAIR_REUSE = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
"""As the daemon does: connections of the last run that still linger are in nobody's way. On Windows
(the first one) the second one would take a port away from who listens on it."""
_LAST_WORDS_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DaemonOptions:
    """How to start a daemon.

    Attributes:
        identity_path: the Ed25519 key file of this peer.
        listen_host: IP address to listen on; 0.0.0.0 is all of them.
        port: TCP port; 0 chooses a free one once, and keeps it over restarts.
        announce: multiaddresses to tell others instead of those that the daemon finds.
        port_mapping: ask the router (UPnP, NAT-PMP) to forward the port.
        dial_out: listen nowhere: others talk to this peer over connections that it opens.
        startup_timeout_s: until a started daemon must answer.
        binary: the p2pd executable; by default the one in hivemind's wheel.
    """

    identity_path: Path
    listen_host: str = "0.0.0.0"  # noqa: S104 - a peer is there to be reached
    port: int = 0
    announce: tuple[str, ...] = ()
    port_mapping: bool = False
    dial_out: bool = False
    startup_timeout_s: float = 15.0
    binary: Path | None = None


_ENVIRONMENT = {
    # Go's own log at its usual level says nothing that we do not see better ourselves.
    "GOLOG_LOG_LEVEL": "error",
    "GOLOG_LOG_FMT": "nocolor",
    # One processor encrypts hundreds of megabytes a second; with more, a fifth of its time goes to
    # threads that look for work, and is missing in training.
    "GOMAXPROCS": "1",
}
"""What the daemon's environment holds unless ours says otherwise."""


class DaemonProcess:
    """One process of the daemon."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ready = asyncio.Event()
        self._held: UnixStream | None = None
        self.last_line = ""
        """What it said last."""
        self._reading = asyncio.get_running_loop().create_task(self._read_output())

    @classmethod
    async def spawn(cls, binary: Path, arguments: list[str]) -> DaemonProcess:
        """Starts `binary` in a session of its own.

        Raises:
            NetworkError: the system refuses to run it.
        """
        environment = {**_ENVIRONMENT, **os.environ}
        try:
            process = await asyncio.create_subprocess_exec(
                str(binary),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise NetworkError(
                f"the network daemon {binary} does not start on {platform.system()} "
                f"{platform.machine()}: {error.strerror}; reinstall hivemind for this platform"
            ) from error
        return cls(process)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ready(self) -> None:
        """Waits until it listens.

        Raises:
            NetworkError: it ended before.
        """
        ready = asyncio.get_running_loop().create_task(self._ready.wait())
        try:
            await asyncio.wait([ready, self._reading], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if not self._ready.is_set():
            code = await self.ended()
            raise NetworkError(
                f"the network daemon ended at its start with code {code}: "
                f"{self.last_line or 'it said nothing'}"
            )

    def hold(self, connection: UnixStream) -> None:
        """Keeps it alive while this process lives."""
        self._held = connection

    async def ended(self) -> int:
        """Its exit code, once it has ended and its last words are read."""
        code = await self._process.wait()
        await asyncio.wait([self._reading], timeout=_LAST_WORDS_S)
        return code

    async def stop(self) -> None:
        """Ends it if it runs: asks, waits, kills."""
        try:
            self._signal(kill=False)
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            _log.warning("the network daemon did not end when asked; killing it")
        finally:
            self._signal(kill=True)
            if self._held is not None:
                self._held.abort()
            self._reading.cancel()
        await self._process.wait()
        await asyncio.wait([self._reading])

    def _signal(self, *, kill: bool) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill() if kill else self._process.terminate()

    async def _read_output(self) -> None:
        output, rest = self._process.stdout, b""
        assert output is not None
        while data := await output.read(_MAX_LINE_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-_MAX_LINE_BYTES:]
            for line in lines:
                if line.startswith(_READY):
                    self._ready.set()
                if line.strip():
                    self.last_line = line.decode(errors="replace").strip()[:500]
                    _log.debug("daemon: %s", self.last_line)


def find_binary(given: Path | None) -> Path:
    """The executable, without importing what it comes with.

    Raises:
        NetworkError: there is none here, or it may not be executed.
    """
    if given is None:
        spec = find_spec("hivemind")
        if spec is None or not spec.submodule_search_locations:
            raise NetworkError(
                "the network daemon p2pd comes with hivemind, which is not installed here; "
                "pip install hivemind (Linux and macOS)"
            )
        given = Path(spec.submodule_search_locations[0]) / "hivemind_cli" / "p2pd"
    if not given.is_file():
        raise NetworkError(
            f"no network daemon at {given}; hivemind's wheels for {platform.system()} "
            f"{platform.machine()} have one: reinstall it from a wheel"
        )
    if not os.access(given, os.X_OK):
        mode = stat.S_IMODE(given.stat().st_mode)
        raise NetworkError(
            f"the network daemon {given} is not executable (mode {mode:03o}): chmod +x it"
        )
    return given


def arguments_for(options: DaemonOptions, port: int, socket_path: str) -> list[str]:
    """The command line, without the executable."""
    kind = f"ip{_ip(options.listen_host).version}"
    arguments = {
        "listen": f"/unix{socket_path}",
        "id": options.identity_path,
        "idleTimeout": f"{IDLE_EXIT_S}s",
        "dhtServer": 1,  # peers resolve each other's ids through each other
        "connManager": 1,
        "connLo": CONNECTIONS_LOW,
        "connHi": CONNECTIONS_HIGH,
        "relay": 1,
        "relayService": 0,  # `runnel.dht.relay` serves instead
        "autoRelay": 0,
        "autonat": 1,  # its hole punching comes with it
        "natPortMap": int(options.port_mapping),
    }
    if options.dial_out:
        arguments["noListenAddrs"] = 1
    else:
        arguments["hostAddrs"] = f"/{kind}/{options.listen_host}/tcp/{port}"
    if options.announce:
        arguments["announceAddrs"] = ",".join(options.announce)
    return [f"-{name}={value}" for name, value in arguments.items()]


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(
            f"listen_host is {host!r}; expected an IP address such as 0.0.0.0 or 127.0.0.1"
        ) from None


def free_port(host: str, port: int) -> int:
    """`port` if nobody listens on it, or a free one for 0.

    The daemon would share a port with another daemon of the same user without a word, and then
    each of them would get some of the other's connections.

    Raises:
        ConfigError: `host` is not an IP address.
        NetworkError: the port is in use or not allowed, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if _ip(host).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, _FAIR_REUSE, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise NetworkError(
                f"cannot listen on port {port} of {host}: {error}; end the program that uses it or "
                "choose another port (0 takes a free one)"
            ) from error
        return int(probe.getsockname()[1])
