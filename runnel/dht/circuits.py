"""Messages of circuits: how a peer asks another one to carry its bytes to a third.

Protocol: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md, of which daemons speak the
ends: the one who dials asks by HOP, the one in the middle asks the destination by STOP, and then the
ends prove to each other who they are. What is here is the middle's part.
"""

from __future__ import annotations

from enum import IntEnum

from runnel.dht.daemon_messages import Fields, decode_fields, encode_fields
from runnel.dht.identity import public_key_of, to_base58
from runnel.dht.multiaddr import varint
from runnel.types import PeerId

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
MAX_MESSAGE_BYTES = 4096

_HOP_CONNECT, _HOP_STATUS = 1, 2
_STOP_CONNECT, _STOP_STATUS = 0, 1
_MARK = "/p2p-circuit"


class Status(IntEnum):
    """How a request ended, by the specification's numbers."""

    OK = 100
    RESERVATION_REFUSED = 200
    LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED = 400


def read_hop_request(data: bytes) -> PeerId | None:
    """To whom a circuit is wanted; None if the request is for a reservation.

    Raises:
        ValueError: malformed, or the destination is no peer of our kind.
    """
    fields = decode_fields(data)
    if _number(fields, 1) != _HOP_CONNECT:
        return None
    target = PeerId(_bytes(decode_fields(_bytes(fields, 2)), 1))
    public_key_of(target)
    return target


def hop_answer(status: Status) -> bytes:
    """The middle's answer to who dials, with its length in front.

    Without a limit in it: daemons keep most protocols off connections that are limited.
    """
    return _framed([(1, _HOP_STATUS), (5, int(status))])


def stop_request(source: PeerId) -> bytes:
    """The middle's question to the destination: will you talk to `source`? With its length in front."""
    return _framed([(1, _STOP_CONNECT), (2, encode_fields([(1, bytes(source))]))])


def accepts(data: bytes) -> bool:
    """Whether the destination's answer to `stop_request` is yes.

    Raises:
        ValueError: malformed.
    """
    fields = decode_fields(data)
    return _number(fields, 1) == _STOP_STATUS and _number(fields, 4) == Status.OK


def through(relay: PeerId, address: str = "") -> str:
    """The address of whoever is connected to `relay`, which is found at `address` or connected to us."""
    return f"{address}/p2p/{to_base58(relay)}{_MARK}"


def is_circuit(address: str) -> bool:
    """Whether an address leads through another peer."""
    return _MARK in address


def relay_of(address: str) -> str:
    """The id, in text, of the peer that an address leads through; "" if it is a direct one."""
    before, mark, _ = address.partition(_MARK)
    return before.rpartition("/p2p/")[2] if mark else ""


def _framed(fields: Fields) -> bytes:
    message = encode_fields(fields)
    return varint(len(message)) + message


def _number(fields: Fields, wanted: int) -> int:
    return next((v for number, v in fields if number == wanted and isinstance(v, int)), 0)


def _bytes(fields: Fields, wanted: int) -> bytes:
    return next((v for number, v in fields if number == wanted and isinstance(v, bytes)), b"")
