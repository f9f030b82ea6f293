"""Getting and staying connected: bootstrap addresses and cached peers, tried, reported, tried again."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from runnel.dht.connections import RefusalError
from runnel.errors import NetworkError
from runnel.types import PeerId

if TYPE_CHECKING:
    from runnel.dht.connections import Connections
    from runnel.dht.multiaddr import PeerAddress
    from runnel.dht.peer_cache import PeerCache

_log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 5.0  # as long as the daemon itself refuses to dial an address that failed
MAX_BACKOFF_S = 300.0

_STEPS = (  # what a reason of the daemon, or of libp2p for Python, contains; what a person should read
    ("no such host", "resolving the name"),
    ("lookup", "resolving the name"),
    ("peer id mismatch", "checking the identity: another peer lives there"),
    ("received pubkey", "checking the identity: another peer lives there"),
    ("closed during read", "securing the connection: what listens there is no peer"),
    ("reset by peer", "securing the connection: what listens there is no peer"),
    ("negotiate security", "securing the connection: what listens there is no peer"),
    ("dial backoff", "connecting: it failed a moment ago"),
    ("refused", "connecting: nothing listens there"),
    ("unreachable", "connecting: no route"),
    ("i/o timeout", "connecting: no answer"),
    ("deadline exceeded", "connecting: no answer"),
)

_DIALLED = re.compile(r"\bdial \w+ \S+: ")
"""In a reason: the address, which stands before it already."""


class Join(Protocol):
    """How peers become neighbours in the directory; gives those who answered."""

    def __call__(self, peers: Iterable[PeerId], *, deadline: float) -> Awaitable[set[PeerId]]:
        """Whoever does not answer by `deadline` is left out."""
        ...


@dataclass(slots=True)
class _Attempts:
    """When an address that failed is due again."""

    due_s: float = 0.0
    backoff_s: float = FIRST_BACKOFF_S


class Dialler:
    """Dials the addresses that a peer knows; those that fail less and less often."""

    def __init__(
        self,
        connections: Connections,
        join: Join,
        *,
        bootstrap: Sequence[PeerAddress],
        cache: PeerCache,
        timeout_s: float,
    ) -> None:
        self._connections = connections
        self._join = join
        self._bootstrap = tuple(dict.fromkeys(bootstrap))
        self._cache = cache
        self._timeout_s = timeout_s
        self._failed: dict[PeerAddress, _Attempts] = {}
        self._joined: set[PeerId] = set()

    @property
    def reached_any(self) -> bool:
        """Whether any peer was joined at the last look."""
        return bool(self._joined)

    def known(self) -> Mapping[PeerId, Sequence[str]]:
        """By peer all addresses there are to dial, with its id."""
        known: dict[PeerId, list[str]] = {}
        for one in dict.fromkeys((*self._bootstrap, *self._cache.addresses)):
            known.setdefault(one.peer, []).append(str(one))
        return known

    async def note(self, seen: Iterable[PeerAddress]) -> None:
        """Keeps addresses of connected peers for later starts; writes them in another thread."""
        await asyncio.get_running_loop().run_in_executor(None, self._cache.add, tuple(seen))

    async def dial_all(self, *, again: bool = False) -> list[str]:
        """Dials what is due: bootstraps that are not connected, and cached peers if nobody is.

        Args:
            again: all of them now, connected or not: the daemon has forgotten everything.

        Returns:
            One line for each address that failed.

        Raises:
            NetworkError: the daemon does not say who is connected.
            TimeoutError: it does not answer.
        """
        loop = asyncio.get_running_loop()
        if again:
            self._joined.clear()
            self._failed.clear()
        else:
            connected = await self._connections.connected_peers(
                deadline=loop.time() + self._timeout_s
            )
            self._joined &= set(connected)
        wanted = [one for one in self._bootstrap if one.peer not in self._joined]
        if again or not self._joined:
            wanted.extend(one for one in self._cache.addresses if one not in wanted)
        now_s = loop.time()
        due = [one for one in wanted if self._attempts(one).due_s <= now_s]
        return [line for line in await asyncio.gather(*map(self._try, due)) if line]

    async def dial(self, address: PeerAddress, *, timeout_s: float) -> None:
        """Connects to `address` and joins the directory through it.

        Raises:
            NetworkError: the address and the step that failed.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            await self._connections.connect(address.peer, [address.address], deadline=deadline)
        except RefusalError as error:
            raise NetworkError(f"{address}: {_step(str(error), address.address)}") from error
        except TimeoutError:
            raise NetworkError(f"{address}: connecting: no answer in {timeout_s:g} s") from None
        if address.peer not in await self._join([address.peer], deadline=deadline):
            raise NetworkError(
                f"{address}: joining the directory: connected, but its directory does not answer"
            )
        self._joined.add(address.peer)

    def _attempts(self, address: PeerAddress) -> _Attempts:
        return self._failed.get(address, _Attempts())

    async def _try(self, address: PeerAddress) -> str | None:
        try:
            await self.dial(address, timeout_s=self._timeout_s)
        except NetworkError as error:
            attempts = self._attempts(address)
            attempts.due_s = asyncio.get_running_loop().time() + attempts.backoff_s
            attempts.backoff_s = min(2 * attempts.backoff_s, MAX_BACKOFF_S)
            self._failed[address] = attempts
            _log.debug("%s", error)
            return str(error)
        self._failed.pop(address, None)
        return None


def _step(reason: str, address: str) -> str:
    """What failed, in the words of a person, from the daemon's reason for one of many addresses."""
    _, found, own = reason.partition(f"[{address}] ")
    if found:
        reason = own.partition(" * [")[0]
    reason = _DIALLED.sub("", reason)
    for sign, step in _STEPS:
        if sign in reason:
            return f"{step} ({reason})"
    return f"connecting: {reason}"
