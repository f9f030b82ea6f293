"""A world in which one member floods the others, all the time, with whatever its vote allows it to sign.

It runs the real protocol beside that. Its votes and proposals are for any attempt, its sets and records are
new ones each time, its branches are signed by itself alone, and records follow on them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from runnel.dht.identity import NullSigner
from runnel.errors import PeerError
from runnel.node.actions import Blame
from runnel.node.branches import branch_record, branch_vote
from runnel.node.certificates import Certificate
from runnel.node.messages import (
    Cast,
    Message,
    ProposeOutcome,
    ProposeSet,
    Records,
    ResultReady,
    proposal_statement,
)
from runnel.node.outcomes import abort_record
from runnel.node.records import Record, RecordKind, Share, SliceResult, set_value
from runnel.node.rounds import Round
from runnel.types import Digest, PeerId
from runnel.verification.votes import Electorate, Instance, Proposal, Step, Vote, majority
from tests.support.sim_peer import RUN, SimPeer, peer_name
from tests.support.world import World

_ATTEMPTS = (0, 1, 3, 60, 5_000, 1 << 40, (1 << 62) - 1)
_RECORDS = 30


class FloodingWorld(World):
    """See above; the flooder is one of the founders. `refused` counts what it is refused and blamed for.

    Args:
        seed: of everything.
        founders: how many.
        messages_a_tick: to each of the others. Nothing else fails.
    """

    def __init__(self, seed: int, *, founders: int, messages_a_tick: int) -> None:
        self._flood = Random(-seed - 1)
        self._founders, self.messages_a_tick = founders, messages_a_tick
        self.flooder = peer_name(seed % founders)
        self.liars = frozenset({seed % founders})
        self.refused: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        super().__init__(seed, calm=True)
        self.kind = "flood"

    @property
    def honest(self) -> list[SimPeer]:
        return [peer for peer in self.peers.values() if peer.index not in self.liars]

    def founders(self, kind: str) -> tuple[int, ...]:
        return (self._founders,)

    def _on_tick(self, peer: SimPeer) -> None:
        if peer.index not in self.liars and self.peers.get(peer.index) is peer:
            for _ in range(self.messages_a_tick):
                self._attack(peer)
        super()._on_tick(peer)

    def _attack(self, peer: SimPeer) -> None:
        rng, state = self._flood, peer.protocol.state
        places = [place for place in state.rounds.values() if self.flooder in place.voters]
        message: Message | None = None
        if rng.random() < 0.3:
            message = self._records(peer)
        elif places:
            message = self._said(peer, rng.choice(places))
        if message is None:
            return
        self.sent[type(message).__name__] += 1
        head = peer.chain.path[-1]
        try:
            todo = peer.protocol.receive(self.flooder, message, self.time_of(peer))
        except PeerError as error:
            self.refused[error.reason] += 1
            return
        self.refused.update(action.reason for action in todo if isinstance(action, Blame))
        self.carry(peer, todo)
        if peer.chain.path[-1] != head:
            self.checks.conserved(peer)

    def _said(self, peer: SimPeer, place: Round) -> Message:
        rng, base = self._flood, place.key.base
        instance = Instance("set", place.key.number, base)
        if rng.random() < 0.5:
            instance = Instance("outcome", peer.chain.number + 1, peer.chain.path[-1])
        attempt, value = rng.choice(_ATTEMPTS) + rng.randrange(200), Digest(rng.randbytes(32))
        attempt = min(attempt, (1 << 62) - 1)
        match rng.randrange(4):
            case 0:
                root, one = Digest(rng.randbytes(32)), (rng.randrange(2),)
                result = SliceResult(root, rng.choice(place.voters), one)
                return ResultReady(place.key.number, base, 0, result, 8)
            case 1:
                step = rng.choice((Step.PREVOTE, Step.PRECOMMIT))
                return Cast(self._vote(instance, attempt, step, value))
        return self._proposed(peer, place, instance, attempt)

    def _vote(self, instance: Instance, attempt: int, step: Step, value: Digest) -> Vote:
        vote = Vote(instance, attempt, step, value, self.flooder)
        return replace(vote, signature=NullSigner(self.flooder).sign(vote.statement(RUN)))

    def _proposed(self, peer: SimPeer, place: Round, instance: Instance, attempt: int) -> Message:
        """A new set or record, in the next turn of the flooder, with as long a proof as there may be."""
        rng, turns = self._flood, Electorate.of(instance, place.voters, majority)
        while turns.proposer(attempt) != self.flooder:
            attempt = max(0, attempt - 1) if attempt > 1 << 60 else attempt + 1
        junk = tuple(
            self._vote(instance, 0, Step.PREVOTE, Digest(rng.randbytes(32))) for _ in range(8)
        )
        known = place.commits.get(self.flooder)
        if instance.kind == "set" and known is not None:
            mine = replace(known, steps=rng.randrange(1 << 40), signature=b"")
            signature = NullSigner(self.flooder).sign(mine.statement(RUN))
            others = [c for p, c in place.commits.items() if p != self.flooder]
            chosen = tuple(
                sorted(
                    [replace(mine, signature=signature), *others],
                    key=lambda commitment: commitment.id,
                )
            )
            value = set_value([c.id for c in chosen])
            said = Proposal(instance, attempt, value, self.flooder, -1, junk)
            return ProposeSet(said, chosen, self._sign(said))
        record = replace(
            abort_record(peer.chain.head),
            kind=RecordKind.ROUND,
            nonce=rng.randbytes(32),
            finished=tuple(range(1 << 40, (1 << 40) + 400)),
        )
        said = Proposal(
            Instance("outcome", peer.chain.number + 1, peer.chain.path[-1]),
            attempt,
            record.hash,
            self.flooder,
            -1,
            junk,
        )
        return ProposeOutcome(said, record, self._sign(said))

    def _sign(self, proposal: Proposal) -> bytes:
        return NullSigner(self.flooder).sign(proposal_statement(RUN, proposal))

    def _records(self, peer: SimPeer) -> Message | None:
        """A branch by itself from any record of the path, the head included, and records that follow."""
        rng, chain = self._flood, peer.chain
        place = rng.choice((len(chain.path) - 1, rng.randrange(len(chain.path))))
        path = list(chain.path[: place + 1])
        head, nonce, group = chain.record(path[-1]), rng.randbytes(16), (self.flooder,)
        vote = branch_vote(head, nonce, group, self.flooder)
        vote = replace(vote, signature=NullSigner(self.flooder).sign(vote.statement(RUN)))
        voters = chain.voters_of(head.number + 1, path)
        records = [branch_record(head, nonce, group, voters)]
        ticket = b"" if self.flooder in head.view else b"ticket"
        proofs = [Certificate(0, (vote,), (ticket,))]
        for _ in range(rng.randrange(_RECORDS)):
            record = _padded(records[-1], group, rng)
            instance = Instance("outcome", record.number, record.parent)
            proof = self._vote(instance, 0, Step.PRECOMMIT, record.hash)
            records.append(record)
            proofs.append(Certificate(0, (proof,)))
        return Records(tuple(records), tuple(proofs))


def _padded(parent: Record, voters: tuple[PeerId, ...], rng: Random) -> Record:
    """A large record that follows, with results that nobody has."""
    start = rng.randrange(1 << 40)
    finished = tuple(range(start, start + 300))
    shares = tuple(Share(peer, Digest(rng.randbytes(32)), 1) for peer in voters)
    piece = SliceResult(Digest(rng.randbytes(32)), voters[0], (0,))
    return replace(
        abort_record(parent),
        kind=RecordKind.ROUND,
        finished=finished,
        shares=shares,
        slices=(piece,),
        state_root=Digest(rng.randbytes(32)),
    )
