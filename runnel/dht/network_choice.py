"""Which kind of network a machine can have, and which one a peer takes: the one place that knows all."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from runnel.dht.daemon_process import find_binary
from runnel.dht.framing import TakeRoom, fresh_room
from runnel.dht.hivemind import start_hivemind
from runnel.dht.libp2p import start_libp2p
from runnel.errors import ConfigError, NetworkError

if TYPE_CHECKING:
    from runnel.dht.identity import Identity
    from runnel.dht.network import Network, NetworkSettings

AUTO, DAEMON, LIBP2P = "auto", "daemon", "libp2p"
KINDS = (AUTO, DAEMON, LIBP2P)

_INSTALL_LIBP2P = "pip install 'runnel[libp2p]'"


def choose(kind: str) -> str:
    """`DAEMON` or `LIBP2P`: what `kind`, one of `KINDS`, comes to on this machine. Imports neither.

    Raises:
        NetworkError: what was asked for is not installed here; how to install it.
    """
    if kind not in KINDS:
        raise ConfigError(f"network is {kind!r}, expected one of {', '.join(KINDS)}")
    if kind == DAEMON:
        find_binary(None)
        return DAEMON
    if kind == AUTO:
        try:
            find_binary(None)
        except NetworkError as error:
            if not _has_libp2p():
                raise NetworkError(
                    f"{error}; or take part without the daemon: {_INSTALL_LIBP2P}"
                ) from None
        else:
            return DAEMON
    if not _has_libp2p():
        raise NetworkError(f"libp2p for Python is not installed here: {_INSTALL_LIBP2P}")
    return LIBP2P


async def start_network(
    kind: str, settings: NetworkSettings, identity: Identity, take_room: TakeRoom = fresh_room
) -> Network:
    """Starts a network of a kind that `choose` gave; see `start_hivemind` and `start_libp2p`."""
    if kind == LIBP2P:
        if settings.dial_out:
            raise ConfigError(
                "host is none, which takes the network's daemon: listen with --host 127.0.0.1 instead"
            )
        return await start_libp2p(settings, identity, take_room)
    return await start_hivemind(settings, identity, take_room)


def _has_libp2p() -> bool:
    return importlib.util.find_spec("libp2p") is not None
