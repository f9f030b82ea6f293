"""Commitments and records: what members promise and what the chain says. Values with canonical bytes.

Everything here is identical on all members, so it is encoded as canonical arrays and named by hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

from runnel.dht.wire import pack
from runnel.errors import PeerError
from runnel.hashing import digest
from runnel.node.commitments import Commitment, JoinRequest
from runnel.node.fields import (
    MAX_MEMBERS,
    blob,
    digest_of,
    integer,
    items,
    peer_id,
    row,
)
from runnel.node.vote_fields import instance_from_wire, vote_from_wire, vote_to_wire
from runnel.types import Digest, PeerId

__all__ = [
    "FULL_PROGRESS",
    "MAX_MEMBERS",
    "Commitment",
    "JoinRequest",
    "Record",
    "RecordKind",
    "Share",
    "SliceResult",
    "blob",
    "digest_of",
    "instance_from_wire",
    "integer",
    "items",
    "peer_id",
    "row",
    "set_value",
    "vote_from_wire",
    "vote_to_wire",
]

FULL_PROGRESS = 1_000_000
"""`progress` of a run that has reached its end."""


class RecordKind(IntEnum):
    """How a record came to be."""

    GENESIS = 0
    ROUND = 1
    ABORT = 2
    BRANCH = 3


@dataclass(frozen=True, slots=True)
class Share:
    """A commitment of the decided set, as the record keeps it."""

    peer: PeerId
    commitment: Digest
    tokens: int


@dataclass(frozen=True, slots=True, order=True)
class SliceResult:
    """One aggregated slice: the digest of its only encoding, who made it, whose payloads are in it.

    `included` are indexes into the record's shares, ascending.
    """

    root: Digest
    reducer: PeerId
    included: tuple[int, ...]

    def to_wire(self) -> list[Any]:
        """Fields in wire order."""
        return [self.root, self.reducer, list(self.included)]

    @staticmethod
    def from_wire(fields: Any) -> SliceResult:
        """Reads fields in wire order; PeerError for anything malformed."""
        root, reducer, included = row(fields, 3)
        indexes = tuple(integer(i) for i in items(included))
        if not indexes or any(i < 0 or i >= MAX_MEMBERS for i in indexes):
            raise PeerError("malformed", "a result must include at least one sender")
        if list(indexes) != sorted(set(indexes)):
            raise PeerError("malformed", "senders of a result must ascend")
        return SliceResult(digest_of(root), peer_id(reducer), indexes)


@dataclass(frozen=True)
class Record:
    """One link of the chain. Its certificate is kept beside it; its hash excludes it."""

    number: int
    parent: Digest
    kind: RecordKind
    shares: tuple[Share, ...]
    slices: tuple[SliceResult, ...]
    state_root: Digest
    view: tuple[PeerId, ...]
    unproven: tuple[PeerId, ...]
    tokens: int
    progress: int
    finished: tuple[int, ...]
    listed: int = 0
    nonce: bytes = b""

    @cached_property
    def hash(self) -> Digest:
        """The record's name."""
        return digest(self.encoded)

    @cached_property
    def encoded(self) -> bytes:
        """The record's canonical bytes."""
        return pack(self.to_wire())

    @property
    def closing(self) -> bool:
        """Whether the rounds that derive from this record are the run's last ones."""
        return self.progress >= FULL_PROGRESS

    @property
    def contributors(self) -> tuple[PeerId, ...]:
        """Peers whose payload is in at least one slice."""
        used = {index for piece in self.slices for index in piece.included}
        return tuple(share.peer for i, share in enumerate(self.shares) if i in used)

    def share_of(self, peer: PeerId) -> int:
        """Index of `peer`'s share, or -1."""
        return next((i for i, share in enumerate(self.shares) if share.peer == peer), -1)

    def to_wire(self) -> list[Any]:
        """Fields in wire order."""
        return [
            self.number,
            self.parent,
            int(self.kind),
            [[s.peer, s.commitment, s.tokens] for s in self.shares],
            [piece.to_wire() for piece in self.slices],
            self.state_root,
            list(self.view),
            list(self.unproven),
            self.tokens,
            self.progress,
            list(self.finished),
            self.listed,
            self.nonce,
        ]

    @staticmethod
    def from_wire(fields: Any) -> Record:
        """Reads fields in wire order; PeerError for anything malformed."""
        (
            number,
            parent,
            kind,
            shares,
            slices,
            state,
            view,
            unproven,
            tokens,
            progress,
            done,
            listed,
            nonce,
        ) = row(fields, 13)
        if integer(kind) not in tuple(RecordKind):
            raise PeerError("malformed", f"record kind {kind!r}")
        return Record(
            integer(number, low=-1),
            digest_of(parent, optional=True),
            RecordKind(kind),
            tuple(
                Share(peer_id(p), digest_of(c), integer(t))
                for p, c, t in (row(share, 3) for share in items(shares))
            ),
            tuple(SliceResult.from_wire(piece) for piece in items(slices)),
            digest_of(state, optional=True),
            tuple(peer_id(p) for p in items(view)),
            tuple(peer_id(p) for p in items(unproven)),
            integer(tokens),
            integer(progress),
            tuple(integer(f) for f in items(done, limit=4096)),
            integer(listed),
            blob(nonce, 32),
        )


def set_value(commitments: Sequence[Digest]) -> Digest:
    """The digest that members vote on to decide a set of commitments."""
    return digest(b"set", pack(list(commitments)))
