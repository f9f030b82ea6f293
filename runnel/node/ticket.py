"""Tickets: the owner's signed permission to become a member of a run."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Self

from runnel.dht.identity import SIGNATURE_BYTES, Identity
from runnel.dht.wire import pack, unpack
from runnel.errors import ConfigError, PeerError
from runnel.hashing import digest
from runnel.types import Decision, PeerId, Verdict, short

VERSION = 1
RUN_ID_BYTES = 16
"""Invites and tickets name a run by this much of its id."""

NONCE_BYTES = 4
MAX_TICKET_BYTES = 256
_BINDING_BYTES = 16
_MAX_UNIX_S = 2**32 - 1
_DOMAIN = b"runnel.ticket.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """The owner's signed permission to become a member; whoever holds it may use it.

    Attributes:
        run_id: the first 16 bytes of the run's id.
        nonce: 4 bytes that tell tickets of a run apart.
        expires_unix_s: last second in which somebody may join with it.
        grants_vote: whether the new member counts for the quorum.
        binding: hash of the addresses of the invite it came with.
        signature: the owner's, 64 bytes.
    """

    run_id: bytes
    nonce: bytes
    expires_unix_s: int
    grants_vote: bool
    binding: bytes
    signature: bytes

    @classmethod
    def issue(
        cls,
        owner: Identity,
        run_id: bytes,
        *,
        expires_unix_s: int,
        grants_vote: bool = True,
        addresses: bytes = b"",
        nonce: bytes | None = None,
    ) -> Self:
        """A ticket for the run `run_id` (16 bytes or more), signed by its owner.

        Args:
            owner: signs.
            run_id: of the run.
            expires_unix_s: at most 2**32 - 1.
            grants_vote: see the class.
            addresses: packed addresses of the invite that it belongs to.
            nonce: 4 bytes; drawn if not given.

        Raises:
            ConfigError: it would expire before 1970 or after 2106.
        """
        if not 0 <= expires_unix_s <= _MAX_UNIX_S:
            raise ConfigError(
                f"expiry is {expires_unix_s}, expected seconds since 1970, at most {_MAX_UNIX_S}"
            )
        nonce = secrets.token_bytes(NONCE_BYTES) if nonce is None else nonce
        binding = binding_of(addresses)
        name = run_name(run_id)
        unsigned = cls(
            run_id=name,
            nonce=nonce,
            expires_unix_s=expires_unix_s,
            grants_vote=grants_vote,
            binding=binding,
            signature=b"",
        )
        return replace(unsigned, signature=owner.sign(unsigned.statement()))

    def statement(self) -> bytes:
        """The bytes that the signature covers."""
        terms = self.expires_unix_s.to_bytes(4, "big") + bytes([self.grants_vote])
        return _DOMAIN + self.run_id + self.nonce + terms + self.binding

    def is_genuine(self, owner: PeerId, run_id: bytes) -> bool:
        """Whether `owner` signed it for this run. Says nothing of its expiry."""
        same_run = self.run_id == run_name(run_id)
        return same_run and Identity.verify(owner, self.statement(), self.signature)

    def check(self, owner: PeerId, run_id: bytes, now_unix_s: float) -> Verdict:
        """ACCEPT, or REJECT with the reason: another run, not signed by the owner, expired."""
        reason = ""
        if self.run_id != run_name(run_id):
            reason = f"for run {short(self.run_id)}, not {short(run_id)}"
        elif not self.is_genuine(owner, run_id):
            reason = f"not signed by the owner {short(owner)}"
        elif now_unix_s > self.expires_unix_s:
            reason = f"expired {_duration(now_unix_s - self.expires_unix_s)} ago"
        decision = Decision.REJECT if reason else Decision.ACCEPT
        return Verdict(decision, "ticket", reason)

    def encode(self) -> bytes:
        """The bytes that a newcomer shows to members; at most `MAX_TICKET_BYTES`."""
        return pack(
            [
                VERSION,
                self.run_id,
                self.nonce,
                self.expires_unix_s,
                self.grants_vote,
                self.binding,
                self.signature,
            ]
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The ticket in `data`; its signature is for `check` or `is_genuine`.

        Raises:
            PeerError: not exactly one ticket of this version.
        """
        fields = unpack(data, max_bytes=MAX_TICKET_BYTES)
        kinds = [int, bytes, bytes, int, bool, bytes, bytes]
        if not isinstance(fields, list) or [type(field) for field in fields] != kinds:
            raise PeerError("malformed", "a ticket with other fields than expected")
        version, run_id, nonce, expires_unix_s, grants_vote, binding, signature = fields
        if version != VERSION:
            raise PeerError("version", f"ticket version {version}, this runnel reads {VERSION}")
        lengths = [len(run_id), len(nonce), len(binding), len(signature)]
        if lengths != [RUN_ID_BYTES, NONCE_BYTES, _BINDING_BYTES, SIGNATURE_BYTES] or not (
            0 <= expires_unix_s <= _MAX_UNIX_S
        ):
            raise PeerError("malformed", "a ticket with a field out of range")
        return cls(
            run_id=run_id,
            nonce=nonce,
            expires_unix_s=expires_unix_s,
            grants_vote=grants_vote,
            binding=binding,
            signature=signature,
        )


def run_name(run_id: bytes) -> bytes:
    """The part of a run id that invites and tickets carry."""
    return bytes(run_id[:RUN_ID_BYTES])


def binding_of(addresses: bytes) -> bytes:
    """What a ticket says of the packed addresses that it was issued with."""
    return digest(addresses)[:_BINDING_BYTES]


def _duration(seconds: float) -> str:
    for unit_s, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} seconds"
