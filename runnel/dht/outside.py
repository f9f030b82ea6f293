"""What others say about reaching this peer, and what that means. Asks; decides nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING

from runnel.dht.reachability import Sighting, ask_reach
from runnel.types import PeerId

if TYPE_CHECKING:
    from runnel.protocols import Transport

AGAIN_S = 120.0
"""How often the same peer is asked."""

MAX_ASKED = 3
"""Peers that are asked at a time."""

_MAX_KEPT = 8


class Outside(Enum):
    """Who can open connections to this peer."""

    UNKNOWN = "unknown"
    ALL = "all"
    SOME = "some"
    NONE = "none"


class OutsideView:
    """The newest answers of peers that were asked whether they can reach us."""

    def __init__(self, transport: Transport, port: int) -> None:
        """`port` is the TCP port to be reached at; 0 if this peer listens nowhere."""
        self._transport, self._port = transport, port
        self._said: dict[PeerId, Sighting] = {}
        self._asked: dict[PeerId, float] = {}

    @property
    def outside(self) -> Outside:
        """What the answers come to."""
        if not self._port:
            return Outside.NONE
        reached = {sighting.reached for sighting in self._said.values()}
        if not reached:
            return Outside.UNKNOWN
        return (
            Outside.SOME if len(reached) > 1 else Outside.ALL if reached == {True} else Outside.NONE
        )

    def addresses(self) -> list[str]:
        """Where others reached us, as multiaddresses."""
        hosts = dict.fromkeys(said.host for said in self._said.values() if said.reached)
        return [f"/ip{6 if ':' in host else 4}/{host}/tcp/{self._port}" for host in hosts]

    async def ask(self, peers: Iterable[PeerId]) -> None:
        """Asks a few of `peers` who are connected to us directly, if they were not asked lately."""
        now = asyncio.get_running_loop().time()
        present = list(peers)
        self._asked = {peer: at for peer, at in self._asked.items() if now - at < AGAIN_S}
        due = (
            [peer for peer in present if peer not in self._asked][:MAX_ASKED] if self._port else []
        )
        self._asked.update(dict.fromkeys(due, now))
        answers = await asyncio.gather(
            *(ask_reach(self._transport, peer, self._port) for peer in due)
        )
        for peer, said in zip(due, answers, strict=True):
            self._said.pop(peer, None)
            if said is not None:
                self._said[peer] = said
        while len(self._said) > _MAX_KEPT:
            del self._said[next(iter(self._said))]
