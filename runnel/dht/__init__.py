"""Networking: identities, canonical messages, transports, the directory of a run.

Names are imported when they are first used, so that importing this package costs nothing and
hivemind is loaded only by those who start it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runnel.dht.framing import ByteStream, FramedStream
    from runnel.dht.identity import (
        Identity,
        NullSigner,
        from_base58,
        null_peer_id,
        peer_id_of,
        public_key_of,
        to_base58,
    )
    from runnel.dht.memory import Link, MemoryDirectory, MemoryNetwork, MemoryTransport
    from runnel.dht.traffic import ByteCounter
    from runnel.dht.virtual_loop import VirtualLoop, run_virtual
    from runnel.dht.wire import pack, unpack

_LAZY = {
    "ByteCounter": "runnel.dht.traffic",
    "ByteStream": "runnel.dht.framing",
    "FramedStream": "runnel.dht.framing",
    "Identity": "runnel.dht.identity",
    "Link": "runnel.dht.memory",
    "MemoryDirectory": "runnel.dht.memory",
    "MemoryNetwork": "runnel.dht.memory",
    "MemoryTransport": "runnel.dht.memory",
    "NullSigner": "runnel.dht.identity",
    "VirtualLoop": "runnel.dht.virtual_loop",
    "from_base58": "runnel.dht.identity",
    "null_peer_id": "runnel.dht.identity",
    "pack": "runnel.dht.wire",
    "peer_id_of": "runnel.dht.identity",
    "public_key_of": "runnel.dht.identity",
    "run_virtual": "runnel.dht.virtual_loop",
    "to_base58": "runnel.dht.identity",
    "unpack": "runnel.dht.wire",
}

__all__ = [
    "ByteCounter",
    "ByteStream",
    "FramedStream",
    "Identity",
    "Link",
    "MemoryDirectory",
    "MemoryNetwork",
    "MemoryTransport",
    "NullSigner",
    "VirtualLoop",
    "from_base58",
    "null_peer_id",
    "pack",
    "peer_id_of",
    "public_key_of",
    "run_virtual",
    "to_base58",
    "unpack",
]


def __getattr__(name: str) -> Any:
    try:
        module = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
