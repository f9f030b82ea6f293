"""Signed records of the directory: who may write what, for how long, and how others know it.

A record is stored under a key and a subkey. The subkey is the peer id of its author, and what is
stored is the value followed by the author's signature over all of it, so that nobody can write in
another's name, move a record to another key, or make it live longer. Whether a record is the
newest one of its author is not known here: the later expiration wins.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runnel.dht.identity import SIGNATURE_BYTES, public_key_of
from runnel.dht.wire import pack, unpack
from runnel.errors import PeerError
from runnel.hashing import digest
from runnel.types import PEER_ID_BYTES, PeerId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runnel.clock import Clock
    from runnel.protocols import Signer
    from runnel.types import Digest

_log = logging.getLogger(__name__)

MAX_TTL_S = 3600.0
"""A record may not live longer; clocks that are ahead by `CLOCK_GRACE_S` are forgiven."""

CLOCK_GRACE_S = 300.0

MAX_STORED_BYTES = 4096
"""What is stored: the packed value and its signature."""

MAX_VALUE_BYTES = MAX_STORED_BYTES - SIGNATURE_BYTES - 3
"""The largest value that fits: its packed form has a head of three bytes."""

VERIFIED_RECORDS = 8192
"""Records whose signature is known to be good; a check costs a quarter of a millisecond."""

_TYPE = "rec1"
_MAX_SUBKEY_BYTES = PEER_ID_BYTES + 2


@dataclass(frozen=True, slots=True)
class Record:
    """What a directory stores.

    Attributes:
        key_id: what the directory makes of the key.
        subkey: the packed peer id of the author.
        stored: the packed value, then the signature.
        expires_s: when it ends, seconds since 1970.
    """

    key_id: bytes
    subkey: bytes
    stored: bytes
    expires_s: float


class SignedRecordValidator:
    """Signs the records of one peer and checks those of all; counts refusals by reason.

    Reasons: "malformed" (not even of the right types), "too-large", "ttl" (expires too far from now, or never), "unsigned" (no peer id as the
    subkey), "truncated", "signature" (not the author's for exactly this), "value" (not bytes).

    A record that has expired is not refused: it is harmless, and a replica that answers with one
    is not lying.
    """

    def __init__(self, signer: Signer, clock: Clock, *, max_ttl_s: float = MAX_TTL_S) -> None:
        self._signer = signer
        self._clock = clock
        self._max_ttl_s = max_ttl_s
        self._verified: OrderedDict[Digest, None] = OrderedDict()
        self._refused: Counter[str] = Counter()

    @property
    def own_subkey(self) -> bytes:
        """The subkey under which this peer writes."""
        return pack(self._signer.peer_id)

    @property
    def refused(self) -> Mapping[str, int]:
        """How many records were refused, by reason."""
        return dict(self._refused)

    def sign(self, key_id: bytes, value: bytes, expires_s: float) -> Record:
        """A record of this peer.

        Raises:
            ValueError: the value is too long, or it would expire too late.
        """
        if len(value) > MAX_VALUE_BYTES:
            raise ValueError(f"a value of {len(value)} bytes; a record holds {MAX_VALUE_BYTES}")
        now_s = self._clock.unix_s()
        if not expires_s <= now_s + self._max_ttl_s + CLOCK_GRACE_S:
            raise ValueError(
                f"a record that expires in {expires_s - now_s:.0f} s; at most {self._max_ttl_s:.0f} s"
            )
        packed = pack(value)
        message = statement(key_id, self._signer.peer_id, packed, expires_s)
        return Record(key_id, self.own_subkey, packed + self._signer.sign(message), expires_s)

    def check(self, record: Record) -> bool:
        """Whether `record` is what its author signed; never raises."""
        try:
            self._check(record)
        except PeerError as error:
            self._refused[error.reason] += 1
            _log.debug("a record was refused: %s", error)
            return False
        return True

    def _check(self, record: Record) -> None:
        if not isinstance(record.stored, bytes) or not isinstance(record.expires_s, float):
            raise PeerError("malformed", "a directory's answer with values of other types")
        if len(record.stored) > MAX_STORED_BYTES:
            raise PeerError("too-large", f"{len(record.stored)} bytes, at most {MAX_STORED_BYTES}")
        latest_s = self._clock.unix_s() + self._max_ttl_s + CLOCK_GRACE_S
        if not record.expires_s <= latest_s:  # NaN is never in time
            raise PeerError("ttl", f"expires at {record.expires_s}, at latest {latest_s}")
        author = author_of(record.subkey)
        if len(record.stored) <= SIGNATURE_BYTES:
            raise PeerError("truncated", f"{len(record.stored)} bytes")
        name = digest(pack([record.key_id, record.subkey, record.stored, record.expires_s]))
        if name in self._verified:
            self._verified.move_to_end(name)
            return
        packed, signature = record.stored[:-SIGNATURE_BYTES], record.stored[-SIGNATURE_BYTES:]
        message = statement(record.key_id, author, packed, record.expires_s)
        if not self._signer.verify(author, message, signature):
            raise PeerError("signature", "not the author's for this record")
        _value(packed)
        self._verified[name] = None
        if len(self._verified) > VERIFIED_RECORDS:
            self._verified.popitem(last=False)


def key_id_of(key: str) -> bytes:
    """What a directory makes of a key: 20 bytes; the same as hivemind's ``DHTID.generate``."""
    return hashlib.sha1(pack(key), usedforsecurity=False).digest()


def author_of(subkey: bytes) -> PeerId:
    """The peer id in a subkey.

    Raises:
        PeerError: "unsigned": it is anything else.
    """
    try:
        author = unpack(subkey, max_bytes=_MAX_SUBKEY_BYTES)
        if not isinstance(author, bytes):
            raise PeerError("unsigned", "the subkey is no peer id")  # noqa: TRY301 - same end
        public_key_of(PeerId(author))
    except (PeerError, ValueError) as error:
        raise PeerError("unsigned", str(error)) from None
    return PeerId(author)


def value_of(stored: bytes) -> bytes:
    """The value in what is stored, without its signature. Check the record first.

    Raises:
        PeerError: "value": there is none.
    """
    return _value(stored[:-SIGNATURE_BYTES])


def _value(packed: bytes) -> bytes:
    try:
        value: Any = unpack(packed, max_bytes=MAX_STORED_BYTES)
    except PeerError as error:
        raise PeerError("value", str(error)) from None
    if not isinstance(value, bytes):
        raise PeerError("value", f"{type(value).__name__}, expected bytes")
    return value


def statement(key_id: bytes, author: PeerId, packed: bytes, expires_s: float) -> bytes:
    """The bytes that `author` signs; `packed` is the value's encoding."""
    return pack([_TYPE, key_id, author, packed, expires_s])
