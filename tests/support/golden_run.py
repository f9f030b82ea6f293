"""A tiny run by fixed keys: two members, one round, one branch. Everything in it is truly signed and holds together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runnel.dht.identity import Identity, peer_id_of
from runnel.dht.records import Record as DirectoryRecord
from runnel.dht.records import SignedRecordValidator
from runnel.dht.wire import pack
from runnel.hashing import digest, merkle_root
from runnel.node.bootstrap import BootstrapAddress
from runnel.node.branches import branch_record, branch_vote
from runnel.node.certificates import Certificate
from runnel.node.invite import Invite
from runnel.node.joining import genesis_blob
from runnel.node.manifest import Genesis, SignedManifest
from runnel.node.manifest_sections import RunSection
from runnel.node.manifest_spec import RunSpec
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
from runnel.node.messages import proposal_statement
from runnel.node.outcomes import genesis_record
from runnel.node.records import (
    Commitment,
    JoinRequest,
    Record,
    RecordKind,
    Share,
    SliceResult,
    set_value,
)
from runnel.node.ticket import Ticket, binding_of, run_name
from runnel.node.window_facts import Move, WindowFacts
from runnel.optim.codecs import codec_named
from runnel.types import Digest
from runnel.verification.votes import Instance, Lock, Proposal, Step, Vote


def identity_of(seed: int) -> Identity:
    """The identity whose private key is 32 bytes of `seed`."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    return Identity(peer_id_of(key.public_key().public_bytes_raw()), key)


ALICE, BOB, CAROL, OWNER = (identity_of(seed) for seed in (1, 2, 3, 4))
SEEDS = {"alice": 1, "bob": 2, "carol": 3, "owner": 4}
VIEW = tuple(sorted((ALICE.peer_id, BOB.peer_id)))
BY_ID = {who.peer_id: who for who in (ALICE, BOB, CAROL, OWNER)}

STATE = np.array(
    [0.5, -1.0, 0.0, 0.0], dtype="<f4"
).tobytes()  # two parameters, then their momentum
GENESIS_ROOTS = genesis_blob([digest(b"first fragment"), digest(b"second fragment")])
MANIFEST = SignedManifest.issue(
    OWNER,
    RunSpec(run=RunSection(name="golden")),
    Genesis(
        state_root=digest(GENESIS_ROOTS),
        members=VIEW,
        created_unix_s=1_700_000_000,
        data_root=Digest(bytes(32)),
    ),
)
RUN = MANIFEST.run_id
ADDRESS = BootstrapAddress("ip4", "203.0.113.5", 4001, ALICE.peer_id)
PACKED_ADDRESS = ADDRESS.pack(owner=OWNER.peer_id, previous=None)
_UNSIGNED = Ticket(
    run_id=run_name(RUN),
    nonce=b"\x01\x02\x03\x04",
    expires_unix_s=1_800_000_000,
    grants_vote=True,
    binding=binding_of(PACKED_ADDRESS),
    signature=b"",
)
TICKET = replace(_UNSIGNED, signature=OWNER.sign(_UNSIGNED.statement()))
INVITE = Invite(run_id=run_name(RUN), owner=OWNER.peer_id, bootstraps=(ADDRESS,), ticket=TICKET)

FIRST = genesis_record(VIEW, MANIFEST.genesis.state_root)
VALUES = np.array([1.0, -0.5, 0.25], dtype=np.float32)
PAYLOAD = codec_named("e3m0").encode(VALUES)


def signed_commitment(
    who: Identity, *, joins: tuple[JoinRequest, ...] = (), window: WindowFacts | None = None
) -> Commitment:
    unsigned = Commitment(
        peer=who.peer_id,
        round=0,
        base=FIRST.hash,
        payload_root=merkle_root([digest(PAYLOAD)]),
        slice_norms=(codec_named("e3m0").norm(PAYLOAD, VALUES.size),),
        withheld=(),
        tokens=4096,
        steps=40,
        loss=2.5,
        progress=1000,
        joins=joins,
        leaves=(),
        unheard=(),
        window=window,
    )
    return replace(unsigned, signature=who.sign(unsigned.statement(RUN)))


def signed_vote(who: Identity, instance: Instance, value: Digest, step: Step) -> Vote:
    vote = Vote(instance, 0, step, value, who.peer_id)
    return replace(vote, signature=who.sign(vote.statement(RUN)))


COMMITMENT = signed_commitment(BOB, joins=(JoinRequest(CAROL.peer_id, TICKET.encode()),))
WINDOW = WindowFacts(
    digest(b"values"),
    digest(b"moments"),
    digest(b"later moments"),
    digest(b"residual"),
    1000,
    (Move(2, 4, starts=True), Move(9, 4, starts=False)),
    (Move(0, 8, starts=False),),
)
COMMITMENT_TO_WINDOW = signed_commitment(CAROL, window=WINDOW)
SET = Instance("set", 0, FIRST.hash)
SET_VALUE = set_value([COMMITMENT.id])
SET_CERTIFICATE = Certificate(
    0, tuple(signed_vote(BY_ID[p], SET, SET_VALUE, Step.PRECOMMIT) for p in VIEW)
)
RESULT = SliceResult(digest(PAYLOAD), BOB.peer_id, (0,))
RECORD = Record(
    number=0,
    parent=FIRST.hash,
    kind=RecordKind.ROUND,
    shares=(Share(BOB.peer_id, COMMITMENT.id, COMMITMENT.tokens),),
    slices=(RESULT,),
    state_root=digest(b"the root of the new state's tree"),
    view=tuple(sorted((*VIEW, CAROL.peer_id))),
    unproven=(CAROL.peer_id,),
    tokens=4096,
    progress=1000,
    finished=(),
)
OUTCOME = Instance("outcome", 0, FIRST.hash)
CERTIFICATE = Certificate(
    0, tuple(signed_vote(BY_ID[p], OUTCOME, RECORD.hash, Step.PRECOMMIT) for p in VIEW)
)
LOCK = Lock(
    0, RECORD.hash, tuple(signed_vote(BY_ID[p], OUTCOME, RECORD.hash, Step.PREVOTE) for p in VIEW)
)

NONCE = bytes(range(16))
GROUP = (BOB.peer_id,)
_BRANCH_VOTE = branch_vote(RECORD, NONCE, GROUP, BOB.peer_id)
BRANCH_VOTE = replace(_BRANCH_VOTE, signature=BOB.sign(_BRANCH_VOTE.statement(RUN)))
BRANCH = branch_record(RECORD, NONCE, GROUP, VIEW)
BRANCH_CERTIFICATE = Certificate(0, (BRANCH_VOTE,), (b"",))


def _proposal(who: Identity, instance: Instance, value: Digest) -> tuple[Proposal, bytes]:
    proposal = Proposal(instance, 0, value, who.peer_id)
    return proposal, who.sign(proposal_statement(RUN, proposal))


SET_PROPOSAL, SET_SIGNATURE = _proposal(ALICE, SET, SET_VALUE)
OUTCOME_PROPOSAL, OUTCOME_SIGNATURE = _proposal(BOB, OUTCOME, RECORD.hash)
_REPEATED = Proposal(OUTCOME, 1, RECORD.hash, ALICE.peer_id, LOCK.attempt, LOCK.proof)
LOCKED_PROPOSAL, LOCKED_SIGNATURE = _REPEATED, ALICE.sign(proposal_statement(RUN, _REPEATED))
_OLD_CALL = branch_vote(FIRST, NONCE, GROUP, BOB.peer_id)
LOCKED_CALL = replace(_OLD_CALL, signature=BOB.sign(_OLD_CALL.statement(RUN)))

MESSAGES: dict[str, Message] = {
    "Hello": Hello(FIRST.hash, -1),
    "Commit": Commit(COMMITMENT),
    "ProposeSet": ProposeSet(SET_PROPOSAL, (COMMITMENT,), SET_SIGNATURE),
    "ProposeOutcome": ProposeOutcome(LOCKED_PROPOSAL, RECORD, LOCKED_SIGNATURE),
    "Cast": Cast(CERTIFICATE.votes[0]),
    "SetDecided": SetDecided((COMMITMENT,), SET_CERTIFICATE),
    "ResultReady": ResultReady(0, FIRST.hash, 0, RESULT, len(PAYLOAD)),
    "WantRecords": WantRecords((RECORD.hash, FIRST.hash)),
    "Records": Records((RECORD, BRANCH), (CERTIFICATE, BRANCH_CERTIFICATE)),
    "Join": Join(TICKET.encode(), FIRST.hash, -1),
    "Leave": Leave(),
    "BranchCall": BranchCall(NONCE, RECORD.hash, GROUP),
    "BranchSign": BranchSign(NONCE, LOCKED_CALL, b"", LOCK, RECORD),
    "BranchSign without a lock": BranchSign(NONCE, BRANCH_VOTE, b"", None, None),
}

KEY_ID = bytes.fromhex("00" * 20)


def directory_record(validator: SignedRecordValidator, key_id: bytes) -> DirectoryRecord:
    """What Alice leaves in the directory: one address, until a fixed second."""
    value = pack(["/ip4/203.0.113.5/tcp/4001"])
    return validator.sign(key_id, value, 1_700_000_300.0)
