"""Fields of canonical arrays, checked as they are read: every function returns its value or raises PeerError."""

from __future__ import annotations

from typing import Any

from runnel.errors import PeerError
from runnel.types import DIGEST_BYTES, PEER_ID_BYTES, Digest, PeerId

MAX_MEMBERS = 64


def row(value: Any, length: int) -> list[Any]:
    """`value` if it is an array of `length` fields; PeerError otherwise."""
    if not isinstance(value, list) or len(value) != length:
        raise PeerError("malformed", f"expected an array of {length} fields")
    return value


def items(value: Any, limit: int = MAX_MEMBERS) -> list[Any]:
    """`value` if it is an array of at most `limit` items; PeerError otherwise."""
    if not isinstance(value, list) or len(value) > limit:
        raise PeerError("malformed", f"expected an array of at most {limit} items")
    return value


def integer(value: Any, *, low: int = 0) -> int:
    """`value` if it is an integer from `low` to 2^62; PeerError otherwise."""
    if type(value) is not int or not low <= value < 1 << 62:
        raise PeerError("malformed", "expected an integer in range")
    return value


def number_of(value: Any) -> float:
    """`value` if it is a finite non-negative-or-any float; PeerError otherwise."""
    if type(value) is not float or value != value or value in (float("inf"), float("-inf")):
        raise PeerError("malformed", "expected a finite number")
    return value


def blob(value: Any, limit: int) -> bytes:
    """`value` if it is at most `limit` bytes; PeerError otherwise."""
    if not isinstance(value, bytes) or len(value) > limit:
        raise PeerError("malformed", f"expected at most {limit} bytes")
    return value


def digest_of(value: Any, *, optional: bool = False) -> Digest:
    """`value` if it is a digest (or empty, where `optional`); PeerError otherwise."""
    if not isinstance(value, bytes) or not (len(value) == DIGEST_BYTES or (optional and not value)):
        raise PeerError("malformed", "expected a digest")
    return Digest(value)


def peer_id(value: Any) -> PeerId:
    """`value` if it has the length of a peer id; PeerError otherwise."""
    if not isinstance(value, bytes) or len(value) != PEER_ID_BYTES:
        raise PeerError("malformed", "expected a peer id")
    return PeerId(value)
