"""One message of each type with something in every field, and ways to damage their bytes."""

from __future__ import annotations

from dataclasses import replace

from runnel.node.certificates import Certificate
from runnel.node.messages import (
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
from runnel.node.records import Record, RecordKind, Share, SliceResult, set_value
from runnel.verification.votes import Instance, Lock, Proposal, Step
from tests.support.members import PEERS, certificate, commitment, following_record, genesis, name
from tests.support.members import vote as vote_of

SET = Instance("set", 7, name("base"))
OUTCOME = Instance("outcome", 7, name("parent"))
SIGNATURE = bytes(range(64))
COMMITMENTS = tuple(
    commitment(p, 7, name("base"), joins=[PEERS[5]], leaves=[PEERS[0]], unheard=[PEERS[3]])
    for p in PEERS[:2]
)
RESULT = SliceResult(name("result"), PEERS[1], (0, 1))
RECORD = Record(
    number=7,
    parent=name("parent"),
    kind=RecordKind.ROUND,
    shares=tuple(Share(c.peer, c.id, c.tokens) for c in COMMITMENTS),
    slices=(RESULT, replace(RESULT, included=(1,))),
    state_root=name("state"),
    view=PEERS[:3],
    unproven=PEERS[2:3],
    tokens=123_456,
    progress=17,
    finished=(0, 3),
)
CERTIFICATE = certificate(RECORD, PEERS[:2], attempt=1)
BRANCH = following_record(genesis(3), RecordKind.BRANCH, listed=2, nonce=b"nonce")
PROOF = tuple(vote_of(SET, p, set_value([c.id for c in COMMITMENTS])) for p in PEERS[:2])
LOCK = Lock(0, RECORD.hash, tuple(vote_of(OUTCOME, p, RECORD.hash) for p in PEERS[:2]))
SIGNED = vote_of(Instance("branch", 0, genesis(3).hash), PEERS[1], name("b"), step=Step.PRECOMMIT)

MESSAGES: dict[str, Message] = {
    "hello": Hello(name("head"), -1),
    "commit": Commit(COMMITMENTS[0]),
    "propose set": ProposeSet(
        Proposal(SET, 2, PROOF[0].value, PEERS[1], 0, PROOF), COMMITMENTS, SIGNATURE
    ),
    "propose outcome": ProposeOutcome(
        Proposal(OUTCOME, 0, RECORD.hash, PEERS[0]), RECORD, SIGNATURE
    ),
    "cast": Cast(LOCK.proof[0]),
    "set decided": SetDecided(COMMITMENTS, Certificate(0, PROOF)),
    "result ready": ResultReady(7, name("base"), 1, RESULT, 4096),
    "want records": WantRecords((name("head"), name("genesis"))),
    "records": Records(
        (RECORD, BRANCH, BRANCH), (CERTIFICATE, None, Certificate(0, (SIGNED,), (b"ticket",)))
    ),
    "join": Join(b"ticket", name("head"), 12),
    "leave": Leave(),
    "branch call": BranchCall(b"nonce", name("head"), PEERS[:2]),
    "branch sign": BranchSign(b"nonce", SIGNED, b"ticket", LOCK, RECORD),
    "branch sign without a lock": BranchSign(b"nonce", SIGNED, b"", None, None),
}


def damaged(data: bytes, place: int, kind: int, new: int) -> bytes:
    """`data` with one byte replaced, inserted or removed, or cut, at a place that wraps around."""
    place %= max(1, len(data))
    ways = (
        data[:place] + bytes([new]) + data[place + 1 :],
        data[:place] + bytes([new]) + data[place:],
        data[:place] + data[place + 1 :],
        data[:place],
    )
    return ways[kind % len(ways)]
