"""Multiaddresses: text and bytes are two forms of one thing, and nothing else decodes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.dht.identity import null_peer_id, to_base58
from runnel.dht.multiaddr import decode, encode, parse_peer_address, read_varint, unix, varint

PEER = to_base58(null_peer_id(1))

ports = st.integers(0, 65535)
hosts = st.text("abcdefghijklmnopqrstuvwxyz0123456789-.", min_size=1, max_size=60)
parts = st.one_of(
    st.builds(lambda ip, port: f"/ip4/{ip}/tcp/{port}", st.ip_addresses(v=4), ports),
    st.builds(lambda ip, port: f"/ip6/{ip}/udp/{port}/quic-v1", st.ip_addresses(v=6), ports),
    st.builds(lambda host, port: f"/dns4/{host}/tcp/{port}/ws", hosts, ports),
    st.just(f"/p2p/{PEER}/p2p-circuit"),
)


@given(st.lists(parts, min_size=1, max_size=3).map("".join))
def test_the_binary_form_decodes_to_the_same_text(text: str) -> None:
    assert decode(encode(text)) == text


@given(st.binary(max_size=80))
def test_bytes_decode_to_an_address_or_are_refused(data: bytes) -> None:
    try:
        text = decode(data)
    except ValueError:
        return
    assert decode(encode(text)) == text


def test_known_encodings() -> None:
    assert encode("/ip4/127.0.0.1/tcp/4001") == bytes.fromhex("047f000001060fa1")
    assert encode("/ip4/1.2.3.4/udp/1/quic-v1") == bytes.fromhex("0401020304910200 01cd03")
    assert unix("/tmp/a") == b"\x90\x03\x06/tmp/a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "127.0.0.1:4001",
        "/ip4/127.0.0.1/tcp",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/127.0.0.1/tcp/-1",
        "/ip4/127.0.0.1/tcp/²",
        "/ip4/300.0.0.1/tcp/1",
        "/ip6/127.0.0.1/tcp/1",
        "/dns4//tcp/1",
        "/onion/abc",
        "/ip4/127.0.0.1/tcp/1/p2p/QmWrong",
        "/dns4/" + "a" * 600,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode(text)


@given(st.data())
def test_a_cut_address_is_refused_or_a_shorter_one(data: st.DataObject) -> None:
    whole = encode(f"/ip4/1.2.3.4/tcp/5/p2p/{PEER}")
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with contextlib.suppress(ValueError):
        assert f"/ip4/1.2.3.4/tcp/5/p2p/{PEER}".startswith(decode(cut) + "/")


def test_a_peer_address_is_an_address_and_a_peer() -> None:
    text = f"/ip4/1.2.3.4/tcp/5/p2p/{PEER}"
    parsed = parse_peer_address(f"  {text}\n")
    assert (parsed.address, parsed.peer) == ("/ip4/1.2.3.4/tcp/5", null_peer_id(1))
    assert str(parsed) == text


@pytest.mark.parametrize(
    "text", ["/ip4/1.2.3.4/tcp/5", f"/p2p/{PEER}", "/ip4/1.2.3.4/tcp/5/p2p/Qm", f"x/p2p/{PEER}"]
)
def test_an_address_that_names_no_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_peer_address(text)


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3))
def test_numbers_of_any_size_survive(number: int, rest: bytes) -> None:
    data = varint(number)
    assert read_varint(data + rest, 0) == (number, len(data))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80" * 11])
def test_a_number_without_end_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="number"):
        read_varint(data, 0)
