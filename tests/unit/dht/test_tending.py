"""The first look at a network: what is said when none of the known addresses leads anywhere."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial

import pytest

from runnel.dht.connections import RefusalError
from runnel.dht.dialling import Dialler
from runnel.dht.identity import null_peer_id
from runnel.dht.multiaddr import PeerAddress
from runnel.dht.peer_cache import PeerCache
from runnel.dht.tending import Tending
from runnel.dht.virtual_loop import run_virtual
from runnel.errors import NetworkError
from runnel.types import PeerId


class Nobody:
    """Connections of a machine on which nobody listens; implements `Connections`."""

    async def identify(self, *, deadline: float) -> tuple[PeerId, list[str]]:
        return null_peer_id(0), []

    async def connect(self, peer: PeerId, addresses: Iterable[str], *, deadline: float) -> None:
        [address] = addresses
        _, _, ip, _, port = address.split("/")
        refused = f"dial tcp4 {ip}:{port}: connect: connection refused"
        raise RefusalError(f"failed to dial X: all dials failed * [{address}] {refused}")

    async def connected_peers(self, *, deadline: float) -> list[PeerId]:
        return []

    async def find_addresses(self, peer: PeerId, *, deadline: float) -> list[str]:
        return []


async def nobody_joins(peers: Iterable[PeerId], *, deadline: float) -> set[PeerId]:
    return set()


async def begin(count: int, *, allow_alone: bool) -> None:
    known = [PeerAddress(f"/ip4/127.0.0.1/tcp/{4100 + i}", null_peer_id(i)) for i in range(count)]
    dialler = Dialler(Nobody(), nobody_joins, bootstrap=known, cache=PeerCache(None), timeout_s=1.0)
    tending = Tending(Nobody(), dialler, lambda *_: None)
    try:
        await tending.begin(allow_alone=allow_alone)
    finally:
        await tending.aclose()


def test_some_of_many_addresses_are_named_once_and_the_others_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "runnel")
    run_virtual(partial(begin, 12, allow_alone=True))
    [line] = caplog.messages
    assert line.startswith("none of 12 addresses can be joined: /ip4/127.0.0.1/tcp/4100/p2p/")
    assert "; and 9 more; starting alone" in line
    assert [line.count(str(port)) for port in (4100, 4101, 4102, 4103)] == [1, 1, 1, 0]
    assert len(line) < 600


def test_all_of_few_addresses_are_named() -> None:
    with pytest.raises(NetworkError, match=r"none of 3 addresses .*/4102/.*; is one of these"):
        run_virtual(partial(begin, 3, allow_alone=False))
