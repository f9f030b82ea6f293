from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.dht.identity import (
    Identity,
    NullSigner,
    from_base58,
    null_peer_id,
    peer_id_of,
    public_key_of,
    to_base58,
)
from runnel.errors import InputFileError, StorageError
from runnel.protocols import Signer
from runnel.types import PEER_ID_BYTES, PeerId

public_keys = st.binary(min_size=32, max_size=32)

# RFC 8032, section 7.1, test 2.
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def key_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_a_known_key_file_gives_the_known_signature(tmp_path: Path) -> None:
    path = key_file(tmp_path / "key", b"\x08\x01\x12\x40" + SEED + PUBLIC)
    loaded = Identity.load(path)
    assert loaded.peer_id == b"\x00\x24\x08\x01\x12\x20" + PUBLIC
    assert loaded.sign(b"\x72") == SIGNATURE
    assert Identity.verify(loaded.peer_id, b"\x72", SIGNATURE)


def test_a_created_file_is_complete_private_and_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "key"
    created = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    data = path.read_bytes()
    assert len(data) == 68
    assert data.startswith(b"\x08\x01\x12\x40")
    assert Identity.load(path) == Identity.load_or_create(path) == created
    assert path.read_bytes() == data
    assert os.listdir(path.parent) == ["key"]


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Identity.load_or_create(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_racing_creators_get_one_identity(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with ThreadPoolExecutor(8) as pool:
        identities = set(pool.map(Identity.load_or_create, [path] * 16))
    assert len(identities) == 1
    assert os.listdir(tmp_path) == ["key"]


def test_file_systems_without_hard_links_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    created = Identity.load_or_create(tmp_path / "key")
    assert Identity.load_or_create(tmp_path / "key") == created
    assert os.listdir(tmp_path) == ["key"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "0 bytes"),
        (b"hello", "5 bytes"),
        (b"\x08\x01\x12\x40" + SEED + PUBLIC[:-1], "67 bytes"),
        (b"\x08\x01\x12\x40" + SEED + PUBLIC + b"\n", "more than 68"),
        (b"\x08\x02\x12\x40" + SEED + PUBLIC, "starting 08021240"),
        (b"\x08\x00\x12\xa6\x09" + bytes(1000), "RSA"),
        (b"\x08\x01\x12\x40" + PUBLIC + SEED, "damaged"),
    ],
)
def test_a_file_of_another_kind_is_refused_and_kept(tmp_path: Path, data: bytes, told: str) -> None:
    path = key_file(tmp_path / "key", data)
    for load in (Identity.load, Identity.load_or_create):
        with pytest.raises(InputFileError, match=told) as caught:
            load(path)
        assert str(path) in str(caught.value)
        assert SEED.hex() not in str(caught.value)
        assert path.read_bytes() == data


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="no key file"):
        Identity.load(tmp_path / "key")
    with pytest.raises(InputFileError, match="cannot read"):
        Identity.load(tmp_path)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="another folder"):
        Identity.load_or_create(tmp_path / "file" / "key")


def test_a_key_that_others_can_read_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "key"
    Identity.load_or_create(path)
    assert not caplog.records
    path.chmod(0o644)
    Identity.load(path)
    assert "chmod 600" in caplog.text


def test_the_secret_shows_in_no_representation() -> None:
    one = Identity.generate()
    assert "Key" not in repr(one)
    assert one != Identity.generate()


@pytest.mark.parametrize("null", [False, True])
def test_signatures_bind_peer_and_message(null: bool) -> None:
    signers: list[Signer] = (
        [NullSigner(null_peer_id(1)), NullSigner(null_peer_id(2))]
        if null
        else [Identity.generate(), Identity.generate()]
    )
    one, other = signers
    signature = one.sign(b"message")
    assert len(signature) == 64
    assert other.verify(one.peer_id, b"message", signature)
    assert one.sign(b"message") == signature, "deterministic"
    assert not other.verify(other.peer_id, b"message", signature)
    assert not other.verify(one.peer_id, b"messagE", signature)
    assert not other.verify(one.peer_id, b"message", signature[:-1] + bytes([signature[-1] ^ 1]))


@pytest.mark.parametrize(
    "signer", [Identity.generate(), NullSigner(null_peer_id(1))], ids=["key", "null"]
)
@given(peer=st.binary(max_size=50), signature=st.binary(max_size=80))
def test_verifying_rubbish_is_false_and_never_raises(
    signer: Signer, peer: bytes, signature: bytes
) -> None:
    assert not signer.verify(PeerId(peer), b"message", signature)
    assert not signer.verify(signer.peer_id, b"message", signature)


@given(public_keys)
def test_peer_ids_hold_their_key(public: bytes) -> None:
    peer = peer_id_of(public)
    assert len(peer) == PEER_ID_BYTES
    assert public_key_of(peer) == public
    assert to_base58(peer).startswith("12D3KooW")
    assert from_base58(to_base58(peer)) == peer


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_other_sizes_make_no_peer_id(size: int) -> None:
    with pytest.raises(ValueError, match="32"):
        peer_id_of(bytes(size))


@given(st.binary(max_size=60))
def test_other_bytes_hold_no_key(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an Ed25519 peer id"):
        public_key_of(PeerId(data))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "hello world",
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "12D3KooW0",
        "1" * 10_000,
        "é" * 52,
        to_base58(null_peer_id(1)) + "1",
        "1" + to_base58(null_peer_id(1)),
        to_base58(null_peer_id(1))[:-1],
    ],
)
def test_text_that_names_no_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="peer id"):
        from_base58(text)


def test_null_peers_are_well_formed_and_different() -> None:
    ids = {null_peer_id(number) for number in range(100)}
    assert len(ids) == 100
    assert all(len(public_key_of(peer)) == 32 for peer in ids)
    assert null_peer_id(5) == null_peer_id(5)


@pytest.mark.swarm  # imports hivemind, which starts more than a unit test should
def test_base58_is_the_one_of_the_daemon() -> None:
    from hivemind.p2p import PeerID

    for number in range(20):
        peer = null_peer_id(number)
        assert PeerID(peer).to_base58() == to_base58(peer)
        assert PeerID.from_base58(to_base58(peer)).to_bytes() == peer
    for data in (b"\x00\x00\x01", b"\xff" * 10, bytes(range(40))):
        assert PeerID(data).to_base58() == to_base58(PeerId(data))


@pytest.mark.swarm
def test_the_key_file_is_what_the_daemon_reads(tmp_path: Path) -> None:
    from hivemind.proto import crypto_pb2

    created = Identity.load_or_create(tmp_path / "key")
    parsed = crypto_pb2.PrivateKey.FromString((tmp_path / "key").read_bytes())
    assert parsed.key_type == crypto_pb2.KeyType.Ed25519
    assert len(parsed.data) == 64
    assert parsed.data[32:] == public_key_of(created.peer_id)
    assert parsed.SerializeToString() == (tmp_path / "key").read_bytes()
