"""Names, commitments, votes and records by small numbers, for tests of the protocol's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from runnel.dht.identity import NullSigner, null_peer_id
from runnel.hashing import digest
from runnel.node.certificates import Certificate
from runnel.node.outcomes import genesis_record
from runnel.node.records import Commitment, JoinRequest, Record, RecordKind
from runnel.types import Digest, PeerId
from runnel.verification.votes import Instance, Step, Vote

RUN = digest(b"test run")
PEERS = tuple(sorted(null_peer_id(i) for i in range(8)))


def name(label: str) -> Digest:
    """The digest that stands for `label`."""
    return digest(label.encode())


async def at_once(answer: Callable[[list[Digest]], bytes], names: list[Digest]) -> bytes:
    """A job that needs no thread."""
    return answer(names)


def signed_vote(vote: Vote) -> Vote:
    return replace(vote, signature=NullSigner(vote.voter).sign(vote.statement(RUN)))


def vote(
    instance: Instance, voter: PeerId, value: bytes, *, attempt: int = 0, step: Step = Step.PREVOTE
) -> Vote:
    return signed_vote(Vote(instance, attempt, step, Digest(value), voter))


def verify(given: Vote) -> bool:
    return NullSigner(given.voter).verify(given.voter, given.statement(RUN), given.signature)


def genesis(members: int) -> Record:
    return genesis_record(PEERS[:members], name("initial state"))


def commitment(
    peer: PeerId,
    number: int,
    base: Digest,
    *,
    joins: Iterable[PeerId] = (),
    leaves: Iterable[PeerId] = (),
    unheard: Iterable[PeerId] = (),
    slices: int = 1,
    withheld: tuple[int, ...] = (),
) -> Commitment:
    unsigned = Commitment(
        peer=peer,
        round=number,
        base=base,
        payload_root=digest(peer, number.to_bytes(4, "big"), base),
        slice_norms=(1.0,) * slices,
        withheld=withheld,
        tokens=10,
        steps=1,
        loss=0.5,
        progress=0,
        joins=tuple(JoinRequest(who, b"ticket") for who in joins),
        leaves=tuple(leaves),
        unheard=tuple(unheard),
    )
    return replace(unsigned, signature=NullSigner(peer).sign(unsigned.statement(RUN)))


def following_record(
    parent: Record,
    kind: RecordKind = RecordKind.ABORT,
    *,
    view: tuple[PeerId, ...] | None = None,
    unproven: tuple[PeerId, ...] = (),
    listed: int = 0,
    nonce: bytes = b"",
) -> Record:
    """A record after `parent` with nothing in it but what the chain looks at."""
    return Record(
        number=parent.number + 1,
        parent=parent.hash,
        kind=kind,
        shares=(),
        slices=(),
        state_root=Digest(b""),
        view=parent.view if view is None else view,
        unproven=unproven,
        tokens=parent.tokens,
        progress=parent.progress,
        finished=parent.finished,
        listed=listed,
        nonce=nonce,
    )


def certificate(
    record: Record,
    voters: Iterable[PeerId],
    *,
    attempt: int = 0,
    step: Step = Step.PRECOMMIT,
) -> Certificate:
    instance = Instance("outcome", record.number, record.parent)
    votes = (vote(instance, p, record.hash, attempt=attempt, step=step) for p in voters)
    return Certificate(attempt, tuple(votes))
