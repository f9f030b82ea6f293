"""Control messages between members, one class each. Values only; `messages` gives them bytes.

The transport proves who sent a message; what must hold beyond one hop (commitments, votes, proposals)
carries a signature of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from runnel.node.certificates import Certificate
from runnel.node.records import Commitment, Record, SliceResult
from runnel.types import Digest, PeerId
from runnel.verification.votes import Lock, Proposal, Vote


@dataclass(frozen=True, slots=True)
class Hello:
    """Sent every second and after each step of the chain: the head this peer follows."""

    head: Digest
    number: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A member's commitment to a round."""

    commitment: Commitment


@dataclass(frozen=True, slots=True)
class ProposeSet:
    """A proposed set, with the commitments themselves so that nobody has to ask."""

    proposal: Proposal
    commitments: tuple[Commitment, ...]
    signature: bytes


@dataclass(frozen=True, slots=True)
class ProposeOutcome:
    """A proposed record."""

    proposal: Proposal
    record: Record
    signature: bytes


@dataclass(frozen=True, slots=True)
class Cast:
    """A vote."""

    vote: Vote


@dataclass(frozen=True, slots=True)
class SetDecided:
    """A decided set with its certificate, for those who did not see the votes."""

    commitments: tuple[Commitment, ...]
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class ResultReady:
    """A reducer has the only encoding of a slice; `size_bytes` lets receivers refuse more."""

    round: int
    base: Digest
    slice_index: int
    result: SliceResult
    size_bytes: int


@dataclass(frozen=True, slots=True)
class WantRecords:
    """Asks for what follows the newest known record of `locator`."""

    locator: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Records:
    """Consecutive records of the sender's path with their certificates."""

    records: tuple[Record, ...]
    certificates: tuple[Certificate | None, ...]


@dataclass(frozen=True, slots=True)
class Join:
    """Asks to become a member; repeated until the view says so."""

    ticket: bytes
    head: Digest
    number: int


@dataclass(frozen=True, slots=True)
class Leave:
    """Says goodbye; repeated until the view says so."""


@dataclass(frozen=True, slots=True)
class BranchCall:
    """Asks those who reach each other to go on from `parent` without the rest."""

    nonce: bytes
    parent: Digest
    group: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class BranchSign:
    """Agrees to a branch and hands over the record locked for the interrupted round, if any.

    `vote` is for the branch (see `branch_vote`); `ticket` proves that a signer outside the view of
    the head may take part.
    """

    nonce: bytes
    vote: Vote
    ticket: bytes
    lock: Lock | None
    locked: Record | None


Message = (
    Hello
    | Commit
    | ProposeSet
    | ProposeOutcome
    | Cast
    | SetDecided
    | ResultReady
    | WantRecords
    | Records
    | Join
    | Leave
    | BranchCall
    | BranchSign
)
