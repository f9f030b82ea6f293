"""Control messages: every type keeps its fields and its bytes, and no bytes do harm."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.dht.wire import pack
from runnel.errors import PeerError
from runnel.node.messages import (
    MAX_MESSAGE_BYTES,
    WIRE_VERSION,
    Hello,
    Join,
    Leave,
    Message,
    Records,
    WantRecords,
    decode,
    encode,
    proposal_statement,
)
from runnel.node.records import Record
from runnel.verification.votes import Instance, Proposal
from tests.support.members import PEERS, RUN, name
from tests.support.wire_samples import MESSAGES, damaged


@pytest.mark.parametrize("label", MESSAGES)
def test_a_message_survives_the_wire(label: str) -> None:
    data = encode(RUN, MESSAGES[label])
    assert decode(RUN, data) == MESSAGES[label]
    assert encode(RUN, decode(RUN, bytearray(data))) == data


def test_every_type_has_a_sample() -> None:
    assert {type(message) for message in MESSAGES.values()} == set(get_args(Message))


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(MESSAGES)),
    st.lists(
        st.tuples(st.integers(0, 1 << 16), st.integers(0, 3), st.integers(0, 255)), max_size=3
    ),
)
def test_damaged_bytes_are_refused_or_are_another_message(
    label: str, damage: list[tuple[int, int, int]]
) -> None:
    data = encode(RUN, MESSAGES[label])
    for place, kind, new in damage:
        data = damaged(data, place, kind, new)
    try:
        message = decode(RUN, data)
    except PeerError:
        return
    assert encode(RUN, message) == data


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=64)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=14),
    max_leaves=30,
)


@settings(max_examples=200)
@given(st.integers(0, 15), VALUES)
def test_fields_of_any_shape_are_refused_or_are_a_message(kind: int, fields: object) -> None:
    try:
        data = pack([WIRE_VERSION, kind, RUN, fields])
    except ValueError:
        return
    try:
        message = decode(RUN, data)
    except PeerError:
        return
    assert encode(RUN, message) == data


def refusal(value: object, run: bytes = RUN) -> str:
    with pytest.raises(PeerError) as caught:
        decode(run, pack(value))
    return caught.value.reason


def test_other_versions_runs_and_types_are_refused_by_name() -> None:
    hello = [name("head"), 3]
    assert refusal([WIRE_VERSION + 1, 1, RUN, hello]) == "version"
    assert refusal(["1", 1, RUN, hello]) == "version"
    assert refusal([WIRE_VERSION, 1, name("other run"), hello]) == "run"
    for kind in (0, 14, -1, "1", None, True, 1.0):
        assert refusal([WIRE_VERSION, kind, RUN, hello]) == "malformed"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (1, [name("head")]),
        (1, [b"short", 3]),
        (1, [name("head"), -2]),
        (1, [name("head"), 1 << 62]),
        (1, [name("head"), 3.0]),
        (1, [name("head"), True]),
        (6, [[], []]),
        (7, [7, name("base"), 0, [name("r"), PEERS[0], []], 1]),
        (7, [7, name("base"), 0, [name("r"), PEERS[0], [1, 0]], 1]),
        (7, [7, name("base"), 0, [name("r"), PEERS[0], [0, 0]], 1]),
        (7, [7, name("base"), 0, [name("r"), PEERS[0], [64]], 1]),
        (8, [name("head")] * 257),
        (9, [[[], []]]),
        (10, [b"t" * 513, name("head"), 0]),
        (11, [0]),
        (12, [b"n" * 33, name("head"), []]),
        (12, [b"", name("head"), [PEERS[0]] * 65]),
    ],
)
def test_fields_out_of_bounds_are_refused(kind: int, fields: object) -> None:
    assert refusal([WIRE_VERSION, kind, RUN, fields]) == "malformed"


def test_too_long_a_message_is_refused() -> None:
    with pytest.raises(PeerError, match="malformed"):
        decode(RUN, b"\xc4" * (MAX_MESSAGE_BYTES + 1))


def test_records_hold_sixty_four_at_most() -> None:
    records = MESSAGES["records"]
    assert isinstance(records, Records)
    many = Records(records.records[:1] * 65, records.certificates[:1] * 65)
    with pytest.raises(PeerError):
        decode(RUN, encode(RUN, many))


def test_a_proposal_is_signed_with_its_run_instance_attempt_and_lock() -> None:
    def statement(run: bytes = RUN, attempt: int = 0, lock: int = -1, base: str = "b") -> bytes:
        instance = Instance("set", 1, name(base))
        return proposal_statement(run, Proposal(instance, attempt, name("v"), PEERS[0], lock))

    other = [statement(name("r")), statement(attempt=1), statement(lock=0), statement(base="c")]
    assert len({statement(), *other}) == 5


def test_small_messages_are_small() -> None:
    for message, limit in ((Leave(), 40), (Hello(name("h"), 9), 75), (Join(b"", name("h"), 9), 80)):
        assert len(encode(RUN, message)) <= limit
    assert len(encode(RUN, WantRecords((name("h"),) * 256))) < 10_000


def test_a_decoded_record_has_the_name_of_the_one_sent() -> None:
    sent = MESSAGES["records"]
    assert isinstance(sent, Records)
    received = decode(RUN, encode(RUN, sent))
    assert isinstance(received, Records)
    assert [record.hash for record in received.records] == [r.hash for r in sent.records]
    assert isinstance(received.records[0], Record)
