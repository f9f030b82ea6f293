"""One peer's protocol state, for tests of the parts that work on it, and records that others tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from runnel.dht.identity import NullSigner
from runnel.node import following
from runnel.node.actions import Action, Send
from runnel.node.branches import branch_record, branch_vote
from runnel.node.certificates import Certificate
from runnel.node.chain import Chain
from runnel.node.deadlines import Limits
from runnel.node.messages import Message, Records
from runnel.node.path import Path
from runnel.node.protocol_state import ProtocolSettings, ProtocolState
from runnel.node.records import Record, RecordKind, Share, SliceResult
from runnel.node.storage_keys import Restored
from runnel.types import PeerId
from tests.support.members import PEERS, RUN, certificate, following_record, genesis, name

ME, OTHER, THIRD = PEERS[0], PEERS[1], PEERS[2]
STRANGER = PEERS[6]
GENESIS = genesis(3)
STALL_S = 20.0


def settings_of(kept_records: int = 300) -> ProtocolSettings:
    return ProtocolSettings(
        run=RUN,
        fragment_sizes=(10, 10, 10, 10),
        max_weight_tokens=1000,
        limits=Limits(stall_s=STALL_S),
        admits=lambda _, ticket: ticket == b"ticket",
        deepest_fork=16,
        kept_records=kept_records,
        ticket=b"ticket",
    )


def state_of(chain: Chain | None = None, *, me: PeerId = ME) -> ProtocolState:
    restored = Restored(chain or Chain(GENESIS, open_rounds=2))
    return ProtocolState.begin(NullSigner(me), settings_of(), restored, now=0.0)


def path_of(state: ProtocolState) -> Path:
    return state.chain.path


def grown(state: ProtocolState, count: int) -> ProtocolState:
    """With `count` aborts on its path."""
    for _ in range(count):
        record = following_record(state.chain.head)
        proof = certificate(record, PEERS[:2])
        state.chain.follow([*path_of(state), state.chain.add(record, proof)])
    return state


def messages(actions: Sequence[Action]) -> list[Message]:
    return [a.message for a in actions if isinstance(a, Send)]


def told(*records: Record, proofs: Sequence[Certificate | None] = ()) -> Records:
    return Records(records, tuple(proofs or [certificate(r, PEERS[:2]) for r in records]))


def take(state: ProtocolState, message: Records, now: float = 1.0) -> list[Action]:
    return following.on_records(state, OTHER, message, now)


def result_record(parent: Record, label: str) -> Record:
    """A round record with one result, by `OTHER`."""
    record = following_record(parent, RecordKind.ROUND)
    piece = SliceResult(name(label), OTHER, (0,))
    return replace(record, shares=(Share(OTHER, name("c"), 1),), slices=(piece,))


def branch_after(
    head: Record,
    group: tuple[PeerId, ...],
    *,
    carried: Record | None = None,
    nonce: bytes = b"nonce",
) -> tuple[Record, Certificate]:
    votes = []
    for peer in group:
        unsigned = branch_vote(head, nonce, group, peer)
        statement = unsigned.statement(RUN)
        votes.append(replace(unsigned, signature=NullSigner(peer).sign(statement)))
    branch = branch_record(carried or head, nonce, group, PEERS[:3])
    return branch, Certificate(0, tuple(votes), (b"",) * len(votes))
