"""Machines in network namespaces: public ones, ones behind routers that masquerade, each with a link of its own rate.

For tests and benchmarks on Linux, as root. Everything is a namespace of its own, the internet too, so
that nothing of this machine's network is touched and removing the namespaces removes all of it::

    with Namespaces("bench") as net:
        public = net.host("a", rate_mbit=100)
        home = net.host("b", rate_mbit=20, behind="router")
        process = home.popen([sys.executable, "-m", "runnel", "join", invite])

The addresses look public to libp2p, which treats those for documentation as unusable; they are routed
nowhere. There is no delay but that of the queues: this needs no netem.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from runnel.errors import RunnelError

INTERNET = "11.77"
"""The first half of public addresses."""

QUEUE_MS = 200
"""How long a packet may wait in front of a slow link before it is dropped."""

_TOOLS = ("ip", "iptables", "tc")
_BURST_S = 0.01
_MIN_BURST_BYTES = 16_000
_COMMAND_S = 20.0
_END_S = 10.0


class NamespaceError(RunnelError):
    """A command that makes or changes a namespace failed."""


@dataclass(frozen=True, slots=True)
class LinkBytes:
    """Bytes over a link since it was made, headers included."""

    sent: int
    received: int


class Host:
    """A machine with one link."""

    def __init__(
        self, name: str, namespace: str, address: str, outside: str, socket: tuple[str, str]
    ) -> None:
        self._started: list[subprocess.Popen[Any]] = []
        self.name = name
        self.namespace = namespace
        self.address = address
        """Its own IPv4 address; a private one behind a router."""
        self.outside = outside
        """Where its packets seem to come from: its own address, or its router's."""
        self._socket = socket
        """Namespace and device at the other end of its cable."""

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """A process on this machine; `options` go to `subprocess.Popen`. It keeps the pid given here.

        It is killed when the namespaces go, if it still runs.
        """
        process = subprocess.Popen([*_inside(self.namespace), *command], **options)
        self._started.append(process)
        return process

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> str:
        """What a command prints, once it has ended.

        Raises:
            NamespaceError: it failed.
        """
        return _run([*_inside(self.namespace), *command], env=env, timeout_s=timeout_s)

    def set_rate(self, rate_mbit: float) -> None:
        """Changes the rate of its link, in Mbit/s in each direction."""
        _shape(self.namespace, "eth0", rate_mbit)
        _shape(*self._socket, rate_mbit)

    def end(self) -> None:
        """Kills what `popen` started and waits for it."""
        for process in self._started:
            process.kill()
        for process in self._started:
            process.wait()
        self._started.clear()

    def drop(self, other: Host) -> None:
        """From now on packets between this machine and `other` are lost, without a word to either."""
        for chain, which in (("INPUT", "-s"), ("OUTPUT", "-d")):
            _iptables(self.namespace, "-I", chain, which, other.outside, "-j", "DROP")

    def restore(self, other: Host) -> None:
        """Ends what `drop` began."""
        for chain, which in (("INPUT", "-s"), ("OUTPUT", "-d")):
            _iptables(self.namespace, "-D", chain, which, other.outside, "-j", "DROP")

    def link_bytes(self) -> LinkBytes:
        """What went over its link."""
        found = json.loads(_ip("-s", "-j", "link", "show", "eth0", namespace=self.namespace))
        counts = found[0]["stats64"]
        return LinkBytes(sent=counts["tx"]["bytes"], received=counts["rx"]["bytes"])


class Namespaces:
    """Machines that see each other and nothing else. All of it, processes included, is gone at the end."""

    def __init__(self, prefix: str) -> None:
        """Removes what dead processes left under `prefix`, and makes an internet without machines.

        `prefix` is of letters and digits; the names of namespaces begin with it.

        Raises:
            NamespaceError: not possible here; see `why_not`.
        """
        reason = why_not()
        if reason:
            raise NamespaceError(f"no network namespaces here: {reason}")
        _check_name(prefix)
        self._prefix = f"{prefix}-{os.getpid()}"
        self._numbers = itertools.count(1)
        self._routers: dict[str, Router] = {}
        self._hosts: list[Host] = []
        _remove_left(prefix)
        try:
            self._internet = self._make("internet")
            _ip("link", "add", "br0", "type", "bridge", namespace=self._internet)
            _ip("link", "set", "br0", "up", namespace=self._internet)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def host(self, name: str, *, rate_mbit: float = 0.0, behind: str | None = None) -> Host:
        """A new machine.

        Args:
            name: short, of letters and digits; no other machine or router has it.
            rate_mbit: of its link in Mbit/s, in each direction; 0 is as fast as it goes.
            behind: the name of the router behind which it is; one that nobody made with `router` is
                made as `router` does by default. None is a public address.
        """
        namespace = self._make(name)
        if behind is None:
            address = outside = self._public()
            socket = self._plug(namespace, self._internet, "br0", address, 16, rate_mbit)
        else:
            router = self._routers.get(behind) or self.router(behind)
            address, outside = router.next_address(), router.address
            socket = self._plug(namespace, router.namespace, "lan0", address, 24, rate_mbit)
            _ip("route", "add", "default", "via", router.inside, namespace=namespace)
        made = Host(name, namespace, address, outside, socket)
        self._hosts.append(made)
        return made

    def router(self, name: str, *, random: bool = False, rate_mbit: float = 0.0) -> Router:
        """A router for machines behind it, which lets in nothing but answers.

        Args:
            name: as for a host.
            random: each connection leaves from another port than it has inside, so that nobody can
                guess where the next one comes from; else the port stays the same where it can.
            rate_mbit: of its link to the internet, in each direction; 0 is as fast as it goes.
        """
        namespace, address = self._make(name), self._public()
        router = self._routers[name] = Router(namespace, address, len(self._routers) + 1)
        self._plug(namespace, self._internet, "br0", address, 16, rate_mbit)
        _ip("link", "add", "lan0", "type", "bridge", namespace=namespace)
        _ip("addr", "add", f"{router.inside}/24", "dev", "lan0", namespace=namespace)
        _ip("link", "set", "lan0", "up", namespace=namespace)
        _run([*_inside(namespace), "sysctl", "-qw", "net.ipv4.ip_forward=1"])
        masquerade = ["-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE"]
        _iptables(namespace, *masquerade, *(["--random-fully"] if random else []))
        answers = ["-i", "eth0", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED"]
        for chain in ("INPUT", "FORWARD"):
            # Dropped, not refused: what is refused kills connections that both sides open at once.
            _iptables(namespace, "-A", chain, *answers, "-j", "ACCEPT")
            _iptables(namespace, "-A", chain, "-i", "eth0", "-j", "DROP")
        return router

    def close(self) -> None:
        """Ends all processes on the machines and removes them. Idempotent."""
        for host in self._hosts:
            host.end()
        _remove(named(self._prefix))

    def _make(self, name: str) -> str:
        _check_name(name)
        namespace = f"{self._prefix}-{name}"
        _ip("netns", "add", namespace)
        _ip("link", "set", "lo", "up", namespace=namespace)
        return namespace

    def _public(self) -> str:
        number = next(self._numbers)
        return f"{INTERNET}.{number // 250}.{number % 250 + 1}"

    def _plug(
        self, namespace: str, other: str, bridge: str, address: str, bits: int, rate_mbit: float
    ) -> tuple[str, str]:
        """Connects a namespace to a bridge of another one by a cable of `rate_mbit` both ways. Gives its far end."""
        far = f"port{next(self._numbers)}"
        pair = ["eth0", "netns", namespace, "type", "veth", "peer", "name", far, "netns", other]
        _ip("link", "add", *pair)
        _ip("link", "set", far, "master", bridge, "up", namespace=other)
        _ip("addr", "add", f"{address}/{bits}", "dev", "eth0", namespace=namespace)
        _ip("link", "set", "eth0", "up", namespace=namespace)
        if rate_mbit:
            _shape(namespace, "eth0", rate_mbit)
            _shape(other, far, rate_mbit)
        return other, far


class Router:
    """A router and its private network."""

    def __init__(self, namespace: str, address: str, number: int) -> None:
        self.namespace = namespace
        self.address = address
        self._network = f"192.168.{number}"
        self._hosts = itertools.count(2)

    @property
    def inside(self) -> str:
        """Its address for those behind it."""
        return f"{self._network}.1"

    def next_address(self) -> str:
        """For the next machine behind it."""
        return f"{self._network}.{next(self._hosts)}"


@functools.cache
def why_not() -> str:
    """Why namespaces cannot be made here, in a few words; empty if they can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found (Linux, packages iproute2 and iptables)"
    if os.geteuid() != 0:
        return "not root"
    trial = f"trial-{os.getpid()}"
    try:
        _ip("netns", "add", trial)
        _ip("link", "add", "br0", "type", "bridge", namespace=trial)
        _shape(trial, "lo", 10)
        _iptables(trial, "-t", "nat", "-A", "POSTROUTING", "-o", "lo", "-j", "MASQUERADE")
    except NamespaceError as error:
        return str(error)
    finally:
        _remove([name for name in _names() if name == trial])
    return ""


def named(prefix: str) -> list[str]:
    """The namespaces that exist under a prefix."""
    return [name for name in _names() if name.startswith(f"{prefix}-")]


def _check_name(name: str) -> None:
    if not name.isalnum():
        raise NamespaceError(f"a name {name!r}; expected letters and digits")


def _shape(namespace: str, device: str, rate_mbit: float) -> None:
    burst = max(_MIN_BURST_BYTES, int(rate_mbit * 1e6 / 8 * _BURST_S))
    tbf = ["rate", f"{rate_mbit}mbit", "burst", f"{burst}b", "latency", f"{QUEUE_MS}ms"]
    tc = ["tc", "qdisc", "replace", "dev", device, "root", "tbf", *tbf]
    _run([*_inside(namespace), *tc])


def _inside(namespace: str) -> list[str]:
    return ["ip", "netns", "exec", namespace]


def _ip(*words: str, namespace: str = "") -> str:
    return _run(["ip", *(["-n", namespace] if namespace else []), *words])


def _iptables(namespace: str, *words: str) -> None:
    _run([*_inside(namespace), "iptables", "-w", *words])


def _run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = _COMMAND_S,
) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=env, timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NamespaceError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise NamespaceError(f"{' '.join(command)}: {said}")
    return done.stdout


def _names() -> list[str]:
    if shutil.which("ip") is None:
        return []
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line]


def _remove_left(prefix: str) -> None:
    """Removes the namespaces of processes that ended before they could."""
    left = []
    for name in _names():
        word, _, rest = name.partition("-")
        pid = rest.partition("-")[0]
        if word == prefix and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            left.append(name)
    _remove(left)


def _remove(names: Sequence[str]) -> None:
    """Ends what runs in namespaces, then removes them."""
    for pid in _pids(names):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + _END_S
    while any(_pids(names)) and time.monotonic() < until:
        time.sleep(0.02)
    for name in names:
        _ip("netns", "del", name)


def _pids(names: Sequence[str]) -> Iterator[int]:
    for name in names:
        yield from map(int, _ip("netns", "pids", name).split())
