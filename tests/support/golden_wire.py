"""One example of everything that travels or is signed: its value, its bytes, and what reads these bytes back.

The bytes themselves are in tests/golden/wire.json, for this test suite and for other implementations.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runnel.clock import ManualClock
from runnel.dht.blob_server import Status, decode_request, encode_request
from runnel.dht.blobs import Tree, split
from runnel.dht.frames import Header, Refusal
from runnel.dht.frames import Kind as FrameKind
from runnel.dht.identity import SIGNATURE_BYTES, Identity
from runnel.dht.records import SignedRecordValidator, statement, value_of
from runnel.dht.wire import pack, unpack
from runnel.hashing import checksum, digest
from runnel.node import manifest
from runnel.node.actions import RoundKey
from runnel.node.bulk import PayloadSlice, read_slice
from runnel.node.corpus import CorpusIndex
from runnel.node.dataset_exchange import decode_index, encode_index
from runnel.node.invite import Invite
from runnel.node.manifest import SignedManifest
from runnel.node.message_types import Records
from runnel.node.messages import (
    certificate_from_wire,
    certificate_to_wire,
    decode,
    encode,
    lock_from_wire,
    lock_to_wire,
    proposal_statement,
)
from runnel.node.records import Commitment, Record, vote_from_wire, vote_to_wire
from runnel.node.run_service import Question
from runnel.node.ticket import Ticket, run_name
from runnel.optim.codecs import CODECS, codec_named
from runnel.optim.seed_rounds import RoundEntry
from runnel.types import PeerId
from tests.support import golden_run as run
from tests.support import wire_layouts as layouts
from tests.support.wire_kinds import Kind

FILE = Path(__file__).parents[1] / "golden" / "wire.json"
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Golden:
    """An example.

    Attributes:
        name: the key in the file.
        value: what it means.
        data: the bytes that this version makes of it.
        read: what this version makes of the bytes.
        kind: the layout of the value that `unpack` makes of the bytes, if they are a message.
    """

    name: str
    value: object
    data: bytes
    read: Callable[[bytes], object]
    kind: Kind | None = None


def all_of_them() -> list[Golden]:
    """In the order of the page."""
    return [
        *_frames(),
        *_control(),
        *_parts(),
        *_signed_bytes(),
        *_bulk(),
        *_run_and_blobs(),
        *_owner(),
        *_directory(),
        *_payloads(),
    ]


def stored() -> dict[str, str]:
    """The file: hexadecimal bytes by name."""
    found: dict[str, str] = json.loads(FILE.read_text())
    return found


def write() -> None:
    """Makes the file anew. A changed line is a new wire version."""
    content = {golden.name: golden.data.hex() for golden in all_of_them()}
    FILE.write_text(json.dumps(content, indent=1) + "\n")


def _frames() -> list[Golden]:
    tag = checksum(b"hello").digest()
    headers = {
        "frame DATA": Header(FrameKind.DATA, 5, tag),
        "frame ACK": Header(FrameKind.ACK, 0, tag),
        "frame REFUSE": Header(FrameKind.REFUSE, Refusal.TOO_LARGE, tag),
    }
    found = [Golden(name, h, h.encode(), Header.decode) for name, h in headers.items()]
    first = found[0]
    whole = Golden(first.name, first.value, first.data + b"hello", lambda d: Header.decode(d[:22]))
    return [whole, *found[1:]]


def _control() -> list[Golden]:
    return [
        Golden(f"control {name}", message, encode(run.RUN, message), lambda d: decode(run.RUN, d))
        for name, message in run.MESSAGES.items()
    ] + [
        Golden(
            "control frame",
            [encode(run.RUN, run.MESSAGES[name]) for name in ("Hello", "Leave")],
            pack([encode(run.RUN, run.MESSAGES[name]) for name in ("Hello", "Leave")]),
            lambda d: unpack(d, max_bytes=MAX_BYTES),
        )
    ]


def _parts() -> list[Golden]:
    def packed(data: bytes) -> object:
        return unpack(data, max_bytes=MAX_BYTES)

    return [
        Golden(
            "record",
            run.RECORD,
            run.RECORD.encoded,
            lambda d: Record.from_wire(packed(d)),
            layouts.RECORD,
        ),
        Golden(
            "branch record",
            run.BRANCH,
            run.BRANCH.encoded,
            lambda d: Record.from_wire(packed(d)),
            layouts.RECORD,
        ),
        Golden(
            "certificate",
            run.CERTIFICATE,
            pack(certificate_to_wire(run.CERTIFICATE)),
            lambda d: certificate_from_wire(packed(d)),
            layouts.CERTIFICATE,
        ),
        Golden(
            "lock",
            run.LOCK,
            pack(lock_to_wire(run.LOCK)),
            lambda d: lock_from_wire(packed(d)),
            layouts.LOCK,
        ),
        Golden(
            "commitment",
            run.COMMITMENT,
            pack(run.COMMITMENT.to_wire()),
            lambda d: Commitment.from_wire(packed(d)),
            layouts.COMMITMENT,
        ),
        Golden(
            "commitment to a public window",
            run.COMMITMENT_TO_WINDOW,
            pack(run.COMMITMENT_TO_WINDOW.to_wire()),
            lambda d: Commitment.from_wire(packed(d)),
            layouts.COMMITMENT,
        ),
        Golden(
            "vote",
            run.CERTIFICATE.votes[0],
            pack(vote_to_wire(run.CERTIFICATE.votes[0])),
            lambda d: vote_from_wire(packed(d)),
            layouts.VOTE,
        ),
    ]


def _signed_bytes() -> list[Golden]:
    """What signatures cover: there is nothing to read but whether the signature is the signer's."""

    def proved(name: str, data: bytes, signer: PeerId, signature: bytes) -> Golden:
        return Golden(name, True, data, lambda d: Identity.verify(signer, d, signature))

    vote, branch = run.CERTIFICATE.votes[0], run.BRANCH_VOTE
    proposal = run.SET_PROPOSAL
    return [
        proved(
            "signed: commitment",
            run.COMMITMENT.statement(run.RUN),
            run.COMMITMENT.peer,
            run.COMMITMENT.signature,
        ),
        proved("signed: vote", vote.statement(run.RUN), vote.voter, vote.signature),
        proved("signed: branch", branch.statement(run.RUN), branch.voter, branch.signature),
        proved(
            "signed: proposal",
            proposal_statement(run.RUN, proposal),
            proposal.proposer,
            run.SET_SIGNATURE,
        ),
        proved(
            "signed: manifest",
            manifest.statement(run.RUN),
            run.OWNER.peer_id,
            run.MANIFEST.signature,
        ),
        proved("signed: ticket", run.TICKET.statement(), run.OWNER.peer_id, run.TICKET.signature),
        Golden(
            "signed: directory record",
            True,
            statement(run.KEY_ID, run.ALICE.peer_id, *_stored()[:2]),
            lambda d: Identity.verify(run.ALICE.peer_id, d, _stored()[2]),
        ),
    ]


def _bulk() -> list[Golden]:
    key = RoundKey(0, run.FIRST.hash)
    piece = PayloadSlice(key, 0, run.COMMITMENT.id, (digest(b"sibling"),), run.PAYLOAD)
    result = digest(run.PAYLOAD)
    return [
        Golden(
            "slice",
            piece,
            piece.header() + bytes(piece.payload),
            lambda d: read_slice(memoryview(d)),
        ),
        Golden("slice taken", b"\x01", b"\x01", bytes),
        Golden("result wanted", result, bytes(result), bytes),
        Golden("result", run.PAYLOAD, b"\x01" + run.PAYLOAD, lambda d: d[1:]),
        Golden("result not here", b"", b"\x00", lambda d: d[1:]),
    ]


def _run_and_blobs() -> list[Golden]:
    name = run_name(run.RUN)
    asked = {
        "question manifest": Question(name, "manifest"),
        "question genesis": Question(run.RUN, "genesis"),
        "question records": Question(run.RUN, "records", (run.FIRST.hash,)),
        "question entries": Question(run.RUN, "entries", (run.FIRST.hash,)),
    }
    told: dict[str, bytes] = {
        "answer manifest": run.MANIFEST.encode(),
        "answer genesis": run.GENESIS_ROOTS,
        "answer records": encode(run.RUN, Records((run.RECORD,), (run.CERTIFICATE,))),
        "answer entries": pack([[0, RoundEntry(0, {0: b"\x05\xfa", 1: b"\x7f\x80"}).encode()]]),
    }
    root, root_blob, _ = split([run.STATE], chunk_bytes=256)
    tree = Tree(len(run.STATE), 256, (digest(run.STATE),))
    index = CorpusIndex((digest(b"a chunk"),), (digest(b"held out"),))
    return [
        *(Golden(n, q, q.encode(), Question.decode, layouts.QUESTION) for n, q in asked.items()),
        *(
            Golden(n, [True, a], pack([True, a]), lambda d: unpack(d, max_bytes=MAX_BYTES))
            for n, a in told.items()
        ),
        Golden(
            "answer refused",
            [False, b"this peer is not in that run"],
            pack([False, b"this peer is not in that run"]),
            lambda d: unpack(d, max_bytes=MAX_BYTES),
        ),
        Golden(
            "blob request", (root,), encode_request([root]), decode_request, layouts.BLOB_REQUEST
        ),
        Golden(
            "blob request, the last", (), encode_request([]), decode_request, layouts.BLOB_REQUEST
        ),
        Golden("blob found", root_blob, bytes([Status.FOUND]) + root_blob, lambda d: d[1:]),
        Golden("blob missing", b"", bytes([Status.MISSING]), lambda d: d[1:]),
        Golden("blob busy", b"", bytes([Status.BUSY]), lambda d: d[1:]),
        Golden("blob tree", tree, root_blob, lambda d: Tree.decode(d, max_total_bytes=1 << 20)),
        Golden("corpus index", index, encode_index(index), decode_index, layouts.CORPUS_INDEX),
    ]


def _owner() -> list[Golden]:
    whole = run.MANIFEST.encode()
    body = unpack(whole, max_bytes=MAX_BYTES)[0]
    return [
        Golden(
            "manifest body",
            run.RUN,
            body,
            digest,
            layouts.MANIFEST_BODY,
        ),
        Golden("manifest", run.MANIFEST, whole, SignedManifest.decode),
        Golden("ticket", run.TICKET, run.TICKET.encode(), Ticket.decode, layouts.TICKET_FIELDS),
        Golden("invite", run.INVITE, str(run.INVITE).encode(), lambda d: Invite.parse(d.decode())),
    ]


def _stored() -> tuple[bytes, float, bytes]:
    """Packed value, expiration and signature of a record in the directory."""
    validator = SignedRecordValidator(run.ALICE, ManualClock(unix_s=1_700_000_000.0))
    record = run.directory_record(validator, run.KEY_ID)
    return record.stored[:-SIGNATURE_BYTES], record.expires_s, record.stored[-SIGNATURE_BYTES:]


def _directory() -> list[Golden]:
    packed, _, signature = _stored()
    addresses = ["/ip4/203.0.113.5/tcp/4001"]
    return [
        Golden("directory subkey", bytes(run.ALICE.peer_id), pack(run.ALICE.peer_id), _unpacked),
        Golden("directory record", addresses, packed + signature, lambda d: _unpacked(value_of(d))),
    ]


def _unpacked(data: bytes) -> object:
    return unpack(data, max_bytes=MAX_BYTES)


def _payloads() -> list[Golden]:
    return [
        Golden(
            f"payload {name}",
            _decoded(name, codec_named(name).encode(run.VALUES)),
            codec_named(name).encode(run.VALUES),
            lambda d, name=name: _decoded(name, d),  # type: ignore[misc]
        )
        for name in CODECS
    ]


def _decoded(codec: str, data: bytes) -> list[float]:
    out = np.empty_like(run.VALUES)
    codec_named(codec).decode(data, out)
    return [float(value) for value in out]
