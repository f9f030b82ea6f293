"""Invites: short enough for a chat line, and refused whole if one character is wrong."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runnel.dht.identity import Identity, null_peer_id, to_base58
from runnel.dht.wire import pack, unpack
from runnel.errors import ConfigError, PeerError
from runnel.hashing import digest
from runnel.node.invite import MAX_ADDRESSES, PREFIX, Invite
from runnel.node.ticket import MAX_TICKET_BYTES, Ticket
from runnel.types import PeerId

OWNER = Identity.generate()
RUN_ID = digest(b"run")
LATER = 1_800_000_000
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def address(number: int = 1, peer: PeerId | None = None) -> str:
    name = to_base58(null_peer_id(number) if peer is None else peer)
    return f"/ip4/203.0.113.{number}/tcp/{4000 + number}/p2p/{name}"


def invite(*addresses: str, owner: Identity = OWNER) -> Invite:
    chosen = addresses or (address(1, owner.peer_id), address(2))
    return Invite.issue(owner, RUN_ID, chosen, expires_unix_s=LATER)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Invite.parse(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


octets = st.binary(min_size=4, max_size=4).filter(any).map(lambda b: ".".join(map(str, b)))
labels = st.from_regex(r"\A[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?\Z")
hosts = st.one_of(
    octets.map("/ip4/{}".format),
    st.ip_addresses(v=6).filter(lambda ip: not ip.is_unspecified).map("/ip6/{}".format),
    st.tuples(
        st.sampled_from(["dns", "dns4", "dns6"]),
        st.lists(labels, min_size=1, max_size=4).map(".".join),
    )
    .map("/".join)
    .map("/{}".format),
)
peers = st.one_of(st.just(OWNER.peer_id), st.integers(0, 3).map(null_peer_id))
addresses = st.builds(
    "{}/tcp/{}/p2p/{}".format, hosts, st.integers(1, 65_535), peers.map(to_base58)
)


@given(st.lists(addresses, min_size=1, max_size=MAX_ADDRESSES, unique=True), st.booleans())
@settings(deadline=None)
def test_any_invite_reads_back_equal(texts: list[str], grants_vote: bool) -> None:
    made = Invite.issue(OWNER, RUN_ID, texts, expires_unix_s=LATER, grants_vote=grants_vote)
    read = Invite.parse(str(made))
    assert read == made
    assert read.addresses == tuple(texts)
    assert read.ticket.grants_vote is grants_vote
    assert read.names(RUN_ID)
    assert not read.names(digest(b"other"))
    assert read.ticket.check(OWNER.peer_id, RUN_ID, LATER).accepted


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_invite_fits_a_chat_line(count: int) -> None:
    text = str(invite(*(address(number) for number in range(1, count + 1))))
    assert text.startswith("runnel:")
    assert 120 <= len(text) <= 330
    assert set(text.removeprefix("runnel:")) <= set(ALPHABET)


def test_the_owners_own_address_costs_no_second_key() -> None:
    own, other = invite(address(1, OWNER.peer_id)), invite(address(1))
    assert len(str(other)) - len(str(own)) == pytest.approx(32 * 4 / 3, abs=1)


def test_line_breaks_and_spaces_of_a_mail_program_do_not_matter() -> None:
    text = str(invite())
    assert Invite.parse(f"  {text[:50]}\r\n {text[50:]}\n") == invite_of(text)


def invite_of(text: str) -> Invite:
    return Invite.parse(text)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_one_changed_character_is_refused(data: st.DataObject) -> None:
    text = INVITE_TEXT
    place = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.one_of(st.sampled_from(ALPHABET), st.characters()))
    assume(character != text[place])
    refusal(text[:place] + character + text[place + 1 :])


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_lost_doubled_or_swapped_character_is_refused(data: st.DataObject) -> None:
    text = INVITE_TEXT
    place = data.draw(st.integers(0, len(text) - 2))
    refusal(text[:place] + text[place + 1 :])
    refusal(text[:place] + text[place] + text[place:])
    assume(text[place] != text[place + 1])
    refusal(text[:place] + text[place + 1] + text[place] + text[place + 2 :])


INVITE_TEXT = str(invite())


def test_every_character_is_protected_also_by_the_signature_alone() -> None:
    """A forger who repairs the checksum gets no further than the signature."""
    payload = decoded(INVITE_TEXT)
    for place in range(3, len(payload) - 2):
        changed = payload[:place] + bytes([payload[place] ^ 1]) + payload[place + 1 : -2]
        said = refusal(encoded(changed + digest(changed)[:2]))
        assert "not signed by the owner named in it" in said, place


def test_a_vote_cannot_be_added_to_an_invite_without_one() -> None:
    text = str(Invite.issue(OWNER, RUN_ID, [address(1)], expires_unix_s=LATER, grants_vote=False))
    payload = decoded(text)
    changed = bytes([payload[0] | 0x08]) + payload[1:-2]
    assert "not signed" in refusal(encoded(changed + digest(changed)[:2]))


def test_a_cut_invite_says_how_much_of_it_is_there() -> None:
    text = INVITE_TEXT
    for length in range(11, len(text)):
        said = refusal(text[:length])
        assert f"cut short: {length} of {len(text)} characters" in said
    assert "cut short: 10 characters" in refusal(text[:10])
    assert f"too long: {len(text) + 4} of {len(text)}" in refusal(text + "AAAA")


@pytest.mark.parametrize("text", ["", "hello", "runnel", "Runnel:AAAA", "http://x", "x" * 100_000])
def test_what_is_no_invite_is_called_so(text: str) -> None:
    assert "is not an invite" in refusal(text)


def test_a_character_that_no_invite_has_is_named() -> None:
    assert "character 20 of this invite is '%'" in refusal(
        INVITE_TEXT[:19] + "%" + INVITE_TEXT[20:]
    )


def test_an_invite_of_a_newer_version_asks_for_an_upgrade() -> None:
    payload = decoded(INVITE_TEXT)
    changed = bytes([payload[0] & 0x0F | 0x20]) + payload[1:-2]
    said = refusal(encoded(changed + digest(changed)[:2]))
    assert said.startswith("this invite is made for a newer runnel (format 2, this one reads 1)")


@pytest.mark.parametrize("first", ["A", "Z", "_"])
def test_a_wrong_first_character_is_no_newer_version(first: str) -> None:
    place = len(PREFIX)
    assert INVITE_TEXT[place] != first
    mistyped = INVITE_TEXT[:place] + first + INVITE_TEXT[place + 1 :]
    assert "wrong character" in refusal(mistyped)
    assert "wrong character (its length would be" in refusal("runnel:abcdef")


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_no_invite(payload: bytes) -> None:
    refusal(encoded(payload))
    framed = bytes([0x19]) + (len(payload) + 5).to_bytes(2, "big") + payload
    refusal(encoded(framed + digest(framed)[:2]))


def test_addresses_that_do_not_pack_canonically_are_refused_even_if_signed() -> None:
    own = b"\x80" + bytes([203, 0, 113, 1]) + (4001).to_bytes(2, "big")
    spelled_out = b"\x00" + own[1:] + OWNER.peer_id[6:]
    for body, said in (
        (spelled_out, "not the shortest encoding"),
        (own + b"x", "not the shortest encoding"),
        (own[:-1], "cut short"),
        (b"\x40" + own[1:], "refers to one before it"),
        (b"\x05" + own[1:], "unknown kind"),
        (b"\x90" + own[1:], "unknown kind"),
        (b"\x80" + bytes(4) + own[5:], "cannot be dialled"),
        (own[:-2] + b"\x00\x00", "port 0"),
        (b"\x82\x03A.b" + own[5:], "no DNS name"),
        (b"\x82\x01\xff" + own[5:], "ascii"),
        (b"\x82\x00" + own[5:], "no DNS name"),
    ):
        assert said in refusal(signed_with(body))


def signed_with(body: bytes) -> str:
    ticket = Ticket.issue(OWNER, RUN_ID, expires_unix_s=LATER, addresses=body)
    terms = RUN_ID[:16] + OWNER.peer_id[6:] + ticket.nonce + LATER.to_bytes(4, "big")
    length = (3 + len(terms) + len(body) + 64 + 2).to_bytes(2, "big")
    payload = b"\x19" + length + terms + body + ticket.signature
    return encoded(payload + digest(payload)[:2])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("203.0.113.1:4001", "another form"),
        (f"/ip4/203.0.113.1/udp/4001/p2p/{to_base58(null_peer_id(1))}", "another form"),
        (f"/ip4/203.0.113.256/tcp/4001/p2p/{to_base58(null_peer_id(1))}", "203.0.113.256"),
        (f"/ip4/0.0.0.0/tcp/4001/p2p/{to_base58(null_peer_id(1))}", "cannot be dialled"),
        (f"/ip4/::1/tcp/4001/p2p/{to_base58(null_peer_id(1))}", "no ip4 address"),
        (f"/ip6/fe80::1%eth0/tcp/4001/p2p/{to_base58(null_peer_id(1))}", "no ip6 address"),
        (f"/dns/a..b/tcp/4001/p2p/{to_base58(null_peer_id(1))}", "no DNS name"),
        (f"/ip4/203.0.113.1/tcp/0/p2p/{to_base58(null_peer_id(1))}", "port 0"),
        (f"/ip4/203.0.113.1/tcp/65536/p2p/{to_base58(null_peer_id(1))}", "port 65536"),
        ("/ip4/203.0.113.1/tcp/4001/p2p/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "peer id"),
        ("/onion/x/tcp/1/p2p/" + to_base58(null_peer_id(1)), "another form"),
    ],
)
def test_an_unusable_address_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="bootstrap address") as caught:
        invite(text)
    assert said in str(caught.value)


def test_addresses_are_written_in_their_shortest_form_once() -> None:
    name = to_base58(OWNER.peer_id)
    made = invite(
        f"/ip6/2001:DB8:0:0::1/tcp/1/p2p/{name}", f"/ip6/2001:db8::1/tcp/1/p2p/{name}",
        f"/dns/Example.ORG/tcp/1/p2p/{name}",
    )  # fmt: skip
    assert made.addresses == (
        f"/ip6/2001:db8::1/tcp/1/p2p/{name}",
        f"/dns/example.org/tcp/1/p2p/{name}",
    )


def test_an_invite_needs_one_to_seven_addresses() -> None:
    with pytest.raises(ConfigError, match="0 addresses"):
        Invite.issue(OWNER, RUN_ID, [], expires_unix_s=LATER)
    with pytest.raises(ConfigError, match="8 addresses"):
        invite(*(address(number) for number in range(1, 9)))


# --- tickets -----------------------------------------------------------------------------------


def test_a_ticket_survives_the_wire_and_is_accepted_until_it_expires() -> None:
    ticket = Ticket.decode(invite().ticket.encode())
    assert ticket == Ticket.decode(ticket.encode())
    assert len(ticket.encode()) <= MAX_TICKET_BYTES
    assert ticket.check(OWNER.peer_id, RUN_ID, LATER).accepted
    late = ticket.check(OWNER.peer_id, RUN_ID, LATER + 3 * 86_400)
    assert (late.accepted, late.check, late.reason) == (False, "ticket", "expired 3 days ago")
    assert ticket.is_genuine(OWNER.peer_id, RUN_ID)


def test_a_ticket_of_another_owner_or_run_is_rejected() -> None:
    ticket = Ticket.issue(OWNER, RUN_ID, expires_unix_s=LATER)
    stranger = Identity.generate().peer_id
    assert "not signed by the owner" in ticket.check(stranger, RUN_ID, 0).reason
    assert "for run" in ticket.check(OWNER.peer_id, digest(b"other"), 0).reason
    assert not ticket.is_genuine(stranger, RUN_ID)
    assert not ticket.is_genuine(OWNER.peer_id, digest(b"other"))


def test_no_term_of_a_ticket_can_be_changed() -> None:
    ticket = Ticket.issue(OWNER, RUN_ID, expires_unix_s=LATER, grants_vote=False)
    for changed in (
        replace(ticket, grants_vote=True),
        replace(ticket, expires_unix_s=LATER + 1),
        replace(ticket, nonce=b"abcd"),
        replace(ticket, binding=bytes(16)),
    ):
        verdict = Ticket.decode(changed.encode()).check(OWNER.peer_id, RUN_ID, 0)
        assert not verdict.accepted


def test_tickets_of_a_run_differ() -> None:
    assert Ticket.issue(OWNER, RUN_ID, expires_unix_s=1) != Ticket.issue(
        OWNER, RUN_ID, expires_unix_s=1
    )


@pytest.mark.parametrize("expires_unix_s", [-1, 2**32])
def test_an_impossible_expiry_is_a_config_error(expires_unix_s: int) -> None:
    with pytest.raises(ConfigError, match="expiry"):
        Ticket.issue(OWNER, RUN_ID, expires_unix_s=expires_unix_s)


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, 2, "version"),
        (0, True, "malformed"),
        (1, b"", "malformed"),
        (2, b"12345", "malformed"),
        (3, -1, "malformed"),
        (3, 2**32, "malformed"),
        (4, 1, "malformed"),
        (5, b"", "malformed"),
        (6, bytes(63), "malformed"),
        (6, "text", "malformed"),
    ],
)
def test_a_malformed_ticket_is_refused(place: int, value: object, reason: str) -> None:
    fields = unpack(Ticket.issue(OWNER, RUN_ID, expires_unix_s=1).encode(), max_bytes=256)
    fields[place] = value
    with pytest.raises(PeerError) as caught:
        Ticket.decode(pack(fields))
    assert caught.value.reason == reason


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_random_bytes_are_no_ticket(data: bytes) -> None:
    with pytest.raises(PeerError):
        Ticket.decode(data)


def decoded(text: str) -> bytes:
    body = text.removeprefix("runnel:")
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))


def encoded(payload: bytes) -> str:
    return "runnel:" + base64.urlsafe_b64encode(payload).rstrip(b"=").decode()
