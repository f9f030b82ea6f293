"""What stands between peers, and ways around it: relay, questions about reachability, detours, shortcuts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from runnel.dht.circuits import is_circuit, through
from runnel.dht.outside import Outside, OutsideView
from runnel.dht.punching import Puncher
from runnel.dht.reachability import ReachService
from runnel.dht.relay import Relay
from runnel.dht.relay_rules import RelayRules
from runnel.dht.routes import DIRECT, Route, detours, endpoint, routes
from runnel.dht.shortcuts import Shortcuts
from runnel.types import PeerId

if TYPE_CHECKING:
    from runnel.dht.daemon import Daemon
    from runnel.dht.daemon_transport import HivemindTransport

_log = logging.getLogger(__name__)

MAX_BORROWED = 3
"""Peers through whom others are told to reach this one, if it cannot be reached by itself."""

_CONTROL_S = 5.0


class Middle:
    """One peer's part in reaching and being reached.

    `belongs` says who is of the run: for them this peer carries bytes, them it asks first for help.
    """

    def __init__(self, daemon: Daemon, transport: HivemindTransport, *, listens: bool) -> None:
        control = daemon.control
        self._control, self._transport = control, transport
        self._me = daemon.identity.peer_id
        self._rules = RelayRules()
        self._relay = Relay(control, self._rules, transport.throttle)
        self._outside = OutsideView(transport, daemon.port if listens else 0)
        self._own: Sequence[str] = ()
        self._puncher = Puncher(
            control,
            transport,
            daemon.port if listens else 0,
            knows=lambda peer: self._rules.knows(peer),
            neighbours=lambda: self._neighbours(self._known),
        )
        self._reach = ReachService(control, transport, self._puncher.met)
        self._shortcuts = Shortcuts(
            control,
            addresses=transport.addresses_of,
            ours=lambda: self._own,
            meet=self._puncher.meet,
        )
        self._known: Mapping[PeerId, Route] = {}

    async def serve(self, *, relay: bool) -> None:
        """Begins to help others (carrying their bytes only if `relay`), and to accept help."""
        await self._reach.serve()
        await self._puncher.serve()
        if relay:
            await self._relay.serve(self._transport)
        self._transport.detour_by(self._detours)

    async def aclose(self) -> None:
        """Ends what this peer passes on for itself. Idempotent."""
        await self._puncher.aclose()

    @property
    def outside(self) -> Outside:
        """Who can open connections to this peer, as far as others have tried."""
        return self._outside.outside

    @property
    def carried_bytes(self) -> int:
        """What this peer has carried for others."""
        return self._relay.carried_bytes

    @property
    def routes(self) -> Mapping[PeerId, Route]:
        """How each connected peer was reached at the last look."""
        return self._known

    def belongs(self, test: Callable[[PeerId], bool]) -> None:
        """Sets who is of the run."""
        self._rules.knows = test

    async def look(self) -> Mapping[PeerId, Route]:
        """How each connected peer is reached now.

        Raises:
            NetworkError, TimeoutError: the daemon does not answer.
        """
        deadline = asyncio.get_running_loop().time() + _CONTROL_S
        self._known = routes(await self._control.connections(deadline=deadline))
        return self._known

    async def tend(self, own: Sequence[str]) -> None:
        """Asks whether we are reached, and tries direct ways; `own` is where the daemon listens.

        Raises:
            NetworkError, TimeoutError: the daemon does not answer.
        """
        self._own = own
        known = await self.look()
        await self._outside.ask(self._neighbours(known))
        await self._shortcuts.look(known)

    def tried_addresses(self) -> list[str]:
        """Where others have reached us."""
        return self._outside.addresses()

    def helpers(self) -> list[PeerId]:
        """Peers through whom others can reach us, if they cannot do so without."""
        if self.outside in (Outside.UNKNOWN, Outside.ALL):
            return []
        return [peer for peer in self._neighbours(self._known) if self._home(peer)][:MAX_BORROWED]

    def borrowed_addresses(self) -> list[str]:
        """Addresses that lead to us through `helpers`."""
        return [through(peer, self._home(peer)) for peer in self.helpers()]

    def _neighbours(self, known: Mapping[PeerId, Route]) -> list[PeerId]:
        """Who is connected directly, peers of the run first."""
        direct = [peer for peer, route in known.items() if route is DIRECT]
        return sorted(direct, key=lambda peer: (not self._rules.knows(peer), peer))

    def _home(self, peer: PeerId) -> str:
        """A direct address of `peer` that strangers could use; "" if none is known."""
        usable = (
            a for a in self._transport.addresses_of(peer) if not is_circuit(a) and endpoint(a)
        )
        return next(usable, "")

    async def _detours(self, peer: PeerId, deadline: float) -> Sequence[str]:
        known = routes(await self._control.connections(deadline=deadline))
        return detours(self._me, peer, known, filter(self._rules.knows, known))
