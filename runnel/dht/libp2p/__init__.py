"""The network without a daemon: libp2p for Python behind our transport.

Importing this costs nothing; libp2p and trio are imported when a network starts.
"""

from __future__ import annotations

from runnel.dht.libp2p.network import Libp2pNetwork, start_libp2p

__all__ = ["Libp2pNetwork", "start_libp2p"]
