"""Shared vocabulary: identifiers and verdicts. Values only, no behaviour beyond formatting."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NewType

PeerId = NewType("PeerId", bytes)
"""38 bytes: the libp2p identity multihash of an Ed25519 public key, ``00 24 08 01 12 20 || public key``."""

Digest = NewType("Digest", bytes)
"""32 bytes: a blake3-256 hash."""

PEER_ID_PREFIX = b"\x00\x24\x08\x01\x12\x20"
PEER_ID_BYTES = len(PEER_ID_PREFIX) + 32
DIGEST_BYTES = 32


def short(identifier: bytes) -> str:
    """The eight characters by which logs and screens name a peer or a digest."""
    if len(identifier) == PEER_ID_BYTES and identifier.startswith(PEER_ID_PREFIX):
        identifier = identifier[len(PEER_ID_PREFIX) :]
    return identifier[:4].hex()


class Decision(Enum):
    """What a check says of something a peer sent."""

    ACCEPT = "accept"
    REJECT = "reject"
    ABSTAIN = "abstain"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision with the name of the check that made it and the reason a person can read."""

    decision: Decision
    check: str
    reason: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the check let the message or vector pass."""
        return self.decision is Decision.ACCEPT
