"""Multiaddresses as people write them and as daemons exchange them: ``/ip4/192.0.2.1/tcp/4001/p2p/12D3...``.

Only the protocols that a peer here can listen on, be reached through or be named by. Format:
https://github.com/multiformats/multiaddr, codes from its table.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runnel.dht.identity import from_base58, public_key_of, to_base58
from runnel.types import PeerId

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = {"tcp": 6, "udp": 273}
_NAMES = {"dns": 53, "dns4": 54, "dns6": 55, "dnsaddr": 56}
_FLAGS = {"p2p-circuit": 290, "quic": 460, "quic-v1": 461, "ws": 477, "wss": 478}
_IP4, _IP6, _UNIX, _PEER = 4, 41, 400, 421
_IP_BYTES = {_IP4: 4, _IP6: 16}
_TEXT = {code: name for table in (_NUMBERS, _NAMES, _FLAGS) for name, code in table.items()}
_MAX_TEXT = 512
_MAX_NAME_BYTES = 255
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer can be reached: a multiaddress without its last part, and the peer that it names."""

    address: str
    peer: PeerId

    def __str__(self) -> str:
        return f"{self.address}/p2p/{to_base58(self.peer)}"


def parse_peer_address(text: str) -> PeerAddress:
    """The peer address that `text` names.

    Raises:
        ValueError: not a multiaddress that ends in ``/p2p/`` and an Ed25519 peer id.
    """
    address, separator, peer = text.strip().rpartition("/p2p/")
    if not separator or not address:
        raise ValueError(
            f"{text[:80]!r} names no address and peer; expected like "
            "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW..."
        )
    encode(address)
    return PeerAddress(address, from_base58(peer))


def encode(text: str) -> bytes:
    """The binary form of a multiaddress.

    Raises:
        ValueError: not a multiaddress of the protocols known here.
    """
    if not text.startswith("/") or len(text) > _MAX_TEXT:
        raise ValueError(
            f"not a multiaddress: {text[:80]!r}; expected like /ip4/192.0.2.1/tcp/4001"
        )
    words = iter(text[1:].split("/"))
    return b"".join(_encode_part(word, words, text) for word in words)


def decode(data: bytes) -> str:
    """The text of a binary multiaddress.

    Raises:
        ValueError: not a whole multiaddress of the protocols known here.
    """
    parts, position = [], 0
    while position < len(data):
        code, position = read_varint(data, position)
        part, position = _decode_part(code, data, position)
        parts.append(part)
    if not parts:
        raise ValueError("an empty multiaddress")
    return "/" + "/".join(parts)


def varint(number: int) -> bytes:
    """An unsigned number, seven bits per byte, lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, and where it ends.

    Raises:
        ValueError: cut, or more than ten bytes.
    """
    number = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if position >= len(data):
            raise ValueError(f"a number cut after {len(data)} bytes")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError(f"a number of more than {_MAX_VARINT_BYTES} bytes")


def unix(path: str) -> bytes:
    """The binary multiaddress of a Unix socket; `path` is absolute."""
    return _sized(_UNIX, path.encode())


def _encode_part(word: str, words: Iterator[str], text: str) -> bytes:
    if word in _FLAGS:
        return varint(_FLAGS[word])
    value = next(words, "")
    if word in ("ip4", "ip6"):
        ip = ipaddress.IPv4Address(value) if word == "ip4" else ipaddress.IPv6Address(value)
        return varint(_IP4 if word == "ip4" else _IP6) + ip.packed
    if word in _NUMBERS:
        if not (value.isascii() and value.isdigit() and int(value) < 2**16):
            raise ValueError(f"{word} port {value[:10]!r} in {text[:80]!r}; expected 0 to 65535")
        return varint(_NUMBERS[word]) + int(value).to_bytes(2, "big")
    if word in _NAMES:
        if not value or len(value.encode()) > _MAX_NAME_BYTES:
            raise ValueError(f"a host name is missing or too long in {text[:80]!r}")
        return _sized(_NAMES[word], value.encode())
    if word in ("p2p", "ipfs"):
        return _sized(_PEER, from_base58(value))
    raise ValueError(
        f"unknown part {word[:20]!r} in {text[:80]!r}; expected like /ip4/192.0.2.1/tcp/4001"
    )


def _decode_part(code: int, data: bytes, position: int) -> tuple[str, int]:
    if code in _IP_BYTES:
        packed, position = _take(data, position, _IP_BYTES[code])
        return f"{'ip4' if code == _IP4 else 'ip6'}/{ipaddress.ip_address(packed)}", position
    name = _TEXT.get(code)
    if name in _FLAGS:
        return str(name), position
    if name in _NUMBERS:
        packed, position = _take(data, position, 2)
        return f"{name}/{int.from_bytes(packed, 'big')}", position
    if name is None and code != _PEER:
        raise ValueError(f"unknown multiaddress protocol {code}")
    size, position = read_varint(data, position)
    value, position = _take(data, position, size)
    if code == _PEER:
        public_key_of(PeerId(value))
        return f"p2p/{to_base58(PeerId(value))}", position
    host = value.decode()
    if not host or "/" in host:
        raise ValueError(f"host name {host[:80]!r} in a multiaddress")
    return f"{name}/{host}", position


def _sized(code: int, value: bytes) -> bytes:
    return varint(code) + varint(len(value)) + value


def _take(data: bytes, position: int, size: int) -> tuple[bytes, int]:
    end = position + size
    if end > len(data):
        raise ValueError(f"a multiaddress cut after {len(data)} bytes")
    return data[position:end], end
