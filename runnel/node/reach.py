"""How this peer and the members reach each other: watched, told to status and journal, explained to people."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runnel.dht.middle import Middle
from runnel.dht.outside import Outside
from runnel.dht.routes import Route
from runnel.errors import NetworkError
from runnel.node.events import Event, PeerReached, PeerWarned
from runnel.types import PeerId, short

logger = logging.getLogger(__name__)

LOOK_S = 3.0
_PATIENCE = 3
"""Looks in a row after which a member without a connection counts as not reached."""

DIRECTLY, NOT_REACHED = "directly", "in no way"


class ReachWatch:
    """Looks at the connections to members; `note` takes events, `tell` what status shows."""

    def __init__(
        self,
        middle: Middle,
        members: Callable[[], Sequence[PeerId]],
        *,
        port: int,
        note: Callable[[Event], None],
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        """`members` are those of the newest view without this peer; `port` is 0 if it listens nowhere."""
        self._middle, self._members, self._port = middle, members, port
        self._note, self._tell = note, tell
        self._ways: dict[PeerId, str] = {}
        self._missed: dict[PeerId, int] = {}
        self._explained = ""

    async def run(self) -> None:
        """Goes on for ever."""
        while True:
            try:
                self.look(await self._middle.look())
            except (NetworkError, TimeoutError) as error:
                logger.debug("looking at connections: %s", str(error) or "no answer in time")
            await asyncio.sleep(LOOK_S)

    def look(self, known: Mapping[PeerId, Route]) -> None:
        """Compares with the last look."""
        members = self._members()
        before, self._ways = self._ways, {}
        for peer in members:
            way = self._way(peer, known.get(peer))
            if way is None:
                way = before.get(peer)
            if way is not None:
                self._ways[peer] = way
                if way != before.get(peer, DIRECTLY):
                    self._note(PeerReached(unix_s=0.0, peer=short(peer), way=way))
        self._missed = {peer: n for peer, n in self._missed.items() if peer in self._ways}
        self._explain()
        self._tell(self.describe())

    def describe(self) -> dict[str, Any]:
        """What `runnel status --json` shows."""
        return {
            "outside": self._middle.outside.value,
            "helpers": [short(peer) for peer in self._middle.helpers()],
            "carried_bytes": self._middle.carried_bytes,
            "ways": {short(peer): way for peer, way in sorted(self._ways.items())},
        }

    def _way(self, peer: PeerId, route: Route | None) -> str | None:
        """How a member is reached; None if that is not clear yet."""
        if route is not None:
            self._missed[peer] = 0
            return DIRECTLY if route.relay is None else f"through {short(route.relay)}"
        self._missed[peer] = self._missed.get(peer, 0) + 1
        return NOT_REACHED if self._missed[peer] >= _PATIENCE else None

    def _explain(self) -> None:
        """Says, when it changes, what somebody behind a router should know."""
        text = explanation(self._middle.outside, self._port, self._middle.helpers())
        if text and text != self._explained:
            self._note(PeerWarned(unix_s=0.0, text=text))
        if text or self._middle.outside is Outside.ALL:
            self._explained = text


def explanation(outside: Outside, port: int, helpers: Sequence[PeerId]) -> str:
    """What to tell a person about being reached; "" if there is nothing to do. `port` 0: on purpose."""
    if outside is not Outside.NONE:
        return ""
    through = " or ".join(short(peer) for peer in helpers)
    way = (
        f"others reach it over its own connections, or through {through}"
        if helpers
        else "others reach it over its own connections only, as no member that can be reached from"
        " outside is there to help"
    )
    if not port:
        return "" if helpers else f"this peer listens nowhere: {way}; leave out --host none"
    return (
        f"nobody can open connections to this peer at TCP port {port}: {way}; to be reached directly,"
        f" forward that port in your router and start with --port {port}"
    )
