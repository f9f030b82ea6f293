"""What is particular to this machine: folders, address, threads. Nothing that peers must agree on."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from runnel.errors import ConfigError, InputFileError, StorageError
from runnel.files import make_folder, part_beside, remove, write_new
from runnel.node.link_rate import parse_rate

if TYPE_CHECKING:
    from runnel.node.invite import Invite
    from runnel.node.manifest_spec import RunSpec

HOME_VARIABLE = "RUNNEL_HOME"
LOG_VARIABLE = "RUNNEL_LOG"
NETWORK_VARIABLE = "RUNNEL_NETWORK"
RELAY_VARIABLE = "RUNNEL_RELAY"
CATCH_UP_VARIABLE = "RUNNEL_CATCH_UP"
LOOPBACK = "127.0.0.1"
ANY_HOST = "0.0.0.0"  # noqa: S104 - a peer that others cannot reach is of little use
NOWHERE = "none"
"""The host of peers that listen nowhere: others use the connections that they open."""

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
NETWORKS = ("auto", "daemon", "libp2p")
CATCH_UPS = ("auto", "log", "state")
MAX_CODEC_THREADS = 16
_DATA_FOLDERS = {
    "darwin": ("HOME", "Library/Application Support"),
    "win32": ("LOCALAPPDATA", ""),
}
_ANNOUNCED = re.compile(r"/(?:ip4|ip6|dns|dns4|dns6)/[^/\s]+/tcp/[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True)
class MetricsAddress:
    """Where figures for monitoring are served: an IP address of this machine and a TCP port, 0 for any.

    Raises:
        ConfigError: a value out of range.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        """Checks the values."""
        _check_range("metrics port", self.port, 0, 65_535)
        _check_ip("metrics host", self.host)

    @classmethod
    def parse(cls, text: str | int) -> Self:
        """``9090`` is that port of this machine alone; ``0.0.0.0:9090`` and ``[::]:9090`` name a host.

        Raises:
            ConfigError: another form, or a value out of range.
        """
        host, colon, port = str(text).rpartition(":")
        if not port.isascii() or not port.isdigit() or (colon and not host):
            raise ConfigError(
                f"metrics is {text!r}, expected a port such as 9090, or an IP address of this machine"
                " and a port such as 0.0.0.0:9090: correct it"
            )
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        return cls(bare or LOOPBACK, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineConfig:
    """How runnel runs on this machine.

    Attributes:
        home: folder of the key and of the runs' state; see `run_folder`.
        identity_path: the key file; made when it is missing.
        listen_host: IP address to listen on; 0.0.0.0 is every IPv4 interface, `NOWHERE` none.
        listen_port: TCP port; 0 lets the system choose.
        announce: multiaddresses that others shall use, if they cannot use what we listen on.
        relay: carry bytes for members that cannot meet.
        codec_threads: threads that encode, decode and apply outer steps.
        log_level: one of `LOG_LEVELS`.
        network: one of `NETWORKS`: through the daemon, by libp2p for Python, or by what is here.
        metrics: where figures for monitoring are served; None is nowhere.
        max_upload_bits_s: the most that this peer sends, in bits per second.
        catch_up: one of `CATCH_UPS`: how the state of a run of shared seeds comes here, by the log of its
            rounds, as it is, or by what is faster over a home's link.

    Raises:
        ConfigError: a value out of range.
    """

    home: Path
    identity_path: Path
    listen_host: str = ANY_HOST
    listen_port: int = 0
    announce: tuple[str, ...] = ()
    relay: bool = True
    codec_threads: int = 1
    log_level: str = "INFO"
    network: str = "auto"
    metrics: MetricsAddress | None = None
    max_upload_bits_s: float = math.inf
    catch_up: str = "auto"

    def __post_init__(self) -> None:
        """Checks the values."""
        _check_range("port", self.listen_port, 0, 65_535)
        _check_range("threads", self.codec_threads, 1, MAX_CODEC_THREADS)
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(
                f"log level is {self.log_level!r}, expected one of {', '.join(LOG_LEVELS)}:"
                f" set {LOG_VARIABLE} to one of them"
            )
        if self.network not in NETWORKS:
            raise ConfigError(
                f"network is {self.network!r}, expected one of {', '.join(NETWORKS)}: set"
                f" {NETWORK_VARIABLE} or --network to one of them"
            )
        if self.catch_up not in CATCH_UPS:
            raise ConfigError(
                f"catch-up is {self.catch_up!r}, expected one of {', '.join(CATCH_UPS)}: set"
                f" {CATCH_UP_VARIABLE} or --catch-up to one of them"
            )
        for address in self.announce:
            if not _ANNOUNCED.fullmatch(address):
                raise ConfigError(
                    f"announced address is {address!r}, expected a form like"
                    " /ip4/203.0.113.5/tcp/4001 or /dns/example.org/tcp/4001: correct it"
                )
        if self.dials_only:
            if self.announce or self.listen_port:
                raise ConfigError(
                    f"host is {NOWHERE}, so there is nothing to announce and no port to listen on: leave"
                    " out --port and --announce, or --host"
                )
            return
        _check_ip("host", self.listen_host)

    @property
    def dials_only(self) -> bool:
        """Whether this peer listens nowhere."""
        return self.listen_host == NOWHERE

    @classmethod
    def at(
        cls,
        home: Path | None = None,
        *,
        port: int = 0,
        host: str = ANY_HOST,
        announce: Sequence[str] = (),
        threads: int = 1,
        network: str | None = None,
    ) -> Self:
        """The configuration with its key under `home`, by default the user's `default_home`.

        The log level is that of the environment's `RUNNEL_LOG`, or INFO; the network, unless given,
        that of `RUNNEL_NETWORK`, or what is installed here; ``RUNNEL_RELAY=off`` carries nothing for
        others; `RUNNEL_CATCH_UP` is one of `CATCH_UPS`. A `host` of "none" listens nowhere.

        Raises:
            ConfigError: a value out of range.
        """
        chosen = default_home(os.environ) if home is None else home
        folder = chosen.expanduser().absolute()
        return cls(
            home=folder,
            identity_path=folder / "identity.key",
            listen_host=host,
            listen_port=port,
            announce=tuple(announce),
            relay=_switch(RELAY_VARIABLE),
            codec_threads=threads,
            log_level=os.environ.get(LOG_VARIABLE, "INFO").upper(),
            network=network or os.environ.get(NETWORK_VARIABLE, "auto"),
            catch_up=os.environ.get(CATCH_UP_VARIABLE, "auto"),
        )

    @property
    def max_upload_mbit(self) -> float | None:
        """The cap in Mbit/s, None if there is none."""
        return None if math.isinf(self.max_upload_bits_s) else self.max_upload_bits_s / 1e6

    def sending(self, max_upload: str | None) -> Self:
        """With a cap on what is sent, such as "2 Mbit/s"; "" and None for none.

        Raises:
            ConfigError: not such a rate.
        """
        if not max_upload:
            return self
        return replace(self, max_upload_bits_s=parse_rate("max upload", max_upload))

    def catching_up(self, how: str | None) -> Self:
        """With one of `CATCH_UPS`; "" and None for what it is.

        Raises:
            ConfigError: another word.
        """
        return replace(self, catch_up=how) if how else self

    def serving(self, metrics: str | int | None) -> Self:
        """With figures for monitoring at a port of this machine, or "HOST:PORT"; "" and None for none.

        Raises:
            ConfigError: not such an address.
        """
        if metrics in {None, ""}:
            return self
        return replace(self, metrics=MetricsAddress.parse(metrics))

    def run_folder(self, name: str, run_id: bytes) -> Path:
        """Where the state of a run lives: ``home/runs/NAME-XXXXXXXX``."""
        return self.home / "runs" / f"{name}-{run_id[:4].hex()}"

    def prepare(self) -> None:
        """Makes the home folder, mode 0700, and tries to write into it; leaves nothing else there.

        Raises:
            ConfigError: the host is no address of this machine.
            InputFileError: there is a folder where the key file should be.
            StorageError: the home cannot be made or written to.
        """
        _check_host(self.listen_host)
        if self.identity_path.is_dir():
            raise InputFileError(
                f"{self.identity_path} is a folder, expected a key file: put your key file there, or"
                " move the folder away and a new key is made"
            )
        trial = part_beside(self.home / "trial")
        try:
            make_folder(self.home, mode=0o700)
            write_new(trial, b"trial")  # a full disk may still take an empty file
            remove(trial)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StorageError(
                f"{self.home} cannot be written to ({reason}), expected a folder of yours: choose"
                f" another one with --home or {HOME_VARIABLE}"
            ) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchPlan:
    """What one command starts: a new run from `spec`, or a part in the run of `invite`.

    `base` is a checkpoint whose parameters a new run starts from; of a run of shared seeds that is joined, the
    one that it began with. `source` is where this machine has a model of the transformers library, if not
    where the run says.

    Raises:
        ConfigError: neither or both are given, or a run would start that nobody can join.
    """

    machine: MachineConfig
    spec: RunSpec | None = None
    invite: Invite | None = None
    base: Path | None = None
    source: str = ""

    def __post_init__(self) -> None:
        """Checks that it is clear what to start."""
        if (self.spec is None) == (self.invite is None):
            raise ConfigError("expected either a run file to launch or an invite to join")
        if self.spec is not None and self.machine.dials_only:
            raise ConfigError(
                f"host is {NOWHERE!r}, where nobody could join the run: launch it where others can"
                " reach it"
            )


def default_home(environ: Mapping[str, str], *, platform: str = sys.platform) -> Path:
    """`RUNNEL_HOME`, or ``runnel`` in the platform's folder for a user's data.

    Relative paths in ``XDG_DATA_HOME`` are ignored, as its specification asks.

    Raises:
        ConfigError: none of the variables that name the user's folder is set.
    """
    if chosen := environ.get(HOME_VARIABLE):
        return Path(chosen)
    xdg = environ.get("XDG_DATA_HOME", "")
    if Path(xdg).is_absolute():
        return Path(xdg) / "runnel"
    variable, shared = _DATA_FOLDERS.get(platform, ("HOME", ".local/share"))
    user = environ.get(variable, "")
    if not Path(user).is_absolute():
        raise ConfigError(
            f"{variable} is {user!r}, expected the path of your folder: set {HOME_VARIABLE} or use"
            " --home"
        )
    return Path(user) / shared / "runnel"


def _switch(name: str) -> bool:
    value = os.environ.get(name, "on").lower()
    if value not in ("on", "off"):
        raise ConfigError(f"{name} is {value!r}, expected on or off: set it to one of them")
    return value == "on"


def _check_host(host: str) -> None:
    """Binds any port there: only the addresses of this machine can be bound."""
    if host == NOWHERE:
        return
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        raise ConfigError(
            f"host is {host!r}, which cannot be listened on ({(error.strerror or '').lower()}),"
            f" expected an IP address of this machine: use another --host, {ANY_HOST} for all of them"
            " or 127.0.0.1 for this machine only; --announce names one that others shall use"
        ) from None


def _check_ip(name: str, host: str) -> None:
    try:
        ipaddress.ip_address(host if isinstance(host, str) else "")  # a number would be an address
    except ValueError:
        raise ConfigError(
            f"{name} is {host!r}, expected an IP address of this machine: use"
            " 0.0.0.0 for all of them or 127.0.0.1 for this machine only"
        ) from None


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
