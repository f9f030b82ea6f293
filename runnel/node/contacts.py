"""Whom to talk to: members, and peers of the run that were heard or found lately. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from runnel.hashing import digest
from runnel.node.membership import greeting_s
from runnel.node.protocol_state import ProtocolState
from runnel.types import PeerId

NEAR_S = 10.0
"""How long a peer that was heard still counts as near, where members greet each other each second."""
_MAX_CONTACTS = 256
_MAX_SEEDS = 64
_MAX_GUESTS = 64
"""To so many peers that are no members everything is sent: whoever wants in must hear it."""


class Contacts:
    """Peers of the run outside the view, by the time they were last heard."""

    def __init__(self, state: ProtocolState) -> None:
        self._state = state
        self._heard: dict[PeerId, float] = {}
        self._seeds: set[PeerId] = set()
        self._turn = 0

    def heard(self, peer: PeerId, now: float) -> None:
        """Notes that a peer of the run spoke to us."""
        self._heard[peer] = now
        while len(self._heard) > _MAX_CONTACTS:
            del self._heard[min(self._heard, key=lambda known: self._heard[known])]

    def seed(self, peers: Iterable[PeerId]) -> None:
        """Notes peers that a directory or an invite named, and speaks to them until it names others.

        Anybody may write into the directory: of many another part has its turn each time.
        """
        self._turn += 1
        turn = self._turn.to_bytes(8, "big")
        drawn = sorted({*peers} - {self._state.me}, key=lambda peer: digest(turn, peer))
        self._seeds = set(drawn[:_MAX_SEEDS])

    def others(self) -> list[PeerId]:
        """The members of the newest view without this peer."""
        state = self._state
        return [peer for peer in state.chain.head.view if peer != state.me]

    def belongs(self, peer: PeerId) -> bool:
        """Whether a peer is a member, or was one of a round that is still open."""
        state = self._state
        return peer in state.chain.head.view or any(
            peer in place.view for place in state.rounds.values()
        )

    def near(self, now: float, *, within_s: float = NEAR_S) -> tuple[PeerId, ...]:
        """Peers heard just now, sorted; within so many seconds or, among many, greetings."""
        since = now - within_s * greeting_s(len(self._state.chain.head.view))
        near = {peer for peer, at in self._heard.items() if at > since}
        return tuple(sorted(near - {self._state.me}))

    def audience(self, now: float) -> tuple[PeerId, ...]:
        """All whom a message to everybody concerns: members of open rounds, and who is near."""
        state = self._state
        peers = {*state.chain.head.view, *self._seeds}
        for place in state.rounds.values():
            peers.update(place.view)
        guests = sorted(set(self.near(now)) - peers, key=self._heard.__getitem__)
        return tuple(sorted({*peers, *guests[-_MAX_GUESTS:]} - {state.me}))
