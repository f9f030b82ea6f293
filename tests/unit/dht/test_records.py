"""Records of the directory: what honest peers sign passes, everything else is refused and counted."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.clock import ManualClock
from runnel.dht import records
from runnel.dht.identity import SIGNATURE_BYTES, Identity
from runnel.dht.records import (
    CLOCK_GRACE_S,
    MAX_STORED_BYTES,
    MAX_TTL_S,
    MAX_VALUE_BYTES,
    Record,
    SignedRecordValidator,
    author_of,
    key_id_of,
    value_of,
)
from runnel.dht.wire import pack
from runnel.errors import PeerError
from runnel.types import PeerId

ALICE, MALLORY = Identity.generate(), Identity.generate()
KEY = b"k" * 20
NOW_S = 1_700_000_000.0

keys = st.binary(min_size=20, max_size=20)
values = st.binary(max_size=200)
ttls_s = st.floats(min_value=0.001, max_value=MAX_TTL_S)


def validator(identity: Identity = ALICE) -> SignedRecordValidator:
    return SignedRecordValidator(identity, ManualClock(unix_s=NOW_S))


def signed_by(identity: Identity, value: bytes = b"hello", *, key: bytes = KEY) -> Record:
    return validator(identity).sign(key, value, NOW_S + 60)


def refusal(record: Record) -> str | None:
    """The reason for which a peer refuses the record."""
    bob = validator(Identity.generate())
    accepted = bob.check(record)
    assert accepted is (not bob.refused)
    assert sum(bob.refused.values()) == (not accepted)
    return next(iter(bob.refused), None)


@given(keys, values, ttls_s)
def test_others_accept_what_its_author_signed(key: bytes, value: bytes, ttl_s: float) -> None:
    record = validator().sign(key, value, NOW_S + ttl_s)
    assert refusal(record) is None
    assert author_of(record.subkey) == ALICE.peer_id
    assert value_of(record.stored) == value


def test_the_largest_value_fits_and_one_more_byte_does_not() -> None:
    assert len(signed_by(ALICE, bytes(MAX_VALUE_BYTES)).stored) == MAX_STORED_BYTES
    assert refusal(signed_by(ALICE, bytes(MAX_VALUE_BYTES))) is None
    with pytest.raises(ValueError, match="holds"):
        signed_by(ALICE, bytes(MAX_VALUE_BYTES + 1))


@given(values)
def test_nobody_writes_in_anothers_name(value: bytes) -> None:
    forged = dataclasses.replace(signed_by(MALLORY, value), subkey=pack(ALICE.peer_id))
    assert refusal(forged) == "signature"


@given(keys.filter(lambda key: key != KEY))
def test_a_record_cannot_be_moved_to_another_key(key: bytes) -> None:
    assert refusal(dataclasses.replace(signed_by(ALICE), key_id=key)) == "signature"


@given(st.floats(min_value=-1e12, max_value=NOW_S + MAX_TTL_S).filter(lambda t: t != NOW_S + 60))
def test_the_expiration_cannot_be_changed(expires_s: float) -> None:
    assert refusal(dataclasses.replace(signed_by(ALICE), expires_s=expires_s)) == "signature"


@given(st.data())
def test_no_bit_of_what_is_stored_can_be_changed(data: st.DataObject) -> None:
    record = signed_by(ALICE, b"some value")
    bit = data.draw(st.integers(0, 8 * len(record.stored) - 1))
    changed = bytearray(record.stored)
    changed[bit // 8] ^= 1 << bit % 8
    assert refusal(dataclasses.replace(record, stored=bytes(changed))) == "signature"


@given(st.integers(0, 74))
def test_a_truncated_record_is_refused(length: int) -> None:
    record = signed_by(ALICE, b"some value")
    assert length < len(record.stored)
    cut = dataclasses.replace(record, stored=record.stored[:length])
    assert refusal(cut) == ("truncated" if length <= SIGNATURE_BYTES else "signature")


@pytest.mark.parametrize("ttl_s", [MAX_TTL_S + CLOCK_GRACE_S + 1, 1e6, math.inf, math.nan])
def test_nobody_occupies_the_directory_for_longer_than_an_hour(ttl_s: float) -> None:
    greedy = SignedRecordValidator(MALLORY, ManualClock(unix_s=NOW_S), max_ttl_s=math.inf)
    if not math.isnan(ttl_s):
        assert refusal(greedy.sign(KEY, b"here to stay", NOW_S + ttl_s)) == "ttl"
    with pytest.raises(ValueError, match="expires"):
        validator().sign(KEY, b"here to stay", NOW_S + ttl_s)
    assert refusal(dataclasses.replace(signed_by(ALICE), expires_s=NOW_S + ttl_s)) == "ttl"


def test_an_oversized_record_is_refused_before_its_signature_is_looked_at() -> None:
    packed = pack(bytes(MAX_STORED_BYTES))
    oversized = dataclasses.replace(signed_by(MALLORY), stored=packed + bytes(SIGNATURE_BYTES))
    assert refusal(oversized) == "too-large"


def stored_raw(identity: Identity, packed: bytes) -> Record:
    """What a peer with its own software could sign."""
    record = signed_by(identity)
    message = records.statement(KEY, identity.peer_id, packed, record.expires_s)
    return dataclasses.replace(record, stored=packed + identity.sign(message))


@pytest.mark.parametrize(
    "packed", [b"\xc1", b"\xdd\xff\xff\xff\xff", pack(b"x") + b"\0", pack("text"), pack([b"x"])]
)
def test_a_signed_value_that_is_not_bytes_is_refused(packed: bytes) -> None:
    assert refusal(stored_raw(MALLORY, packed)) == "value"


@pytest.mark.parametrize(
    "subkey",
    [b"", b"\xc0", pack(None), pack(b""), pack(b"short"), pack(bytes(38)), pack("text"), b"\xc1"],
)
def test_a_record_without_a_peer_id_as_its_subkey_is_refused(subkey: bytes) -> None:
    assert refusal(dataclasses.replace(signed_by(ALICE), subkey=subkey)) == "unsigned"
    with pytest.raises(PeerError):
        author_of(subkey)


@pytest.mark.parametrize(("stored", "expires_s"), [("text", 1.0), (None, 1.0), (b"x" * 80, "soon")])
def test_values_of_other_types_are_refused(stored: object, expires_s: object) -> None:
    wrong = dataclasses.replace(signed_by(ALICE), stored=stored, expires_s=expires_s)  # type: ignore[arg-type]
    assert refusal(wrong) == "malformed"


@given(st.binary(max_size=60), st.binary(max_size=5000), st.floats())
def test_no_record_makes_the_check_raise(subkey: bytes, stored: bytes, expires_s: float) -> None:
    assert refusal(Record(KEY, subkey, stored, expires_s)) is not None


def test_an_expired_record_of_its_author_is_not_a_lie() -> None:
    assert refusal(validator().sign(KEY, b"old", NOW_S - 5)) is None


class CountingSigner:
    """Alice, counting verifications."""

    def __init__(self) -> None:
        self.num_checks = 0

    @property
    def peer_id(self) -> PeerId:
        return ALICE.peer_id

    def sign(self, message: bytes) -> bytes:
        return ALICE.sign(message)

    def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        self.num_checks += 1
        return Identity.verify(peer, message, signature)


def test_a_record_is_verified_once_and_refusals_are_never_remembered_as_good() -> None:
    signer = CountingSigner()
    bob = SignedRecordValidator(signer, ManualClock(unix_s=NOW_S))
    record = signed_by(ALICE)
    assert all(bob.check(record) for _ in range(5))
    assert signer.num_checks == 1
    forged = dataclasses.replace(record, expires_s=record.expires_s + 1)
    assert not any(bob.check(forged) for _ in range(3))
    assert signer.num_checks == 4
    assert bob.refused == {"signature": 3}


def test_a_verified_record_still_has_to_be_in_time() -> None:
    clock = ManualClock(unix_s=NOW_S)
    bob = SignedRecordValidator(ALICE, clock)
    record = bob.sign(KEY, b"x", NOW_S + MAX_TTL_S)
    assert bob.check(record)
    clock.advance(-2 * CLOCK_GRACE_S)
    assert not bob.check(record)


def test_the_memory_of_verified_records_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "VERIFIED_RECORDS", 3)
    signer = CountingSigner()
    bob = SignedRecordValidator(signer, ManualClock(unix_s=NOW_S))
    several = [signed_by(ALICE, bytes([number])) for number in range(5)]
    assert all(bob.check(record) for record in several)
    assert all(bob.check(record) for record in several[2:])
    assert signer.num_checks == 5
    assert bob.check(several[0])
    assert signer.num_checks == 6


def test_a_key_becomes_what_hivemind_makes_of_it() -> None:
    """Golden: ``DHTID.generate("runnel/00").to_bytes()`` of hivemind 1.1.12."""
    assert key_id_of("runnel/00").hex() == "24e545f666290b98ea21e7933f7d60dc04437831"
