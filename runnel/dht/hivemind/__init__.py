"""The real network: hivemind's daemon and DHT behind our transport and directory.

Importing this costs nothing; hivemind and torch are imported when a network starts.
"""

from __future__ import annotations

from runnel.dht.hivemind.network import HivemindNetwork, start_hivemind
from runnel.dht.network import NetworkSettings

__all__ = ["HivemindNetwork", "NetworkSettings", "start_hivemind"]
