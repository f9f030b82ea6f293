"""Who a peer is: an Ed25519 key whose public half is the peer id, so that anybody can check it.

The key file is the one that libp2p daemons read: protobuf ``crypto.pb.PrivateKey`` with key type
Ed25519, that is ``08 01 12 40 || seed, 32 bytes || public key, 32 bytes``.
"""

from __future__ import annotations

import hmac
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from runnel.errors import InputFileError, StorageError
from runnel.files import make_folder, name_new, part_beside, remove, sync_directory, write_new
from runnel.types import PEER_ID_BYTES, PEER_ID_PREFIX, PeerId

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_FILE_PREFIX = b"\x08\x01\x12\x40"
_FILE_BYTES = len(_FILE_PREFIX) + 2 * KEY_BYTES
_RSA_PREFIX = b"\x08\x00"
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_MAX_BASE58_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """An Ed25519 key and its peer id; implements `runnel.protocols.Signer`."""

    peer_id: PeerId
    _key: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def generate(cls) -> Identity:
        """A new identity from the system's randomness, in memory only."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity whose secret is `seed`, 32 bytes: for simulations, in which nothing is secret."""
        return cls._of(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """The identity in a key file.

        Raises:
            InputFileError: no such file, or not an Ed25519 key file.
        """
        try:
            with path.open("rb") as file:
                data = file.read(_FILE_BYTES + 1)
                mode = os.fstat(file.fileno()).st_mode & 0o777
        except FileNotFoundError:
            raise InputFileError(
                f"no key file at {path}; give the path of an existing one or let one be created"
            ) from None
        except OSError as error:
            raise InputFileError(f"cannot read the key file {path}: {error.strerror}") from error
        if mode & 0o077:
            _log.warning("others can read the key file %s (mode %03o): chmod 600 it", path, mode)
        return cls._of(Ed25519PrivateKey.from_private_bytes(_seed_in(data, path)))

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """The identity in the key file; if there is none, a new one, written with mode 0600.

        The file appears complete or not at all, and an existing one is never replaced: when two
        processes create it at once, both get the identity of the first.

        Raises:
            InputFileError: there is a file, but not an Ed25519 key file.
            StorageError: the file could not be written.
        """
        if not path.exists():
            key = Ed25519PrivateKey.generate()
            public = key.public_key().public_bytes_raw()
            try:
                make_folder(path.parent)
                _create(path, _FILE_PREFIX + key.private_bytes_raw() + public)
            except OSError as error:
                raise StorageError(
                    f"cannot write the key file {path}: {error.strerror}; free some space or "
                    "choose another folder"
                ) from error
        return cls.load(path)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message`."""
        return self._key.sign(message)

    def seed(self) -> bytes:
        """The 32 secret bytes, for a network that proves this identity in handshakes of its own."""
        return self._key.private_bytes_raw()

    @staticmethod
    def verify(peer: PeerId, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is `peer`'s for `message`; false for malformed input."""
        try:
            Ed25519PublicKey.from_public_bytes(public_key_of(peer)).verify(signature, message)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    @classmethod
    def _of(cls, key: Ed25519PrivateKey) -> Identity:
        return cls(peer_id_of(key.public_key().public_bytes_raw()), key)


class NullSigner:
    """Signs without secrets, for large simulations: anybody could forge these, nobody there does."""

    def __init__(self, peer_id: PeerId) -> None:
        self._peer_id = peer_id

    @property
    def peer_id(self) -> PeerId:
        """Who signs."""
        return self._peer_id

    def sign(self, message: bytes) -> bytes:
        """64 bytes that depend on the peer and the message; equal inputs give equal tags."""
        return _null_tag(self._peer_id, message)

    def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is what `peer`'s null signer makes of `message`."""
        return hmac.compare_digest(_null_tag(peer, message), signature)


def null_peer_id(number: int) -> PeerId:
    """A well-formed peer id that nobody has a key for: the same one for the same `number`."""
    return peer_id_of(blake3(b"null peer %d" % number).digest())


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a 32-byte Ed25519 public key.

    Raises:
        ValueError: not 32 bytes.
    """
    if len(public_key) != KEY_BYTES:
        raise ValueError(f"a public key of {len(public_key)} bytes, expected {KEY_BYTES}")
    return PeerId(PEER_ID_PREFIX + public_key)


def public_key_of(peer_id: PeerId) -> bytes:
    """The 32-byte Ed25519 public key in a peer id.

    Raises:
        ValueError: not an Ed25519 peer id.
    """
    if len(peer_id) != PEER_ID_BYTES or not peer_id.startswith(PEER_ID_PREFIX):
        raise ValueError(
            f"not an Ed25519 peer id: {len(peer_id)} bytes starting {bytes(peer_id[:6]).hex()}, "
            f"expected {PEER_ID_BYTES} starting {PEER_ID_PREFIX.hex()}"
        )
    return bytes(peer_id[len(PEER_ID_PREFIX) :])


def to_base58(peer_id: PeerId) -> str:
    """The peer id as people and multiaddresses write it: "12D3KooW..."."""
    number, text = int.from_bytes(peer_id, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return _BASE58[0] * (len(peer_id) - len(peer_id.lstrip(b"\0"))) + text


def from_base58(text: str) -> PeerId:
    """The Ed25519 peer id that `text` names.

    Raises:
        ValueError: not base58, or not an Ed25519 peer id.
    """
    if not 0 < len(text) <= _MAX_BASE58_CHARACTERS or not set(text) <= set(_BASE58):
        raise ValueError(f"not a peer id: {text[:16]!r}...; expected base58 like 12D3KooW...")
    number = 0
    for character in text:
        number = number * 58 + _BASE58.index(character)
    zeros = len(text) - len(text.lstrip(_BASE58[0]))
    peer_id = PeerId(b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big"))
    public_key_of(peer_id)
    return peer_id


def _null_tag(peer: PeerId, message: bytes) -> bytes:
    return blake3(bytes(peer) + message, derive_key_context="runnel null signature").digest(
        SIGNATURE_BYTES
    )


def _seed_in(data: bytes, path: Path) -> bytes:
    """The seed in the bytes of a key file, checked against the public key beside it."""
    if data.startswith(_RSA_PREFIX):
        raise InputFileError(f"{path} holds an RSA key; Ed25519 is needed: name another file")
    if len(data) != _FILE_BYTES or not data.startswith(_FILE_PREFIX):
        size = len(data) if len(data) <= _FILE_BYTES else f"more than {_FILE_BYTES}"
        raise InputFileError(
            f"{path} is no Ed25519 key file: {size} bytes starting {data[:4].hex() or 'nowhere'}, "
            f"expected {_FILE_BYTES} starting {_FILE_PREFIX.hex()}; restore it or name another file"
        )
    seed, public = data[len(_FILE_PREFIX) : -KEY_BYTES], data[-KEY_BYTES:]
    if Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw() != public:
        raise InputFileError(
            f"{path} is damaged: its public key is not the one of its seed; restore it from a copy"
        )
    return seed


def _create(path: Path, data: bytes) -> None:
    """Puts `data` at `path` with mode 0600, complete or not at all; keeps what is there already."""
    part = part_beside(path)
    try:
        write_new(part, data, mode=0o600)
        try:
            name_new(part, path)
        except FileExistsError:
            return
    finally:
        remove(part)
    sync_directory(path.parent)
