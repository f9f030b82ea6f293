"""Canonical bytes of control messages, and their limits. No meaning, no I/O.

A message is ``[version, type, run, fields]``; decoders raise PeerError and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from runnel.dht.wire import pack, unpack
from runnel.errors import PeerError
from runnel.node.certificates import Certificate
from runnel.node.fields import blob, digest_of, integer, items, peer_id, row
from runnel.node.message_types import (
    BranchCall,
    BranchSign,
    Cast,
    Commit,
    Hello,
    Join,
    Leave,
    Message,
    ProposeOutcome,
    ProposeSet,
    Records,
    ResultReady,
    SetDecided,
    WantRecords,
)
from runnel.node.records import (
    Commitment,
    Record,
    SliceResult,
    instance_from_wire,
    vote_from_wire,
    vote_to_wire,
)
from runnel.verification.votes import Lock, Proposal

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_RECORDS",
    "WIRE_VERSION",
    "BranchCall",
    "BranchSign",
    "Cast",
    "Commit",
    "Hello",
    "Join",
    "Leave",
    "Message",
    "ProposeOutcome",
    "ProposeSet",
    "Records",
    "ResultReady",
    "SetDecided",
    "WantRecords",
    "certificate_from_wire",
    "certificate_to_wire",
    "decode",
    "encode",
    "lock_from_wire",
    "lock_to_wire",
    "proposal_from_wire",
    "proposal_statement",
    "proposal_to_wire",
    "signed",
]

WIRE_VERSION = 2
MAX_MESSAGE_BYTES = 1 << 20
MAX_RECORDS = 64


def proposal_statement(run: bytes, proposal: Proposal) -> bytes:
    """The bytes that a proposer signs."""
    place = f"proposal/{proposal.instance.key}/{proposal.attempt}/{proposal.lock_attempt}/".encode()
    return b"runnel1" + run + place + proposal.value


def encode(run: bytes, message: Message) -> bytes:
    """The message's canonical bytes."""
    kind, fields = _ENCODERS[type(message)](message)
    return pack([WIRE_VERSION, kind, run, fields])


def decode(run: bytes, data: bytes | bytearray) -> Message:
    """Reads a message.

    Raises:
        PeerError: too long, malformed, of another version, of another run or of an unknown type.
    """
    version, kind, of_run, fields = row(unpack(bytes(data), max_bytes=MAX_MESSAGE_BYTES), 4)
    if version != WIRE_VERSION:
        raise PeerError("version", f"message of version {version!r}, we speak {WIRE_VERSION}")
    if of_run != run:
        raise PeerError("run", "message of another run")
    decoder = _DECODERS.get(kind) if type(kind) is int else None
    if decoder is None:
        raise PeerError("malformed", f"unknown message type {kind!r}")
    return decoder(fields)


def certificate_to_wire(certificate: Certificate | None) -> list[Any]:
    """Fields in wire order; empty for none."""
    if certificate is None:
        return []
    votes = [vote_to_wire(vote) for vote in certificate.votes]
    return [certificate.attempt, votes, list(certificate.tickets)]


def certificate_from_wire(fields: Any) -> Certificate | None:
    """Reads a certificate; PeerError for anything malformed."""
    if fields == []:
        return None
    attempt, votes, tickets = row(fields, 3)
    return Certificate(
        integer(attempt),
        tuple(vote_from_wire(vote) for vote in items(votes)),
        tuple(blob(ticket, 512) for ticket in items(tickets)),
    )


def lock_to_wire(lock: Lock | None) -> list[Any]:
    """Fields in wire order; empty for none."""
    if lock is None:
        return []
    return [lock.attempt, lock.value, [vote_to_wire(vote) for vote in lock.proof]]


def lock_from_wire(fields: Any) -> Lock | None:
    """Reads a lock; PeerError for anything malformed."""
    if fields == []:
        return None
    attempt, value, proof = row(fields, 3)
    return Lock(integer(attempt), digest_of(value), tuple(vote_from_wire(v) for v in items(proof)))


def proposal_to_wire(proposal: Proposal) -> list[Any]:
    """Fields in wire order."""
    instance = proposal.instance
    return [
        [instance.kind, instance.round, instance.base],
        proposal.attempt,
        proposal.value,
        proposal.proposer,
        proposal.lock_attempt,
        [vote_to_wire(vote) for vote in proposal.proof],
    ]


def proposal_from_wire(fields: Any) -> Proposal:
    """Reads a proposal; PeerError for anything malformed."""
    instance, attempt, value, proposer, lock_attempt, proof = row(fields, 6)
    return Proposal(
        instance_from_wire(instance),
        integer(attempt),
        digest_of(value),
        peer_id(proposer),
        integer(lock_attempt, low=-1),
        tuple(vote_from_wire(vote) for vote in items(proof)),
    )


def _propose_set(fields: Any) -> Message:
    proposal, commitments, signature = row(fields, 3)
    parts = tuple(Commitment.from_wire(c) for c in items(commitments))
    return ProposeSet(proposal_from_wire(proposal), parts, blob(signature, 64))


def _propose_outcome(fields: Any) -> Message:
    proposal, record, signature = row(fields, 3)
    return ProposeOutcome(
        proposal_from_wire(proposal), Record.from_wire(record), blob(signature, 64)
    )


def _set_decided(fields: Any) -> Message:
    commitments, certificate = row(fields, 2)
    proof = certificate_from_wire(certificate)
    if proof is None:
        raise PeerError("malformed", "a decided set without a certificate")
    return SetDecided(tuple(Commitment.from_wire(c) for c in items(commitments)), proof)


def _result_ready(fields: Any) -> Message:
    number, base, index, result, size = row(fields, 5)
    return ResultReady(
        integer(number),
        digest_of(base),
        integer(index),
        SliceResult.from_wire(result),
        integer(size),
    )


def _records(fields: Any) -> Message:
    pairs = [row(pair, 2) for pair in items(fields, MAX_RECORDS)]
    return Records(
        tuple(Record.from_wire(record) for record, _ in pairs),
        tuple(certificate_from_wire(certificate) for _, certificate in pairs),
    )


def _hello(fields: Any) -> Message:
    head, number = row(fields, 2)
    return Hello(digest_of(head), integer(number, low=-1))


def _join(fields: Any) -> Message:
    ticket, head, number = row(fields, 3)
    return Join(blob(ticket, 512), digest_of(head), integer(number, low=-1))


def _leave(fields: Any) -> Message:
    row(fields, 0)
    return Leave()


def _branch_call(fields: Any) -> Message:
    nonce, parent, group = row(fields, 3)
    return BranchCall(blob(nonce, 32), digest_of(parent), tuple(peer_id(p) for p in items(group)))


def _branch_sign(fields: Any) -> Message:
    nonce, vote, ticket, lock, locked = row(fields, 5)
    record = Record.from_wire(locked) if locked != [] else None
    signature = vote_from_wire(vote)
    return BranchSign(blob(nonce, 32), signature, blob(ticket, 512), lock_from_wire(lock), record)


_ENCODERS: dict[type, Callable[[Any], tuple[int, list[Any]]]] = {
    Hello: lambda m: (1, [m.head, m.number]),
    Commit: lambda m: (2, m.commitment.to_wire()),
    ProposeSet: lambda m: (
        3,
        [proposal_to_wire(m.proposal), [c.to_wire() for c in m.commitments], m.signature],
    ),
    ProposeOutcome: lambda m: (4, [proposal_to_wire(m.proposal), m.record.to_wire(), m.signature]),
    Cast: lambda m: (5, vote_to_wire(m.vote)),
    SetDecided: lambda m: (
        6,
        [[c.to_wire() for c in m.commitments], certificate_to_wire(m.certificate)],
    ),
    ResultReady: lambda m: (7, [m.round, m.base, m.slice_index, m.result.to_wire(), m.size_bytes]),
    WantRecords: lambda m: (8, list(m.locator)),
    Records: lambda m: (
        9,
        [
            [r.to_wire(), certificate_to_wire(c)]
            for r, c in zip(m.records, m.certificates, strict=True)
        ],
    ),
    Join: lambda m: (10, [m.ticket, m.head, m.number]),
    Leave: lambda _: (11, []),
    BranchCall: lambda m: (12, [m.nonce, m.parent, list(m.group)]),
    BranchSign: lambda m: (
        13,
        [
            m.nonce,
            vote_to_wire(m.vote),
            m.ticket,
            lock_to_wire(m.lock),
            m.locked.to_wire() if m.locked else [],
        ],
    ),
}

_DECODERS: dict[int, Callable[[Any], Message]] = {
    1: _hello,
    2: lambda f: Commit(Commitment.from_wire(f)),
    3: _propose_set,
    4: _propose_outcome,
    5: lambda f: Cast(vote_from_wire(f)),
    6: _set_decided,
    7: _result_ready,
    8: lambda f: WantRecords(tuple(digest_of(name) for name in items(f, 256))),
    9: _records,
    10: _join,
    11: _leave,
    12: _branch_call,
    13: _branch_sign,
}


def signed(commitment: Commitment, signature: bytes) -> Commitment:
    """The commitment with its signature."""
    return replace(commitment, signature=signature)
