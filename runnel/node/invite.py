"""Invites: one line of text that lets a person join a run, and the ticket in it that gives a vote.

Payload, big-endian, written as base64url after ``runnel:``::

    1   version << 4 | vote << 3 | number of addresses
    2   length of the payload in bytes
    16  run id, its first half
    32  the owner's public key
    4   nonce
    4   when it expires, seconds since 1970
    n   the addresses (`bootstrap`)
    64  Ed25519 signature of the owner over the ticket, which covers all of the above
    2   checksum of all of the above: tells a typing error from a forgery

The ticket carries a hash of the addresses instead of them, so that members who never saw the invite
can check it.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from runnel.dht.identity import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    Identity,
    peer_id_of,
    public_key_of,
)
from runnel.errors import ConfigError
from runnel.hashing import digest
from runnel.node.bootstrap import BootstrapAddress
from runnel.node.ticket import (
    NONCE_BYTES,
    RUN_ID_BYTES,
    Ticket,
    binding_of,
    run_name,
)
from runnel.types import PeerId, short

__all__ = ["MAX_ADDRESSES", "PREFIX", "VERSION", "Invite", "Ticket"]

VERSION = 1
PREFIX = "runnel:"
MAX_ADDRESSES = 7
_MAX_TEXT = 4_096
_CHECKSUM_BYTES = 2
_VOTE = 0x08
_HEAD = struct.Struct(">BH")
_TERMS = struct.Struct(f">{RUN_ID_BYTES}s{KEY_BYTES}s{NONCE_BYTES}sI")
_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_AGAIN = "copy it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Invite:
    """What one needs to join a run. Made by `issue` or `parse`; its text is ``str(invite)``.

    Attributes:
        run_id: the first 16 bytes of the run's id.
        owner: who launched the run and signed this.
        bootstraps: where to dial, 1 to `MAX_ADDRESSES`.
        ticket: to be shown to members.
    """

    run_id: bytes
    owner: PeerId
    bootstraps: tuple[BootstrapAddress, ...]
    ticket: Ticket

    @classmethod
    def issue(
        cls,
        owner: Identity,
        run_id: bytes,
        addresses: Sequence[str],
        *,
        expires_unix_s: int,
        grants_vote: bool = True,
        nonce: bytes | None = None,
    ) -> Self:
        """An invite to the run `run_id` with multiaddresses `addresses`, repeated ones once.

        `nonce` is its ticket's; drawn if not given.

        Raises:
            ConfigError: no address, too many or an unusable one, or an impossible expiry.
        """
        bootstraps = tuple(dict.fromkeys(BootstrapAddress.parse(text) for text in addresses))
        if not 1 <= len(bootstraps) <= MAX_ADDRESSES:
            raise ConfigError(
                f"an invite with {len(bootstraps)} addresses, expected 1 to {MAX_ADDRESSES}: name"
                " those under which others can reach this machine"
            )
        ticket = Ticket.issue(
            owner,
            run_id,
            expires_unix_s=expires_unix_s,
            grants_vote=grants_vote,
            addresses=_packed(bootstraps, owner.peer_id),
            nonce=nonce,
        )
        return cls(
            run_id=run_name(run_id), owner=owner.peer_id, bootstraps=bootstraps, ticket=ticket
        )

    @property
    def addresses(self) -> tuple[str, ...]:
        """The bootstrap addresses as multiaddresses."""
        return tuple(str(address) for address in self.bootstraps)

    def names(self, run_id: bytes) -> bool:
        """Whether this is an invite to the run `run_id`."""
        return self.run_id == run_name(run_id)

    def require_valid(self, now_unix_s: float) -> None:
        """Checks that one may still join with it.

        Raises:
            ConfigError: it has expired.
        """
        verdict = self.ticket.check(self.owner, self.run_id, now_unix_s)
        if not verdict.accepted:
            raise ConfigError(f"this invite has {verdict.reason}: ask the owner for a new one")

    def __str__(self) -> str:
        ticket, body = self.ticket, _packed(self.bootstraps, self.owner)
        terms = _TERMS.pack(
            self.run_id, public_key_of(self.owner), ticket.nonce, ticket.expires_unix_s
        )
        length = _HEAD.size + len(terms) + len(body) + SIGNATURE_BYTES + _CHECKSUM_BYTES
        flags = VERSION << 4 | (_VOTE if ticket.grants_vote else 0) | len(self.bootstraps)
        payload = _HEAD.pack(flags, length) + terms + body + ticket.signature
        return PREFIX + _to_text(payload + _checksum(payload))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The invite in `text`; white space, also line breaks of a mail program, does not matter.

        Raises:
            ConfigError: cut short, mistyped, made for a newer runnel, not signed by its owner.
        """
        payload = _payload(text)
        flags, _ = _HEAD.unpack_from(payload)
        run_id, key, nonce, expires_unix_s = _TERMS.unpack_from(payload, _HEAD.size)
        end = len(payload) - SIGNATURE_BYTES - _CHECKSUM_BYTES
        body, owner = payload[_HEAD.size + _TERMS.size : end], peer_id_of(key)
        ticket = Ticket(
            run_id=run_id,
            nonce=nonce,
            expires_unix_s=expires_unix_s,
            grants_vote=bool(flags & _VOTE),
            binding=binding_of(body),
            signature=payload[end:-_CHECKSUM_BYTES],
        )
        if not ticket.is_genuine(owner, run_id):
            raise ConfigError(
                f"this invite is not signed by the owner named in it (key {short(owner)}): do not"
                " use it, ask the owner for a new one"
            )
        bootstraps = _unpacked(body, flags & (_VOTE - 1), owner)
        return cls(run_id=run_id, owner=owner, bootstraps=bootstraps, ticket=ticket)


def _payload(text: str) -> bytes:
    """The bytes of an invite, its version, length and checksum checked."""
    body = _body_of("".join(text.split()))
    flags, length = _HEAD.unpack(base64.urlsafe_b64decode(body[:4]))
    version, expected = flags >> 4, _text_length(length)
    if expected > _MAX_TEXT:
        raise ConfigError(
            f"this invite has a wrong character (its length would be {expected}): {_AGAIN}"
        )
    if len(body) < expected:
        seen, whole = len(PREFIX) + len(body), len(PREFIX) + expected
        raise ConfigError(f"this invite is cut short: {seen} of {whole} characters: {_AGAIN}")
    if len(body) > expected:
        seen, whole = len(PREFIX) + len(body), len(PREFIX) + expected
        raise ConfigError(f"this invite is too long: {seen} of {whole} characters: {_AGAIN}")
    payload = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    is_whole = (
        _to_text(payload) == body  # unused bits of the last character
        and _checksum(payload[:-_CHECKSUM_BYTES]) == payload[-_CHECKSUM_BYTES:]
    )
    # Length and checksum first: a mistyped first character reads as another version.
    if is_whole and version > VERSION:
        raise ConfigError(
            f"this invite is made for a newer runnel (format {version}, this one reads {VERSION}):"
            " upgrade runnel"
        )
    shortest = _HEAD.size + _TERMS.size + SIGNATURE_BYTES + _CHECKSUM_BYTES
    if not is_whole or version < VERSION or length < shortest:
        raise ConfigError(f"this invite has a wrong character (its checksum fails): {_AGAIN}")
    return payload


def _body_of(text: str) -> str:
    if not text.startswith(PREFIX) or len(text) > _MAX_TEXT:
        raise ConfigError(
            f"{text[:20]!r} is not an invite, expected a text that starts with {PREFIX!r}: {_AGAIN}"
        )
    body = text.removeprefix(PREFIX)
    for place, character in enumerate(body, start=len(PREFIX) + 1):
        if character not in _ALPHABET:
            raise ConfigError(
                f"character {place} of this invite is {character!r}, expected letters, digits,"
                f" '-' and '_': {_AGAIN}"
            )
    if len(body) < 4:
        raise ConfigError(f"this invite is cut short: {len(text)} characters: {_AGAIN}")
    return body


def _packed(bootstraps: Sequence[BootstrapAddress], owner: PeerId) -> bytes:
    before = (None, *(address.peer for address in bootstraps))
    return b"".join(
        address.pack(owner=owner, previous=previous)
        for address, previous in zip(bootstraps, before, strict=False)
    )


def _unpacked(data: bytes, count: int, owner: PeerId) -> tuple[BootstrapAddress, ...]:
    bootstraps: list[BootstrapAddress] = []
    rest = data
    try:
        for _ in range(count):
            previous = bootstraps[-1].peer if bootstraps else None
            address, rest = BootstrapAddress.unpack(rest, owner=owner, previous=previous)
            bootstraps.append(address)
    except ValueError as error:
        raise _unusable(str(error)) from None
    if rest or not bootstraps or _packed(bootstraps, owner) != data:
        raise _unusable("not the shortest encoding of its addresses")
    return tuple(bootstraps)


def _unusable(reason: str) -> ConfigError:
    return ConfigError(f"this invite names unusable addresses ({reason}): ask for a new one")


def _checksum(payload: bytes) -> bytes:
    return digest(payload)[:_CHECKSUM_BYTES]


def _to_text(payload: bytes) -> str:
    return base64.urlsafe_b64encode(payload).rstrip(b"=").decode()


def _text_length(size_bytes: int) -> int:
    return -(-size_bytes * 4 // 3)
