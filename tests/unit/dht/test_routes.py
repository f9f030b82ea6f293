"""Routes from connections, detours around what is in between, and the messages that ask for them."""

from __future__ import annotations

import pytest

from runnel.dht.circuits import (
    Status,
    accepts,
    hop_answer,
    is_circuit,
    read_hop_request,
    relay_of,
    stop_request,
    through,
)
from runnel.dht.daemon_control import Connection
from runnel.dht.daemon_messages import decode_fields, encode_fields
from runnel.dht.identity import null_peer_id, to_base58
from runnel.dht.multiaddr import decode, encode
from runnel.dht.routes import DIRECT, MAX_DETOURS, Route, detours, endpoint, routes

ME, A, B, C = (null_peer_id(n) for n in range(4))
OTHERS = [null_peer_id(n) for n in range(10, 30)]
AT_A = "/ip4/11.0.0.1/tcp/4001"


def test_a_direct_connection_counts_before_one_through_others() -> None:
    seen = [
        Connection(B, through(A, AT_A)),
        Connection(A, AT_A),
        Connection(B, "/ip4/1.2.3.4/tcp/9"),
    ]
    assert routes(seen) == {A: DIRECT, B: DIRECT}
    assert routes(reversed(seen)) == {A: DIRECT, B: DIRECT}
    assert routes(seen[:2]) == {A: DIRECT, B: Route(A)}


def test_a_connection_through_a_peer_of_another_kind_is_left_out() -> None:
    assert (
        routes(
            [
                Connection(
                    B, f"{AT_A}/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N/p2p-circuit"
                )
            ]
        )
        == {}
    )


def test_detours_lead_through_direct_neighbours_only() -> None:
    found = detours(ME, C, {A: DIRECT, B: Route(A), C: DIRECT})
    assert found == [f"/p2p/{to_base58(A)}/p2p-circuit"]


def test_detours_are_few_start_with_the_preferred_and_are_the_same_for_both_ends() -> None:
    known = dict.fromkeys(OTHERS, DIRECT)
    found = detours(ME, C, known, preferred=OTHERS[5:6])
    assert len(found) == MAX_DETOURS
    assert relay_of(found[0]) == to_base58(OTHERS[5])
    assert found == detours(C, ME, known, preferred=OTHERS[5:6])


def test_pairs_share_the_load_among_their_helpers() -> None:
    known = dict.fromkeys(OTHERS, DIRECT)
    first = {relay_of(detours(ME, null_peer_id(n), known)[0]) for n in range(100, 160)}
    assert len(first) > len(OTHERS) / 2


@pytest.mark.parametrize("address", ["", AT_A])
def test_an_address_through_a_peer_is_one_for_daemons_too(address: str) -> None:
    text = through(A, address)
    assert is_circuit(text)
    assert relay_of(text) == to_base58(A)
    assert decode(encode(text)) == text
    assert not is_circuit(AT_A)
    assert relay_of(AT_A) == ""


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (AT_A, ("11.0.0.1", 4001)),
        ("/ip6/2001:db8::1/tcp/1", ("2001:db8::1", 1)),
        ("/ip4/127.0.0.1/tcp/4001", None),
        ("/ip4/0.0.0.0/tcp/4001", None),
        ("/dns/example.org/tcp/4001", None),
        ("/ip4/11.0.0.1/udp/4001", None),
        (through(A, AT_A), None),
        (through(A), None),
    ],
)
def test_endpoints_are_direct_addresses_that_strangers_could_use(
    address: str, expected: tuple[str, int] | None
) -> None:
    assert endpoint(address) == expected


def body(framed: bytes) -> bytes:
    assert framed[0] == len(framed) - 1, "one byte of length"
    return framed[1:]


def test_requests_for_circuits_are_read_and_those_for_reservations_told_apart() -> None:
    assert read_hop_request(encode_fields([(1, 1), (2, encode_fields([(1, bytes(C))]))])) == C
    assert read_hop_request(encode_fields([(1, 0)])) is None
    assert read_hop_request(b"") is None


@pytest.mark.parametrize(
    "data",
    [
        encode_fields([(1, 1)]),
        encode_fields([(1, 1), (2, encode_fields([(1, b"short")]))]),
        encode_fields([(1, 1), (2, b"\xff")]),
        b"\x0a\x50",
    ],
)
def test_a_malformed_request_for_a_circuit_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_hop_request(data)


def test_answers_say_how_it_went_and_name_no_limit() -> None:
    assert decode_fields(body(hop_answer(Status.OK))) == [(1, 2), (5, 100)]
    assert decode_fields(body(stop_request(A))) == [(1, 0), (2, encode_fields([(1, bytes(A))]))]
    assert accepts(encode_fields([(1, 1), (4, 100)]))
    assert not accepts(encode_fields([(1, 1), (4, 203)]))
    assert not accepts(encode_fields([(1, 0), (4, 100)]))
