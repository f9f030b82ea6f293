"""Messages to and from the daemon: they survive the way, and nonsense is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.dht.daemon_messages import (
    RequestType,
    decode_fields,
    decode_response,
    decode_stream_head,
    encode_fields,
    request,
)
from runnel.dht.identity import null_peer_id

fields = st.lists(
    st.tuples(st.integers(1, 1000), st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=300))),
    max_size=8,
)


@given(fields)
def test_fields_survive_encoding(values: list[tuple[int, int | bytes]]) -> None:
    assert decode_fields(encode_fields(values)) == values


@given(st.binary(max_size=100))
def test_no_bytes_raise_anything_but_value_errors(data: bytes) -> None:
    for decode in (decode_fields, decode_response, decode_stream_head):
        with contextlib.suppress(ValueError):
            decode(data)


def test_requests_are_what_the_daemon_reads() -> None:
    assert request(RequestType.IDENTIFY) == b"\x02\x08\x00"
    assert request(RequestType.LIST_PEERS) == b"\x02\x08\x05"
    body: list[tuple[int, int | bytes]] = [(1, b"peer"), (2, b"/x")]
    encoded = b"\x0a\x04peer\x12\x02/x"
    assert request(RequestType.STREAM_OPEN, body) == b"\x0e\x08\x02\x1a\x0a" + encoded


def test_a_refusal_carries_its_reason() -> None:
    refusal = encode_fields([(1, 1), (2, encode_fields([(1, b"no such peer")]))])
    assert decode_response(refusal).error == "no such peer"


def test_peers_and_identity_are_found_in_answers() -> None:
    peer = encode_fields([(1, b"id"), (2, b"a1"), (2, b"a2")])
    assert decode_response(encode_fields([(1, 0), (4, peer)])).identity == (b"id", (b"a1", b"a2"))
    listed = decode_response(encode_fields([(1, 0), (6, peer), (6, peer)]))
    assert listed.peers == ((b"id", (b"a1", b"a2")),) * 2
    found = encode_fields([(1, 1), (2, peer)])
    assert decode_response(encode_fields([(1, 0), (5, found)])).peers == ((b"id", (b"a1", b"a2")),)


def test_a_stream_is_of_a_peer_with_a_whole_id() -> None:
    head = decode_stream_head(encode_fields([(1, null_peer_id(3)), (2, b"addr"), (3, b"/p")]))
    assert (head.peer, head.protocol) == (null_peer_id(3), "/p")
    with pytest.raises(ValueError, match="38"):
        decode_stream_head(encode_fields([(1, b"short"), (3, b"/p")]))
