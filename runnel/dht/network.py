"""What a peer's network is, whatever carries it, and what it is started with."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runnel.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runnel.dht.middle import Middle
    from runnel.protocols import PeerDirectory, Transport
    from runnel.types import PeerId

_NEVER_TOGETHER = {"hivemind", "libp2p"}
"""Both describe libp2p's messages to protobuf under the same names: the second import fails."""

_promised: Counter[str] = Counter()
"""Which of them networks of this process import, perhaps later: as imports are, for good and of the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSettings:
    """How a peer takes part in the network.

    Attributes:
        identity_path: this peer's key file.
        listen_host: IP address to listen on; 0.0.0.0 is all of them.
        port: TCP port; 0 chooses a free one, and keeps it while this network lives.
        bootstrap: multiaddresses of peers to join, each with ``/p2p/`` and a peer id at its end.
        cache_path: file in which peers seen are kept, for when no bootstrap answers; None for none.
        announce: multiaddresses to tell others instead of those found, for fixed forwarded ports.
        startup_timeout_s: until the daemon must answer.
        dial_timeout_s: until an address counts as unreachable.
        allow_alone: start even if no address answers, and go on trying in the background.
        port_mapping: ask the router to forward the port (UPnP, NAT-PMP).
        relay: carry bytes for peers of the run that cannot meet.
        max_upload_bits_s: a cap on what this peer sends.
        dial_out: listen nowhere: others talk to this peer over connections that it opens.
    """

    identity_path: Path
    listen_host: str = "0.0.0.0"  # noqa: S104 - a peer is there to be reached
    port: int = 0
    bootstrap: tuple[str, ...] = ()
    cache_path: Path | None = None
    announce: tuple[str, ...] = ()
    startup_timeout_s: float = 20.0
    dial_timeout_s: float = 5.0
    allow_alone: bool = False
    port_mapping: bool = False
    relay: bool = True
    dial_out: bool = False
    max_upload_bits_s: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port is {self.port}; expected 0 to 65535 (0: a free one)")
        if self.startup_timeout_s <= 0 or self.dial_timeout_s <= 0:
            raise ConfigError(
                f"startup_timeout_s is {self.startup_timeout_s}, dial_timeout_s "
                f"{self.dial_timeout_s}; expected more than 0 s"
            )


class Network(Protocol):
    """One peer's whole network: started, joined to others, and kept so until it is closed."""

    @property
    def transport(self) -> Transport:
        """Streams to and from peers."""
        ...

    @property
    def directory(self) -> PeerDirectory:
        """Where peers are found."""
        ...

    @property
    def port(self) -> int:
        """The TCP port on which this peer listens."""
        ...

    @property
    def middle(self) -> Middle | None:
        """What helps peers that cannot meet; None where the network has nothing of the kind."""
        ...

    def addresses(self) -> list[str]:
        """Multiaddresses at which this peer believes to be reachable, with its id; the newest known."""
        ...

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Notes where `peer` may be reached; see `runnel.dht.address_book.AddressBook`."""
        ...

    async def connect(self, address: str, *, timeout_s: float = 10.0) -> None:
        """Connects to the peer at `address` and makes it a neighbour in the directory.

        Raises:
            ConfigError: not a multiaddress with a peer id.
            NetworkError: the address and the step that failed.
        """
        ...

    async def aclose(self) -> None:
        """Closes everything in a few seconds at most. Idempotent."""
        ...


def require_alone(library: str) -> None:
    """Checks, before `library` is imported, that the one it does not live beside is not here.

    Raises:
        ConfigError: it is; a process has one kind of network.
    """
    for other in _NEVER_TOGETHER - {library}:
        if other in sys.modules or _promised[other]:
            raise ConfigError(
                f"this process has imported {other}, beside which {library} cannot be imported: use"
                " a process of its own for each kind of network"
            )


def promise(library: str) -> None:
    """Takes this process for networks that import `library`, now or later. Raises as `require_alone` does."""
    require_alone(library)
    _promised[library] += 1


def take_back(library: str) -> None:
    """A network that was promised this process has not started."""
    _promised[library] -= 1
