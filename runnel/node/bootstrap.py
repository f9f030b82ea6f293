"""Addresses at which a newcomer finds the swarm: multiaddresses as text, and packed for invites.

Only ``/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT/p2p/PEER`` exists here: what a stranger can dial.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from runnel.dht.identity import KEY_BYTES, from_base58, peer_id_of, public_key_of, to_base58
from runnel.errors import ConfigError
from runnel.types import PeerId

_KINDS = ("ip4", "ip6", "dns", "dns4", "dns6")
_IP_BYTES = {"ip4": 4, "ip6": 16}
_OWNERS_KEY, _SAME_KEY = 0x80, 0x40
_KIND_MASK = 0x0F
_TEXT = re.compile(r"/([a-z0-9]+)/([^/]+)/tcp/([0-9]{1,5})/p2p/([A-Za-z0-9]+)")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\Z")
_FORM = "/ip4/HOST/tcp/PORT/p2p/PEER (or ip6, dns, dns4, dns6)"


@dataclass(frozen=True, slots=True)
class BootstrapAddress:
    """Where one peer can be dialled.

    Attributes:
        kind: "ip4", "ip6", "dns", "dns4" or "dns6".
        host: an IP address in its shortest form, or a lower-case DNS name.
        port: TCP, 1 to 65535.
        peer: who answers there.

    Raises:
        ValueError: a value out of these bounds.
    """

    kind: str
    host: str
    port: int
    peer: PeerId

    def __post_init__(self) -> None:
        """Checks the values."""
        public_key_of(self.peer)
        if not 1 <= self.port <= 65_535:
            raise ValueError(f"port {self.port}, expected 1 to 65535")
        if self.host != _canonical_host(self.kind, self.host):
            raise ValueError(f"{self.host!r} is not the shortest form of a host")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The address that a multiaddress names.

        Raises:
            ConfigError: another form, or a host that nobody can dial.
        """
        try:
            kind, host, port, peer = _fields(text.strip())
            return cls(kind, _canonical_host(kind, host.lower()), int(port), from_base58(peer))
        except ValueError as error:
            raise ConfigError(
                f"bootstrap address {text[:100]!r} is not usable ({error}), expected {_FORM}:"
                " correct the address"
            ) from None

    def __str__(self) -> str:
        return f"/{self.kind}/{self.host}/tcp/{self.port}/p2p/{to_base58(self.peer)}"

    def pack(self, *, owner: PeerId, previous: PeerId | None) -> bytes:
        """Few bytes: the key is left out where it is the run owner's or that of the address before."""
        head = _KINDS.index(self.kind)
        key = b""
        if self.peer == owner:
            head |= _OWNERS_KEY
        elif self.peer == previous:
            head |= _SAME_KEY
        else:
            key = public_key_of(self.peer)
        if self.kind in _IP_BYTES:
            host = ipaddress.ip_address(self.host).packed
        else:
            host = bytes([len(self.host)]) + self.host.encode()
        return bytes([head]) + host + self.port.to_bytes(2, "big") + key

    @classmethod
    def unpack(
        cls, data: bytes, *, owner: PeerId, previous: PeerId | None
    ) -> tuple[BootstrapAddress, bytes]:
        """The first address in `data`, and what follows it.

        Raises:
            ValueError: cut short or not an address.
        """
        head, data = _split(data, 1)
        if head[0] & _KIND_MASK >= len(_KINDS) or head[0] & ~(_KIND_MASK | _OWNERS_KEY | _SAME_KEY):
            raise ValueError(f"an address of unknown kind {head[0]}")
        kind = _KINDS[head[0] & _KIND_MASK]
        if kind in _IP_BYTES:
            packed, data = _split(data, _IP_BYTES[kind])
            host = str(ipaddress.ip_address(packed))
        else:
            length, data = _split(data, 1)
            name, data = _split(data, length[0])
            host = name.decode("ascii")
        port, data = _split(data, 2)
        if head[0] & _OWNERS_KEY:
            peer = owner
        elif head[0] & _SAME_KEY:
            if previous is None:
                raise ValueError("the first address refers to one before it")
            peer = previous
        else:
            key, data = _split(data, KEY_BYTES)
            peer = peer_id_of(key)
        return cls(kind, host, int.from_bytes(port, "big"), peer), data


def _fields(text: str) -> tuple[str, ...]:
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError("another form")
    return found.groups()


def _canonical_host(kind: str, host: str) -> str:
    if kind in _IP_BYTES:
        address = ipaddress.ip_address(host)
        if len(address.packed) != _IP_BYTES[kind] or "%" in host:
            raise ValueError(f"{host!r} is no {kind} address")
        if address.is_unspecified:
            raise ValueError(f"{host} cannot be dialled")
        return str(address)
    if kind not in _KINDS:
        raise ValueError("another form")
    if not _DNS_NAME.match(host):
        raise ValueError(f"{host!r} is no DNS name")
    return host


def _split(data: bytes, length: int) -> tuple[bytes, bytes]:
    if len(data) < length:
        raise ValueError("cut short")
    return data[:length], data[length:]
