"""A world in which one member signs two things at once, lies about sets and records, or dies as it proposes.

It runs the real protocol; what it sends is changed on the way out: one half of the others gets what it
means, the other half what `Liar` makes of that, signed with the same key.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from runnel.dht.identity import NullSigner
from runnel.errors import PeerError
from runnel.node.messages import (
    Cast,
    Commit,
    Message,
    ProposeOutcome,
    ProposeSet,
    proposal_statement,
)
from runnel.node.outcomes import abort_record
from runnel.node.records import Commitment, Record, set_value
from runnel.types import Digest, PeerId
from runnel.verification.votes import NIL, Vote
from tests.support.sim_peer import RUN, SimPeer, peer_name
from tests.support.world import World

MANNERS = ("equivocates", "lies", "dies")


class LyingWorld(World):
    """See above; the liar is one of the founders. Nothing else fails but what the seed's kind says.

    Args:
        seed: of everything.
        founders: how many.
        manner: one of `MANNERS`.
        kind: of the other faults, see `World`; calm without one.
    """

    def __init__(self, seed: int, *, founders: int, manner: str, kind: str = "") -> None:
        self._liar = Random(-seed - 1)
        self._manner, self._founders = manner, founders
        self.liars = frozenset({seed % founders})
        self.refused: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        super().__init__(seed, calm=not kind, kind=kind)
        self.kind = manner

    @property
    def honest(self) -> list[SimPeer]:
        return [peer for peer in self.peers.values() if peer.index not in self.liars]

    def founders(self, kind: str) -> tuple[int, ...]:
        return (self._founders,)

    def _refused(self, sender: PeerId, error: PeerError) -> None:
        if sender not in map(peer_name, self.liars):
            super()._refused(sender, error)
        self.refused[error.reason] += 1

    def _send(self, peer: SimPeer, message: Message, to: PeerId | None) -> None:
        if peer.index not in self.liars or to is not None:
            super()._send(peer, message, to)
            return
        if self._manner == "dies" and isinstance(message, ProposeSet | ProposeOutcome):
            self._die_proposing(peer, message)
            return
        other = self._other(peer, message)
        if other is None:
            super()._send(peer, message, to)
            return
        self.told[type(message).__name__] += 1
        for index, listener in list(self.peers.items()):
            if listener is not peer:
                said = other if index % 2 else message
                super()._send(peer, said, listener.name)

    def _die_proposing(self, peer: SimPeer, message: Message) -> None:
        """One of the others hears the proposal, or nobody."""
        listener = self._liar.choice([*self.peers.values()])
        super()._send(peer, message, listener.name)
        if self._liar.random() < 0.2 and self.now < self.shape.quiet_at:
            self.told["death"] += 1
            self.kill(peer.index)
            self.at(self.now + self._liar.uniform(0.1, 8), "reboot", peer.index)

    def _on_reboot(self, index: int) -> None:
        if index not in self.peers:
            self.boot(index)

    def _other(self, peer: SimPeer, message: Message) -> Message | None:
        """What the liar tells the other half instead, or None."""
        if self.now > self.shape.quiet_at or self._manner == "dies":
            return None
        if self._manner == "lies":
            return _lie(peer, message)
        match message:
            case Commit(commitment=own):
                return Commit(_signed(peer, replace(own, tokens=own.tokens + 1)))
            case Cast(vote=vote):
                return Cast(_other_vote(peer, vote))
            case ProposeSet(commitments=chosen) if len(chosen) > 1:
                return _set_of(peer, message, chosen[1:])
            case ProposeOutcome(record=record):
                parent = peer.chain.record(record.parent)
                return _record_of(peer, message, abort_record(parent))
        return None


def _lie(peer: SimPeer, message: Message) -> Message | None:
    """A set with commitments nobody made, or a record with other weights."""
    match message:
        case ProposeSet(commitments=chosen):
            first = chosen[0]
            made_up = replace(first, tokens=first.tokens + 7, signature=bytes(64))
            return _set_of(peer, message, (made_up, *chosen[1:]))
        case ProposeOutcome(record=record) if record.shares:
            shares = tuple(replace(share, tokens=share.tokens + 7) for share in record.shares)
            return _record_of(peer, message, replace(record, shares=shares))
    return None


def _other_vote(peer: SimPeer, vote: Vote) -> Vote:
    """For nothing where it was for something, and the reverse."""
    place = peer.protocol.state.round_of(vote.instance)
    values: list[Digest] = []
    if place is not None:
        values = [*(place.sets if vote.instance.kind == "set" else place.candidates)]
    other = next((value for value in values if value != vote.value), NIL)
    unsigned = replace(vote, value=NIL if vote.value else other)
    statement = unsigned.statement(RUN)
    return replace(unsigned, signature=NullSigner(peer.name).sign(statement))


def _signed(peer: SimPeer, commitment: Commitment) -> Commitment:
    unsigned = replace(commitment, signature=b"")
    return replace(unsigned, signature=NullSigner(peer.name).sign(unsigned.statement(RUN)))


def _set_of(peer: SimPeer, message: ProposeSet, chosen: tuple[Commitment, ...]) -> ProposeSet:
    ordered = tuple(sorted(chosen, key=lambda commitment: commitment.id))
    proposal = replace(message.proposal, value=set_value([c.id for c in ordered]))
    signature = NullSigner(peer.name).sign(proposal_statement(RUN, proposal))
    return ProposeSet(proposal, ordered, signature)


def _record_of(peer: SimPeer, message: ProposeOutcome, record: Record) -> ProposeOutcome:
    proposal = replace(message.proposal, value=record.hash)
    signature = NullSigner(peer.name).sign(proposal_statement(RUN, proposal))
    return ProposeOutcome(proposal, record, signature)
