"""The fields of every wire message in their order, with types and limits: what docs/protocol.md shows of them."""

from __future__ import annotations

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
from tests.support.wire_kinds import (
    DIGEST,
    MAYBE_DIGEST,
    NONCE,
    NUMBER,
    PEER,
    PLACES,
    SIGNATURE,
    TICKET,
    Kind,
    Many,
    Row,
    Scalar,
    integer,
    one_of,
    up_to,
)

MEMBERS = 64

INSTANCE_KIND = one_of("set", "outcome", "branch")
INSTANCE = Row("instance", (("kind", INSTANCE_KIND), ("round", integer()), ("base", DIGEST)))
VOTE = Row(
    "vote",
    (
        ("instance.kind", INSTANCE_KIND),
        ("instance.round", integer()),
        ("instance.base", DIGEST),
        ("attempt", integer()),
        ("step", one_of(1, 2)),
        ("value", MAYBE_DIGEST),
        ("voter", PEER),
        ("signature", SIGNATURE),
    ),
)
VOTES = Many(VOTE, MEMBERS)
JOIN_REQUEST = Row("join request", (("peer", PEER), ("ticket", TICKET)))
MOVE = Row("move", (("step", integer()), ("round", integer()), ("starts", one_of(0, 1))))
WINDOW = Row(
    "window",
    (
        ("version", one_of(1)),
        ("values", DIGEST),
        ("inner", DIGEST),
        ("next_inner", DIGEST),
        ("residual", DIGEST),
        ("progress", integer()),
        ("moves", Many(MOVE, 16)),
        ("late", Many(MOVE, 16)),
    ),
    optional=True,
)
COMMITMENT = Row(
    "commitment",
    (
        ("peer", PEER),
        ("round", integer()),
        ("base", DIGEST),
        ("payload_root", DIGEST),
        ("slice_norms", Many(NUMBER, MEMBERS)),
        ("withheld", Many(integer(), MEMBERS)),
        ("tokens", integer()),
        ("steps", integer()),
        ("loss", NUMBER),
        ("progress", integer()),
        ("joins", Many(JOIN_REQUEST, MEMBERS)),
        ("leaves", Many(PEER, MEMBERS)),
        ("unheard", Many(PEER, MEMBERS)),
        ("window", WINDOW),
        ("carried", up_to(8192)),
        ("signature", SIGNATURE),
    ),
)
COMMITMENTS = Many(COMMITMENT, MEMBERS)
RESULT = Row("slice result", (("root", DIGEST), ("reducer", PEER), ("included", PLACES)))
SHARE = Row("share", (("peer", PEER), ("commitment", DIGEST), ("tokens", integer())))
RECORD_FIELDS: tuple[tuple[str, Kind], ...] = (
    ("number", integer(-1)),
    ("parent", MAYBE_DIGEST),
    ("kind", one_of(0, 1, 2, 3)),
    ("shares", Many(SHARE, MEMBERS)),
    ("slices", Many(RESULT, MEMBERS)),
    ("state_root", MAYBE_DIGEST),
    ("view", Many(PEER, MEMBERS)),
    ("unproven", Many(PEER, MEMBERS)),
    ("tokens", integer()),
    ("progress", integer()),
    ("finished", Many(integer(), 4096)),
    ("listed", integer()),
    ("nonce", NONCE),
)
RECORD = Row("record", RECORD_FIELDS)
CERTIFICATE_FIELDS: tuple[tuple[str, Kind], ...] = (
    ("attempt", integer()),
    ("votes", VOTES),
    ("tickets", Many(TICKET, MEMBERS)),
)
CERTIFICATE = Row("certificate", CERTIFICATE_FIELDS)
LOCK = Row("lock", (("attempt", integer()), ("value", DIGEST), ("proof", VOTES)), optional=True)
PROPOSAL = Row(
    "proposal",
    (
        ("instance", INSTANCE),
        ("attempt", integer()),
        ("value", DIGEST),
        ("proposer", PEER),
        ("lock_attempt", integer(-1)),
        ("proof", VOTES),
    ),
)
RECORD_WITH_PROOF = Row(
    "record with its certificate",
    (("record", RECORD), ("certificate", Row("certificate", CERTIFICATE_FIELDS, optional=True))),
)

CONTROL: dict[int, tuple[type[Message], Kind]] = {
    1: (Hello, Row("Hello", (("head", DIGEST), ("number", integer(-1))))),
    2: (Commit, COMMITMENT),
    3: (
        ProposeSet,
        Row(
            "ProposeSet",
            (("proposal", PROPOSAL), ("commitments", COMMITMENTS), ("signature", SIGNATURE)),
        ),
    ),
    4: (
        ProposeOutcome,
        Row(
            "ProposeOutcome",
            (("proposal", PROPOSAL), ("record", RECORD), ("signature", SIGNATURE)),
        ),
    ),
    5: (Cast, VOTE),
    6: (
        SetDecided,
        Row("SetDecided", (("commitments", COMMITMENTS), ("certificate", CERTIFICATE))),
    ),
    7: (
        ResultReady,
        Row(
            "ResultReady",
            (
                ("round", integer()),
                ("base", DIGEST),
                ("slice_index", integer()),
                ("result", RESULT),
                ("size_bytes", integer()),
            ),
        ),
    ),
    8: (WantRecords, Many(DIGEST, 256)),
    9: (Records, Many(RECORD_WITH_PROOF, 64)),
    10: (Join, Row("Join", (("ticket", TICKET), ("head", DIGEST), ("number", integer(-1))))),
    11: (Leave, Row("Leave", ())),
    12: (
        BranchCall,
        Row("BranchCall", (("nonce", NONCE), ("parent", DIGEST), ("group", Many(PEER, MEMBERS)))),
    ),
    13: (
        BranchSign,
        Row(
            "BranchSign",
            (
                ("nonce", NONCE),
                ("vote", VOTE),
                ("ticket", TICKET),
                ("lock", LOCK),
                ("locked", Row("record", RECORD_FIELDS, optional=True)),
            ),
        ),
    ),
}
"""By type number: the class, and what its `fields` are."""

SLICE_HEADER = Row(
    "slice header",
    (
        ("key.number", integer()),
        ("key.base", DIGEST),
        ("index", integer()),
        ("commitment", DIGEST),
        ("path", Many(DIGEST, MEMBERS)),
    ),
)
QUESTION = Row(
    "question",
    (
        ("run", up_to(32, "run id, or its first 16 bytes: bytes")),
        ("kind", Scalar('`"manifest"`, `"genesis"`, `"records"` or `"entries"`', ("manifest",))),
        ("names", Many(DIGEST, 256)),
    ),
)
BLOB_REQUEST = Row("blob request", (("version", one_of(1)), ("digests", Many(DIGEST, 64))))
CORPUS_INDEX = Row(
    "corpus index",
    (
        ("version", one_of(1)),
        ("chunks", Scalar("digests, joined", (bytes(32), b""), (bytes(31), bytes(33)))),
        ("held_out", Scalar("digests, joined", (bytes(32), b""), (bytes(31), bytes(33)))),
    ),
)
TICKET_FIELDS = Row(
    "ticket",
    (
        ("version", one_of(1)),
        ("run_id", Scalar("first 16 bytes of the run id", (bytes(16),), (b"", bytes(15)))),
        ("nonce", Scalar("4 bytes", (bytes(4),), (b"", bytes(5)))),
        (
            "expires_unix_s",
            Scalar("integer, 0 to 2^32 - 1: seconds since 1970", (0, 2**32 - 1), (-1, 2**32)),
        ),
        ("grants_vote", Scalar("boolean", (True, False))),
        (
            "binding",
            Scalar("first 16 bytes of the digest of the packed addresses", (bytes(16),), (b"",)),
        ),
        ("signature", Scalar("64 bytes", (bytes(64),), (b"", bytes(63), bytes(65)))),
    ),
)
MANIFEST_BODY = Row(
    "manifest body",
    (
        ("version", one_of(1)),
        ("values", Scalar("array of 7 arrays, [the settings](#settings)", ([],))),
        ("owner", PEER),
        ("state_root", DIGEST),
        ("members", Many(PEER, MEMBERS)),
        ("created_unix_s", Scalar("integer, 0 to 2^40", (0, 2**40), (-1, 2**40 + 1))),
        ("data_root", Scalar("digest; 32 zero bytes if peers bring their own data", (bytes(32),))),
    ),
)
