"""Votes and the decisions they are for, in messages and on disk."""

from __future__ import annotations

from typing import Any

from runnel.errors import PeerError
from runnel.node.fields import blob, digest_of, integer, peer_id, row
from runnel.verification.votes import Instance, Step, Vote


def vote_to_wire(vote: Vote) -> list[Any]:
    """A vote's fields in wire order."""
    instance = vote.instance
    return [
        instance.kind,
        instance.round,
        instance.base,
        vote.attempt,
        int(vote.step),
        vote.value,
        vote.voter,
        vote.signature,
    ]


def vote_from_wire(fields: Any) -> Vote:
    """Reads a vote; PeerError for anything malformed."""
    kind, number, base, attempt, step, value, voter, signature = row(fields, 8)
    if integer(step) not in (Step.PREVOTE, Step.PRECOMMIT):
        raise PeerError("malformed", f"vote in step {step!r}")
    return Vote(
        instance_from_wire([kind, number, base]),
        integer(attempt),
        Step(step),
        digest_of(value, optional=True),
        peer_id(voter),
        blob(signature, 64),
    )


def instance_from_wire(fields: Any) -> Instance:
    """Reads an instance; PeerError for anything malformed."""
    kind, number, base = row(fields, 3)
    if kind not in ("set", "outcome", "branch"):
        raise PeerError("malformed", f"instance kind {kind!r}")
    return Instance(kind, integer(number), digest_of(base))
