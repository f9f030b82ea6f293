"""Names and values of the protocol's durable state: what is written before it is sent, and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runnel.dht.wire import pack, unpack
from runnel.errors import InputFileError, PeerError
from runnel.node.actions import RoundKey
from runnel.node.archive import BLOCK_RECORDS, Archive, ReadBlob, block_key, nothing, record_value
from runnel.node.certificates import Certificate
from runnel.node.chain import Chain, Folded
from runnel.node.evidence import Evidence, read_evidence
from runnel.node.fields import integer
from runnel.node.messages import (
    certificate_from_wire,
    certificate_to_wire,
    lock_from_wire,
    lock_to_wire,
    proposal_from_wire,
    proposal_to_wire,
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
from runnel.verification.agreement import Instance, Lock, Proposal, StoreVote, Vote

HEAD = "head"
_MAX_VALUE_BYTES = 1 << 20

Updates = dict[str, bytes | None]
Proposed = tuple[Commitment, ...]


def vote_updates(stored: StoreVote) -> Updates:
    """What to write before a vote is sent."""
    vote = stored.vote
    updates: Updates = {_vote_name(vote): pack(vote_to_wire(vote))}
    if stored.lock is not None:
        updates[f"lock/{vote.instance.key}"] = pack(lock_to_wire(stored.lock))
    return updates


def proposal_updates(proposal: Proposal) -> Updates:
    """What to write before a proposal is sent."""
    return {_proposal_name(proposal): pack(proposal_to_wire(proposal))}


def record_updates(record: Record, certificate: Certificate | None) -> Updates:
    """What to write when the chain takes up a record."""
    return {_record_name(record.hash): record_value(record, certificate)}


def folded_updates(folded: Folded) -> Updates:
    """What to write once a block of old records is durable."""
    gone = (*folded.names, *folded.dropped)
    block = folded.block
    return {_record_name(name): None for name in gone} | {block.key: block.names}


def reopened_updates(blocks: int, before: int) -> Updates:
    """What to write with a path that parts from ours in the archive, of which `blocks` of those `before` stay."""
    return {block_key(number): None for number in range(blocks, before)}


def set_updates(
    key: RoundKey, commitments: tuple[Commitment, ...], certificate: Certificate
) -> Updates:
    """What to write when a set is decided: it, and the proof for those who missed it."""
    value = [[c.to_wire() for c in commitments], certificate_to_wire(certificate)]
    return {f"set/{key.number}/{key.base.hex()}": pack(value)}


def proposed_set_updates(key: RoundKey, value: Digest, proposed: Proposed) -> Updates:
    """What to write with the first vote for a set: a vote is worth nothing without its value."""
    name = f"proposed/{key.number}/{key.base.hex()}/{value.hex()}"
    return {name: pack([c.to_wire() for c in proposed])}


def candidate_updates(record: Record) -> Updates:
    """What to write with the first vote for a record."""
    return {f"candidate/{record.number}/{record.hash.hex()}": record.encoded}


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


def floor_updates(number: int) -> Updates:
    """What to write with a head whose state was fetched, not followed to: nothing before it can be returned to."""
    return {"floor": pack(number)}


@dataclass(slots=True)
class Past:
    """What this peer does not know any more of its own past.

    The disk has no state from before record `floor`, the newest one whose state was fetched (-1: none).
    Promises in rounds up to `expired` are forgotten, as far as they were made before the path followed left
    another one at record `parted` (-2: it never did). On records up to `stopped` it may have signed branches
    (-2: on none).
    """

    floor: int = -1
    expired: int = -1
    parted: int = -2
    stopped: int = -2

    def part(self, number: int, meet: int) -> Updates:
        """Notes that a path is given up that had come to `number`, back to record `meet`; what to write.

        What was promised on records up to `meet` may be forgotten by now; what will be promised on those
        that are adopted instead is not.
        """
        self.parted = meet if number > self.expired else min(self.parted, meet)
        return {"parted": pack(self.parted)}

    def may_have_promised(self, number: int, base: int) -> bool:
        """Whether this peer may have promised in round `number`, which derives from record `base`, and forgot."""
        return number <= self.expired and base <= self.parted


@dataclass(slots=True)
class Restored:
    """Protocol state as it is on disk; kept up to date while the peer runs.

    A round may close and open again when the chain moves to another path and back: what this peer
    promised in it must be found again without a restart, too.
    """

    chain: Chain
    candidates: dict[int, dict[Digest, Record]] = field(default_factory=dict)
    proposed: dict[RoundKey, dict[Digest, Proposed]] = field(default_factory=dict)
    votes: dict[Instance, list[Vote]] = field(default_factory=dict)
    locks: dict[str, Lock] = field(default_factory=dict)
    proposals: dict[Instance, list[Proposal]] = field(default_factory=dict)
    sets: dict[RoundKey, tuple[Proposed, Certificate | None]] = field(default_factory=dict)
    commits: dict[RoundKey, Commitment] = field(default_factory=dict)
    results: set[Digest] = field(default_factory=set)
    stops: set[Digest] = field(default_factory=set)
    evidence: dict[Digest, Evidence] = field(default_factory=dict)
    past: Past = field(default_factory=Past)

    def expire(self, number: int) -> Updates:
        """Forgets what was promised in rounds up to `number`; the deletions that this asks for."""
        updates: Updates = {}
        for instance in [i for i in self.votes if i.round <= number]:
            for vote in self.votes.pop(instance):
                updates[_vote_name(vote)] = None
            if self.locks.pop(instance.key, None) is not None:
                updates[f"lock/{instance.key}"] = None
        for instance in [i for i in self.proposals if i.round <= number]:
            updates |= {_proposal_name(p): None for p in self.proposals.pop(instance)}
        for place in [n for n in self.candidates if n <= number]:
            updates |= {f"candidate/{place}/{v.hex()}": None for v in self.candidates.pop(place)}
        for key in [k for k in self.proposed if k.number <= number]:
            where = _place(key)
            updates |= {f"proposed/{where}/{v.hex()}": None for v in self.proposed.pop(key)}
        for key in [k for k in self.sets if k.number <= number]:
            del self.sets[key]
            updates[f"set/{_place(key)}"] = None
        for key in [k for k in self.commits if k.number <= number]:
            del self.commits[key]
            updates[f"com/{_place(key)}"] = None
        if updates and number > self.past.expired:
            self.past.expired = number
            updates["expired"] = pack(number)
        return updates

    def forget_stops(self) -> Updates:
        """Keeps one number in place of the stops on archived records, and on such as are gone."""
        edge, numbers = len(self.chain.archive) - 1, dict[Digest, int]()
        for parent in self.stops if edge >= 0 else ():
            number = self.chain.number_of(parent)
            if number is None or number < edge:
                numbers[parent] = edge - 1 if number is None else number
        if not numbers:
            return {}
        self.stops -= set(numbers)
        self.past.stopped = max(self.past.stopped, *numbers.values())
        gone: Updates = {f"stop/{parent.hex()}": None for parent in numbers}
        return gone | {"stopped": pack(self.past.stopped)}

    def has_stopped(self, parent: Digest, number: int) -> bool:
        """Whether this peer votes no more on what follows record `number`, as it signed a branch there."""
        return parent in self.stops or number <= self.past.stopped


def restore(
    stored: Mapping[str, bytes],
    genesis: Record,
    *,
    open_rounds: int,
    read: ReadBlob = nothing,
    block: int = BLOCK_RECORDS,
) -> Restored:
    """Rebuilds protocol state from durable keys; a fresh start if there are none.

    Old records are not read, only their names; `read` gives a blob of `block` of them when one is asked for.

    Raises:
        InputFileError: the state on disk is damaged or of another run.
    """
    try:
        archive = Archive(read, _rows(stored), block=block)
        found = Restored(Chain(genesis, open_rounds=open_rounds, archive=archive))
        for key, value in stored.items():
            _restore_one(found, key, value)
        head = stored.get(HEAD)
        if head is not None:
            found.chain.follow(found.chain.lineage(Digest(head)))
        found.chain.leave_rest()
    except (PeerError, KeyError, ValueError) as error:
        raise InputFileError(
            f"the saved state is damaged ({error}): move the folder away and join again"
        ) from error
    if found.chain.path[0] != genesis.hash:
        raise InputFileError("the saved state belongs to another run: choose another folder")
    return found


def _restore_one(found: Restored, key: str, value: bytes) -> None:
    kind, _, rest = key.partition("/")
    reader = _READERS.get(kind)
    if reader is not None:
        reader(found, rest, unpack(value, max_bytes=_MAX_VALUE_BYTES) if value else None)


def _rows(stored: Mapping[str, bytes]) -> list[bytes]:
    """The names in each block of the archive."""
    rows = list[bytes]()
    while block_key(len(rows)) in stored:
        rows.append(stored[block_key(len(rows))])
    return rows


def _read_record(found: Restored, _rest: str, value: Any) -> None:
    record, certificate = row(value, 2)
    found.chain.add(Record.from_wire(record), certificate_from_wire(certificate))


def _read_vote(found: Restored, _rest: str, value: Any) -> None:
    vote = vote_from_wire(value)
    found.votes.setdefault(vote.instance, []).append(vote)


def _read_proposal(found: Restored, _rest: str, value: Any) -> None:
    proposal = proposal_from_wire(value)
    found.proposals.setdefault(proposal.instance, []).append(proposal)


def _read_evidence(found: Restored, rest: str, value: Any) -> None:
    found.evidence[Digest(bytes.fromhex(rest))] = read_evidence(pack(value))


def _read_lock(found: Restored, rest: str, value: Any) -> None:
    lock = lock_from_wire(value)
    if lock is not None:
        found.locks[rest] = lock


def _read_set(found: Restored, rest: str, value: Any) -> None:
    parts, proof = row(value, 2)
    decided = tuple(Commitment.from_wire(part) for part in items(parts))
    found.sets[_round_key(rest)] = (decided, certificate_from_wire(proof))


def _read_proposed(found: Restored, rest: str, value: Any) -> None:
    where, _, name = rest.rpartition("/")
    proposed = tuple(Commitment.from_wire(part) for part in items(value))
    found.proposed.setdefault(_round_key(where), {})[Digest(bytes.fromhex(name))] = proposed


def _read_candidate(found: Restored, _rest: str, value: Any) -> None:
    record = Record.from_wire(value)
    found.candidates.setdefault(record.number, {})[record.hash] = record


def _read_commitment(found: Restored, rest: str, value: Any) -> None:
    found.commits[_round_key(rest)] = Commitment.from_wire(value)


def _read_result(found: Restored, rest: str, _value: Any) -> None:
    found.results.add(Digest(bytes.fromhex(rest)))


def _read_stop(found: Restored, rest: str, _value: Any) -> None:
    found.stops.add(Digest(bytes.fromhex(rest)))


def _read_floor(found: Restored, _rest: str, value: Any) -> None:
    found.past.floor = integer(value, low=-1)


def _read_expired(found: Restored, _rest: str, value: Any) -> None:
    found.past.expired = integer(value, low=-1)


def _read_parted(found: Restored, _rest: str, value: Any) -> None:
    found.past.parted = integer(value, low=-2)


def _read_stopped(found: Restored, _rest: str, value: Any) -> None:
    found.past.stopped = integer(value, low=-1)


_READERS: dict[str, Callable[[Restored, str, Any], None]] = {
    "record": _read_record,
    "vote": _read_vote,
    "proposal": _read_proposal,
    "evidence": _read_evidence,
    "lock": _read_lock,
    "set": _read_set,
    "proposed": _read_proposed,
    "candidate": _read_candidate,
    "com": _read_commitment,
    "result": _read_result,
    "stop": _read_stop,
    "floor": _read_floor,
    "expired": _read_expired,
    "parted": _read_parted,
    "stopped": _read_stopped,
}


def _record_name(name: Digest) -> str:
    return f"record/{name.hex()}"


def _vote_name(vote: Vote) -> str:
    return f"vote/{vote.instance.key}/{vote.attempt}/{int(vote.step)}"


def _proposal_name(proposal: Proposal) -> str:
    return f"proposal/{proposal.instance.key}/{proposal.attempt}"


def _place(key: RoundKey) -> str:
    return f"{key.number}/{key.base.hex()}"


def _round_key(rest: str) -> RoundKey:
    number, base = rest.split("/")
    return RoundKey(int(number), Digest(bytes.fromhex(base)))
