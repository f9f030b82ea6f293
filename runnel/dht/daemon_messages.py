"""The few protobuf messages that a libp2p daemon is controlled with, written and read by hand.

hivemind generates the same ones (``p2pd.proto``), but importing them imports hivemind and torch;
here they are six requests of two kinds of field.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from runnel.dht.multiaddr import read_varint, varint
from runnel.types import PEER_ID_BYTES, PeerId

_VARINT, _SIZED = 0, 2

Fields = list[tuple[int, int | bytes]]


class RequestType(IntEnum):
    """What is asked of the daemon."""

    IDENTIFY = 0
    CONNECT = 1
    STREAM_OPEN = 2
    STREAM_HANDLER = 3
    DHT = 4
    LIST_PEERS = 5
    DISCONNECT = 7
    PERSISTENT_CONNECTION = 9
    REMOVE_STREAM_HANDLER = 10


@dataclass(frozen=True, slots=True)
class Response:
    """The daemon's answer; fields that the request did not ask for are empty.

    Attributes:
        error: None if it did as asked, else its reason.
        peers: who is connected, or the one peer asked for, with binary multiaddresses.
        identity: the daemon itself.
    """

    error: str | None = None
    peers: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
    identity: tuple[bytes, tuple[bytes, ...]] | None = None


@dataclass(frozen=True, slots=True)
class StreamHead:
    """What the daemon says first on an incoming stream."""

    peer: PeerId
    protocol: str


def encode_fields(fields: Fields) -> bytes:
    """A message of numbers and byte strings."""
    encoded = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            encoded += varint(number << 3 | _VARINT) + varint(value)
        else:
            encoded += varint(number << 3 | _SIZED) + varint(len(value)) + value
    return bytes(encoded)


def decode_fields(data: bytes) -> Fields:
    """The fields of a message, in order.

    Raises:
        ValueError: cut, or a kind of field that these messages do not have.
    """
    fields: Fields = []
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        value: int | bytes
        value, position = read_varint(data, position)
        if tag & 7 == _SIZED:
            end = position + value
            if end > len(data):
                raise ValueError(f"a message cut after {len(data)} bytes")
            value, position = data[position:end], end
        elif tag & 7 != _VARINT:
            raise ValueError(f"field kind {tag & 7} in a message of the daemon")
        fields.append((tag >> 3, value))
    return fields


def request(kind: RequestType, body: Fields | None = None) -> bytes:
    """A request, with its length in front."""
    number = {  # of the field that holds the body
        RequestType.CONNECT: 2,
        RequestType.STREAM_OPEN: 3,
        RequestType.STREAM_HANDLER: 4,
        RequestType.DHT: 5,
        RequestType.DISCONNECT: 7,
        RequestType.REMOVE_STREAM_HANDLER: 9,
    }.get(kind)
    fields: Fields = [(1, int(kind))]
    if number is not None:
        fields.append((number, encode_fields(body or [])))
    message = encode_fields(fields)
    return varint(len(message)) + message


def decode_response(data: bytes) -> Response:
    """The daemon's answer to a request.

    Raises:
        ValueError: not an answer.
    """
    fields = decode_fields(data)
    if _number(fields, 1) != 0:
        message = _bytes(decode_fields(_bytes(fields, 2)), 1)
        return Response(error=message.decode(errors="replace") or "no reason given")
    identity, found = _bytes(fields, 4), _bytes(decode_fields(_bytes(fields, 5)), 2)
    listed = [value for number, value in fields if number == 6 and isinstance(value, bytes)]
    return Response(
        peers=tuple(_peer(value) for value in listed + ([found] if found else [])),
        identity=_peer(identity) if identity else None,
    )


def decode_stream_head(data: bytes) -> StreamHead:
    """Who opens a stream, for what.

    Raises:
        ValueError: malformed, or the peer's id is not 38 bytes long.
    """
    fields = decode_fields(data)
    peer = _bytes(fields, 1)
    if len(peer) != PEER_ID_BYTES:
        raise ValueError(f"a peer id of {len(peer)} bytes, expected {PEER_ID_BYTES}")
    return StreamHead(PeerId(peer), _bytes(fields, 3).decode())


def _peer(data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    fields = decode_fields(data)
    addresses = [value for number, value in fields if number == 2 and isinstance(value, bytes)]
    return _bytes(fields, 1), tuple(addresses)


def _number(fields: Fields, wanted: int) -> int:
    return next(
        (value for number, value in fields if number == wanted and isinstance(value, int)), 0
    )


def _bytes(fields: Fields, wanted: int) -> bytes:
    return next(
        (value for number, value in fields if number == wanted and isinstance(value, bytes)), b""
    )
