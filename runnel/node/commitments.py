"""What a member promises to contribute to a round, and what it saw of the others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from runnel.dht.wire import pack
from runnel.hashing import digest
from runnel.node.fields import blob, digest_of, integer, items, number_of, peer_id, row
from runnel.node.window_facts import WindowFacts
from runnel.types import Digest, PeerId

MAX_CARRIED_BYTES = 8192
"""The largest contribution that travels in its commitment: 64 of them fit into a message."""

MAX_NORM = 1e30
"""The largest norm of a contribution: sums of 64 of them stay within float32's range."""


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """A peer that asks to become a member, and the owner's ticket that allows it."""

    peer: PeerId
    ticket: bytes


@dataclass(frozen=True)
class Commitment:
    """A member's signed promise of what it will contribute to a round, and what it saw.

    `slice_norms` are the Euclidean norms of the decoded slices; `withheld` are those that will not be
    sent this time, as the member's link is too slow (ascending); `progress` is the share of the run done
    in millionths, as this member sees it; `loss` is its mean training loss (NaN-free, 0 if none);
    `window` names what the window behind it can be computed again from, where windows are public and it
    can; `carried` is the whole contribution where the run's method makes it that small, else empty.
    """

    peer: PeerId
    round: int
    base: Digest
    payload_root: Digest
    slice_norms: tuple[float, ...]
    withheld: tuple[int, ...]
    tokens: int
    steps: int
    loss: float
    progress: int
    joins: tuple[JoinRequest, ...]
    leaves: tuple[PeerId, ...]
    unheard: tuple[PeerId, ...]
    window: WindowFacts | None = None
    carried: bytes = b""
    signature: bytes = b""

    def statement(self, run: bytes) -> bytes:
        """The bytes that the signature covers."""
        return b"runnel1" + run + b"commitment/" + self._body

    @cached_property
    def id(self) -> Digest:
        """The commitment's name: the digest of all of it but its signature."""
        return digest(self._body)

    @cached_property
    def _body(self) -> bytes:
        return pack(self.to_wire()[:-1])

    def to_wire(self) -> list[Any]:
        """Fields in wire order."""
        return [
            self.peer,
            self.round,
            self.base,
            self.payload_root,
            list(self.slice_norms),
            list(self.withheld),
            self.tokens,
            self.steps,
            self.loss,
            self.progress,
            [[join.peer, join.ticket] for join in self.joins],
            list(self.leaves),
            list(self.unheard),
            self.window.to_wire() if self.window else [],
            self.carried,
            self.signature,
        ]

    @staticmethod
    def from_wire(fields: Any) -> Commitment:
        """Reads fields in wire order.

        Raises:
            PeerError: a field is missing, of the wrong type or out of bounds.
        """
        (
            peer,
            number,
            base,
            root,
            norms,
            withheld,
            tokens,
            steps,
            loss,
            progress,
            joins,
            leaves,
            unheard,
            window,
            carried,
            sig,
        ) = row(fields, 16)
        return Commitment(
            peer_id(peer),
            integer(number),
            digest_of(base),
            digest_of(root),
            tuple(number_of(norm) for norm in items(norms)),
            tuple(integer(index) for index in items(withheld)),
            integer(tokens),
            integer(steps),
            number_of(loss),
            integer(progress),
            tuple(
                JoinRequest(peer_id(who), blob(ticket, 512))
                for who, ticket in (row(join, 2) for join in items(joins))
            ),
            tuple(peer_id(p) for p in items(leaves)),
            tuple(peer_id(p) for p in items(unheard)),
            WindowFacts.from_wire(window),
            blob(carried, MAX_CARRIED_BYTES),
            blob(sig, 64),
        )
