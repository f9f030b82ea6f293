"""What must hold in every schedule: from the records alone, and from what peers wrote to disk.

S1 agreement (one outcome per round, no equivocation), S2 equal state for equal heads, S3 nothing lost
and nothing twice, S4 one chain in the end, L liveness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.dht.identity import NullSigner
from runnel.dht.wire import pack, unpack
from runnel.node.actions import RoundKey
from runnel.node.evidence import read_evidence
from runnel.node.messages import (
    BranchSign,
    Cast,
    Commit,
    Message,
    ProposeOutcome,
    ProposeSet,
    ResultReady,
)
from runnel.node.records import Record, RecordKind, vote_to_wire
from runnel.optim.store import Reduced
from runnel.types import Digest, PeerId
from runnel.verification.votes import Step, Vote
from tests.support.sim_peer import RUN, VALUES, SimPeer, bounds_of, peer_name

if TYPE_CHECKING:
    from tests.support.world import World


class Broken(Exception):
    """A promise of the protocol does not hold."""


class Checks:
    """Sees every write and every step of a world's peers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.votes: dict[Any, bytes] = {}
        self.sets: dict[str, Any] = {}
        self.outcomes: dict[tuple[int, Digest], Digest] = {}
        self.values: dict[Digest, Any] = {}
        self.losses: dict[Digest, Any] = {}
        self.trained: dict[int, Any] = {}
        self.lost: dict[int, Any] = {}
        self.unsent: dict[int, Any] = {}
        self.taken: dict[tuple[Digest, PeerId], Any] = {}

    # -- as it happens

    def booted(self, peer: SimPeer, *, first: bool) -> None:
        if first:
            self.trained[peer.index], self.lost[peer.index] = self._zero(), self._zero()
        else:
            gap = self._remaining(peer) - peer.owed()
            if not np.array_equal(gap, self.unsent[peer.index]):
                raise Broken("S3 a restart loses something else than unsent steps")
            self.lost[peer.index] = self.lost[peer.index] + gap
        self.unsent[peer.index] = self._zero()

    def learned(self, peer: SimPeer, fragment: int, step: Any) -> None:
        self.trained[peer.index][fragment] += step
        self.unsent[peer.index][fragment] += step

    def handed(self, peer: SimPeer, fragment: int) -> None:
        self.unsent[peer.index][fragment] = 0

    def written(self, peer: SimPeer, updates: Mapping[str, bytes | None]) -> None:
        for key, value in updates.items():
            if value is None:
                continue
            bound = key.startswith(("vote/", "proposal/", "com/"))
            if bound and self.votes.setdefault((peer.index, key), value) != value:
                raise Broken("S1 equivocation")
            if key.startswith("evidence/"):
                self._justified(value)
            if key.startswith("set/"):
                decided = unpack(value, max_bytes=1 << 20)[0]  # beside it: one of several proofs
                if self.sets.setdefault(key, decided) != decided:
                    raise Broken("S1 two sets for one round")

    def _justified(self, value: bytes) -> None:
        """Evidence proves to anybody what it says, and is never against whoever is honest."""
        found = read_evidence(value)
        problem = found.problem(RUN, NullSigner(found.peer).verify)
        if problem or found.peer not in map(peer_name, self.world.liars):
            raise Broken(f"E  an honest peer was accused of {found.what}: {problem}")

    def sent(self, peer: SimPeer, message: Message) -> None:
        """What binds its sender must be on its disk by now."""
        keys = peer.disk.keys
        match message:
            case _ if peer.index in self.world.liars:
                kept = True
            case Cast(vote=vote):
                name = f"vote/{vote.instance.key}/{vote.attempt}/{int(vote.step)}"
                kept = keys.get(name) == pack(vote_to_wire(vote)) and self._has_value(peer, vote)
            case Commit(commitment=own):
                kept = f"com/{own.round}/{own.base.hex()}" in keys
            case ResultReady(result=result):
                kept = f"result/{result.root.hex()}" in keys
            case ProposeSet(proposal=own) | ProposeOutcome(proposal=own):
                name = f"proposal/{own.instance.key}/{own.attempt}"
                kept = name in keys or own.proposer != peer.name
            case BranchSign(vote=vote):
                kept = f"stop/{vote.instance.base.hex()}" in keys
            case _:
                kept = True
        if not kept:
            raise Broken(f"S1 a {type(message).__name__} was sent before it was on disk")

    def _has_value(self, peer: SimPeer, vote: Vote) -> bool:
        """Whether what a vote is for is on its voter's disk: a set, or a record with all its results."""
        if not vote.value:
            return True
        keys, instance = peer.disk.keys, vote.instance
        if instance.kind == "set":
            return f"proposed/{instance.round}/{instance.base.hex()}/{vote.value.hex()}" in keys
        data = keys.get(f"candidate/{instance.round}/{vote.value.hex()}")
        if data is None:
            return False
        record = Record.from_wire(unpack(data, max_bytes=1 << 20))
        return all(f"result/{piece.root.hex()}" in keys for piece in record.slices)

    def reduced(self, root: Digest, reduced: Reduced) -> None:
        self.values[root] = np.frombuffer(reduced.payload, "<i8")
        self.losses[root] = 0 if reduced.loss is None else reduced.loss

    def moved(self, peer: SimPeer, path: Sequence[Digest]) -> None:
        for name in path[-3:]:
            record, certificate = peer.chain.record(name), peer.chain.certificate(name)
            if certificate is None or record.kind is RecordKind.BRANCH:
                continue
            if certificate.votes[0].step is not Step.PRECOMMIT:
                continue  # not decided, but carried on by a branch
            if self.outcomes.setdefault((record.number, record.parent), name) != name:
                raise Broken("S1 two outcomes of one round")

    def conserved(self, peer: SimPeer) -> None:
        alive = self.world.peers.get(peer.index) is peer
        if alive and not np.array_equal(self._remaining(peer), peer.owed()):
            raise Broken("S3 something was lost or counted twice")

    # -- in the end

    def final(self, mark: dict[int, int]) -> None:
        peers = list(self.world.peers.values())
        if not peers or all(p.chain.number < 0 and p.index >= self.world.count for p in peers):
            return  # nobody who ever held the run is alive
        best = max(peers, key=lambda p: len(p.chain.path))
        if self.world.kind == "quiet":
            self._undisturbed(best)
        for peer in peers:
            self._one_chain(peer, best)
            if peer.chain.number - mark.get(peer.index, 0) < 3:
                raise Broken("L  no progress")
        recent = [best.chain.record(name) for name in best.chain.path[-8:]]
        if not any(record.kind is RecordKind.ROUND for record in recent):
            raise Broken("L  only aborts")
        if set(best.chain.head.view) - {p.name for p in peers}:
            raise Broken("L  a dead member stays in the view")
        self.world.stats["rounds"] += best.chain.number

    def _undisturbed(self, best: SimPeer) -> None:
        """Where nothing fails nothing is given up, and hardly anybody left out: a message may be late."""
        records = [best.chain.record(name) for name in best.chain.path[1:]]
        if any(record.kind is not RecordKind.ROUND for record in records):
            raise Broken("C  something was given up without a fault")
        without = sum(len(record.contributors) < len(record.view) for record in records)
        if without > 0.05 * len(records):
            raise Broken(f"C  somebody was left out in {without} of {len(records)} rounds")

    def _one_chain(self, peer: SimPeer, best: SimPeer) -> None:
        meet = min(len(peer.chain.path), len(best.chain.path))
        if peer.chain.path[: meet - 3] != best.chain.path[: meet - 3]:
            raise Broken("S4 not on one chain")
        if len(peer.chain.path) < len(best.chain.path) - 4:
            raise Broken("S4 a peer is left behind")
        leaving = peer.protocol.state.members.leaving
        if not leaving and peer.name not in best.chain.head.view:
            raise Broken("L  a live peer is not in the view")

    # -- the ledger, from the records alone

    def _zero(self) -> Any:
        return np.zeros((self.world.fragments, VALUES), dtype=np.int64)

    def _remaining(self, peer: SimPeer) -> Any:
        taken = self._taken_up_to(peer, peer.chain.path[-1])
        return self.trained[peer.index] - self.lost[peer.index] - taken

    def _taken_up_to(self, peer: SimPeer, head: Digest) -> Any:
        todo, name = [], head
        while name and (name, peer.name) not in self.taken:
            todo.append(name)
            name = peer.chain.record(name).parent
        total = self.taken[name, peer.name] if name else self._zero()
        for name in reversed(todo):
            total = total + self._taken_by(peer, peer.chain.record(name))
            self.taken[name, peer.name] = total
        return total

    def _taken_by(self, peer: SimPeer, record: Record) -> Any:
        change = self._zero()
        if record.kind is not RecordKind.ROUND:
            return change
        path = peer.chain.lineage(record.parent)
        key = RoundKey(record.number, peer.chain.base_of(record.number, path))
        used = {place for piece in record.slices for place in piece.included}
        tokens = sum(record.shares[place].tokens for place in used)
        if record.tokens != peer.chain.record(record.parent).tokens + tokens:
            raise Broken("S3 tokens were lost or counted twice")
        fragment, bounds = record.number % self.world.fragments, bounds_of(len(record.slices))
        for index, ((low, high), piece) in enumerate(zip(bounds, record.slices, strict=True)):
            total = np.zeros(high - low, dtype=np.int64)
            for place in piece.included:
                sent = self._sent(record.shares[place].peer, key, index)
                total = total + sent
                if record.shares[place].peer == peer.name:
                    change[fragment, low:high] += sent
            if not np.array_equal(total, self.values[piece.root] + self.losses[piece.root]):
                raise Broken("S3 a result does not add up")
            if piece.reducer == peer.name:
                change[fragment, low:high] -= self.losses[piece.root]
        return change

    def _sent(self, author: PeerId, key: RoundKey, index: int) -> Any:
        disk = next(d for i, d in self.world.disks.items() if peer_name(i) == author)
        return np.frombuffer(disk.payloads[key][index], "<i8")
