"""Evidence that a peer said two things where it may say one: both signed statements, for anybody to check.

Two votes in one step, two proposals in one attempt, or two commitments to one round. Honest peers have
what they signed on disk before they send it, and say the same again after a crash. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from runnel.dht.wire import pack, unpack
from runnel.errors import PeerError
from runnel.hashing import digest
from runnel.node.commitments import Commitment
from runnel.node.fields import blob, row
from runnel.node.messages import proposal_from_wire, proposal_statement, proposal_to_wire
from runnel.node.vote_fields import vote_from_wire, vote_to_wire
from runnel.types import Digest, PeerId
from runnel.verification.votes import Proposal, Step, Vote

MAX_EVIDENCE_BYTES = 1 << 16
"""Two commitments of the largest view that name as many candidates as they may."""
_VERSION = 1

Verify = Callable[[PeerId, bytes, bytes], bool]
"""Whether a peer signed a statement: author, statement, signature."""


@dataclass(frozen=True, slots=True)
class SignedProposal:
    """A proposal with its proposer's signature; what proves its lock is not part of the statement."""

    proposal: Proposal
    signature: bytes


Statement = Vote | SignedProposal | Commitment
"""What a peer signs."""


def author_of(statement: Statement) -> PeerId:
    """Who signed it."""
    match statement:
        case Vote(voter=peer) | Commitment(peer=peer):
            return peer
        case SignedProposal(proposal=proposal):
            return proposal.proposer


def place_of(statement: Statement) -> str:
    """Where its author may say one thing only."""
    match statement:
        case Vote(instance=instance, attempt=attempt, step=step):
            return f"vote/{instance.key}/{attempt}/{int(step)}"
        case SignedProposal(proposal=proposal):
            return f"proposal/{proposal.instance.key}/{proposal.attempt}"
        case Commitment(round=number, base=base):
            return f"commitment/{number}/{base.hex()}"


def round_of(statement: Statement) -> int:
    """The round it is about."""
    match statement:
        case Vote(instance=instance):
            return instance.round
        case SignedProposal(proposal=proposal):
            return proposal.instance.round
        case Commitment(round=number):
            return number


def is_signed(statement: Statement, run: bytes, verify: Verify) -> bool:
    """Whether it carries its author's signature."""
    said = _body(statement, run)
    return verify(author_of(statement), said, statement.signature)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two signed statements of one peer that exclude each other, in the order of their bytes."""

    first: Statement
    second: Statement

    @staticmethod
    def of(one: Statement, other: Statement) -> Evidence:
        """The same evidence whichever of the two came first."""
        kept = sorted(
            (without_proof(one), without_proof(other)),
            key=lambda statement: pack(_to_wire(statement)),
        )
        return Evidence(kept[0], kept[1])

    @property
    def peer(self) -> PeerId:
        """Whom it is against."""
        return author_of(self.first)

    @property
    def place(self) -> str:
        """Where it said two things."""
        return place_of(self.first)

    @property
    def round(self) -> int:
        """The round it is about."""
        return round_of(self.first)

    @property
    def what(self) -> str:
        """What it said two of, for people."""
        match self.first:
            case Vote(instance=instance, step=step):
                name = "prevotes" if step is Step.PREVOTE else "precommits"
                return f"two {name} on its {instance.kind}"
            case SignedProposal(proposal=proposal):
                return f"two proposals for its {proposal.instance.kind}"
            case Commitment():
                return "two commitments to it"

    @property
    def name(self) -> Digest:
        """The digest of its bytes."""
        return digest(self.encoded)

    @property
    def encoded(self) -> bytes:
        """Its canonical bytes."""
        return pack([_VERSION, _to_wire(self.first), _to_wire(self.second)])

    def problem(self, run: bytes, verify: Verify) -> str:
        """Why it proves nothing against its peer, or nothing. Needs the run's id and no other knowledge."""
        one, other = self.first, self.second
        if isinstance(one, Vote) and one.instance.kind == "branch":
            return "a peer may sign several branches"
        if author_of(one) != author_of(other) or place_of(one) != place_of(other):
            return "two statements of different peers or places"
        if not excludes(one, other):
            return "the same statement twice"
        if not all(is_signed(statement, run, verify) for statement in (one, other)):
            return "a statement that its peer did not sign"
        return ""


def read_evidence(data: bytes) -> Evidence:
    """Reads the bytes of evidence; see `Evidence.problem` for what it proves.

    Raises:
        PeerError: too long or malformed, or not in its only form.
    """
    version, first, second = row(unpack(data, max_bytes=MAX_EVIDENCE_BYTES), 3)
    if version != _VERSION:
        raise PeerError("version", f"evidence of version {version!r}, we read {_VERSION}")
    found = Evidence(_from_wire(first), _from_wire(second))
    if found != Evidence.of(found.first, found.second):
        raise PeerError("malformed", "evidence whose statements are not in order")
    return found


def evidence_updates(evidence: Evidence) -> dict[str, bytes | None]:
    """What to write of it."""
    return {f"evidence/{evidence.name.hex()}": evidence.encoded}


def _body(statement: Statement, run: bytes) -> bytes:
    if isinstance(statement, SignedProposal):
        return proposal_statement(run, statement.proposal)
    return statement.statement(run)


def excludes(one: Statement, other: Statement) -> bool:
    """Whether they say different things; both are of one peer and place."""
    return _body(one, b"") != _body(other, b"")


def without_proof(statement: Statement) -> Statement:
    """What its author signed of it: what proves a proposal's lock is long, and no part of that."""
    if isinstance(statement, SignedProposal):
        return replace(statement, proposal=replace(statement.proposal, proof=()))
    return statement


def _to_wire(statement: Statement) -> list[Any]:
    match statement:
        case Vote():
            return [0, vote_to_wire(statement)]
        case SignedProposal(proposal=proposal, signature=signature):
            return [1, [proposal_to_wire(proposal), signature]]
        case Commitment():
            return [2, statement.to_wire()]


def _from_wire(fields: Any) -> Statement:
    kind, body = row(fields, 2)
    if type(kind) is int and kind == 0:
        return vote_from_wire(body)
    if type(kind) is int and kind == 2:
        return Commitment.from_wire(body)
    if type(kind) is not int or kind != 1:
        raise PeerError("malformed", f"a statement of kind {kind!r}")
    proposal, signature = row(body, 2)
    return SignedProposal(proposal_from_wire(proposal), blob(signature, 64))
