"""Names and values of the protocol's durable state: what is written before it is sent, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runnel.dht.wire import pack, unpack
from runnel.errors import InputFileError, PeerError
from runnel.node.actions import RoundKey
from runnel.node.chain import Certificate, Chain
from runnel.node.messages import (
    certificate_from_wire,
    certificate_to_wire,
    lock_from_wire,
    lock_to_wire,
)
from runnel.node.records import (
    Commitment,
    Record,
    items,
    row,
    vote_from_wire,
    vote_to_wire,
)
from runnel.types import Digest
from runnel.verification.agreement import Instance, Lock, StoreVote, Vote

HEAD = "head"
_MAX_VALUE_BYTES = 1 << 20

Updates = dict[str, bytes | None]


def vote_updates(stored: StoreVote) -> Updates:
    """What to write before a vote is sent."""
    vote = stored.vote
    place = f"{vote.instance.key}/{vote.attempt}/{int(vote.step)}"
    updates: Updates = {f"vote/{place}": pack(vote_to_wire(vote))}
    if stored.lock is not None:
        updates[f"lock/{vote.instance.key}"] = pack(lock_to_wire(stored.lock))
    return updates


def record_updates(record: Record, certificate: Certificate | None) -> Updates:
    """What to write when the chain takes up a record."""
    return {f"record/{record.hash.hex()}": pack([record.to_wire(), certificate_to_wire(certificate)])}


def set_updates(key: RoundKey, commitments: tuple[Commitment, ...]) -> Updates:
    """What to write when a set is decided."""
    return {f"set/{key.number}/{key.base.hex()}": pack([c.to_wire() for c in commitments])}


def commitment_updates(commitment: Commitment) -> Updates:
    """What to write before a commitment is sent."""
    name = f"com/{commitment.round}/{commitment.base.hex()}"
    return {name: pack(commitment.to_wire())}


def stop_updates(parent: Digest) -> Updates:
    """What to write before a branch on `parent` is signed."""
    return {f"stop/{parent.hex()}": b""}


def result_updates(root: Digest) -> Updates:
    """What to write once a result's bytes are durable."""
    return {f"result/{root.hex()}": b""}


def closed_rounds(stored: Mapping[str, bytes], number: int) -> Updates:
    """Deletions of what belongs to rounds up to `number`."""
    updates: Updates = {}
    for key in stored:
        kind, _, rest = key.partition("/")
        where = rest.split("/")
        place = {"vote": 1, "lock": 1, "set": 0, "com": 0}.get(kind)
        if place is not None and int(where[place]) <= number:
            updates[key] = None
    return updates


@dataclass(slots=True)
class Restored:
    """Protocol state read back from disk."""

    chain: Chain
    votes: dict[Instance, list[Vote]] = field(default_factory=dict)
    locks: dict[str, Lock] = field(default_factory=dict)
    sets: dict[RoundKey, tuple[Commitment, ...]] = field(default_factory=dict)
    commits: dict[RoundKey, Commitment] = field(default_factory=dict)
    results: set[Digest] = field(default_factory=set)
    stops: set[Digest] = field(default_factory=set)


def restore(stored: Mapping[str, bytes], genesis: Record, *, open_rounds: int) -> Restored:
    """Rebuilds protocol state from durable keys; a fresh start if there are none.

    Raises:
        InputFileError: the state on disk is damaged or of another run.
    """
    found = Restored(Chain(genesis, open_rounds=open_rounds))
    try:
        for key, value in stored.items():
            _restore_one(found, key, value)
        head = stored.get(HEAD)
        if head is not None:
            found.chain.follow(found.chain.lineage(Digest(head)))
    except (PeerError, KeyError, ValueError) as error:
        raise InputFileError(
            f"the saved state is damaged ({error}): move the folder away and join again"
        ) from error
    if found.chain.path[0] != genesis.hash:
        raise InputFileError("the saved state belongs to another run: choose another folder")
    return found


def _restore_one(found: Restored, key: str, value: bytes) -> None:
    kind, _, rest = key.partition("/")
    if kind == "record":
        record, certificate = row(unpack(value, max_bytes=_MAX_VALUE_BYTES), 2)
        found.chain.add(Record.from_wire(record), certificate_from_wire(certificate))
    elif kind == "vote":
        vote = vote_from_wire(unpack(value, max_bytes=_MAX_VALUE_BYTES))
        found.votes.setdefault(vote.instance, []).append(vote)
    elif kind == "lock":
        lock = lock_from_wire(unpack(value, max_bytes=_MAX_VALUE_BYTES))
        if lock is not None:
            found.locks[rest] = lock
    elif kind == "set":
        parts = items(unpack(value, max_bytes=_MAX_VALUE_BYTES))
        found.sets[_round_key(rest)] = tuple(Commitment.from_wire(part) for part in parts)
    elif kind == "com":
        commitment = Commitment.from_wire(unpack(value, max_bytes=_MAX_VALUE_BYTES))
        found.commits[_round_key(rest)] = commitment
    elif kind == "result":
        found.results.add(Digest(bytes.fromhex(rest)))
    elif kind == "stop":
        found.stops.add(Digest(bytes.fromhex(rest)))


def _round_key(rest: str) -> RoundKey:
    number, base = rest.split("/")
    return RoundKey(int(number), Digest(bytes.fromhex(base)))
