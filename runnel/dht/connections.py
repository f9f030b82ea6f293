"""What every network can be asked for: connections to peers, and where peers and we can be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from runnel.errors import NetworkError, RunnelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runnel.types import PeerId


class RefusalError(RunnelError):
    """A peer could not be reached; the message is the reason."""

    exit_code = NetworkError.exit_code


class Connections(Protocol):
    """The connections of one peer. Deadlines are loop times in seconds.

    All methods raise `NetworkError` if the network itself does not answer sensibly, and TimeoutError
    at the deadline.
    """

    async def identify(self, *, deadline: float) -> tuple[PeerId, list[str]]:
        """Our peer id and the addresses at which we believe to be reachable."""
        ...

    async def connect(self, peer: PeerId, addresses: Iterable[str], *, deadline: float) -> None:
        """Connects to `peer` at one of `addresses`, unless it is connected.

        Raises:
            RefusalError: it cannot be reached.
            ValueError: an address is not a multiaddress.
        """
        ...

    async def connected_peers(self, *, deadline: float) -> list[PeerId]:
        """Who is connected now, sorted."""
        ...

    async def find_addresses(self, peer: PeerId, *, deadline: float) -> list[str]:
        """The addresses of `peer` that are known or can be found; none if there are none."""
        ...
