"""How peers are reached: directly, through another peer, or not; and ways around what is in between. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runnel.dht.circuits import is_circuit, relay_of, through
from runnel.dht.daemon_control import Connection
from runnel.dht.identity import from_base58
from runnel.hashing import digest
from runnel.types import PeerId

MAX_DETOURS = 4
"""Peers that are asked, for one connection, whether they carry it."""


@dataclass(frozen=True, slots=True)
class Route:
    """How a peer is reached: through `relay`, or directly if that is None."""

    relay: PeerId | None = None


DIRECT = Route()


def routes(connections: Iterable[Connection]) -> dict[PeerId, Route]:
    """The route to each connected peer; a direct connection counts before all others."""
    found: dict[PeerId, Route] = {}
    for one in connections:
        if not is_circuit(one.address):
            found[one.peer] = DIRECT
        elif one.peer not in found:
            relay = _relay(one.address)
            if relay is not None:
                found[one.peer] = Route(relay)
    return found


def detours(
    me: PeerId, peer: PeerId, known: Mapping[PeerId, Route], preferred: Iterable[PeerId] = ()
) -> Sequence[str]:
    """Addresses of `peer` that lead through peers who are connected to us directly.

    Those of `preferred` come first. Which of them differs from pair to pair, so that they share the
    load, and is the same for both ends.
    """
    first = set(preferred)
    pair = b"".join(sorted((bytes(me), bytes(peer))))

    def rank(relay: PeerId) -> tuple[bool, bytes]:
        return relay not in first, digest(pair, bytes(relay))

    relays = (relay for relay, route in known.items() if route is DIRECT and relay != peer)
    return [through(relay) for relay in sorted(relays, key=rank)[:MAX_DETOURS]]


def endpoint(address: str) -> tuple[str, int] | None:
    """IP address and TCP port of a direct address that strangers could use; None for all others.

    Addresses of this machine itself (loopback) and of nobody are no use to others.
    """
    words = address.split("/")
    if len(words) != 5 or words[1] not in ("ip4", "ip6") or words[3] != "tcp":
        return None
    host = ipaddress.ip_address(words[2])
    return None if host.is_loopback or host.is_unspecified else (words[2], int(words[4]))


def _relay(address: str) -> PeerId | None:
    try:
        return from_base58(relay_of(address))
    except ValueError:  # one of another kind carries it
        return None
