"""When bytes left a transport, and by how much that was more than a cap allows."""

from __future__ import annotations

import asyncio

from runnel.dht.memory import MemoryTransport


class Uplink:
    """What a transport sends from now on, by its ledger and the loop's time."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.sent: list[tuple[float, int]] = []
        ledger = transport.traffic
        add = ledger.add_sent

        def add_sent(purpose: str, num_bytes: int) -> None:
            self.sent.append((asyncio.get_running_loop().time(), num_bytes))
            add(purpose, num_bytes)

        ledger.add_sent = add_sent  # type: ignore[method-assign]

    def excess(self, bits_s: float) -> float:
        """The most bytes that left in any window beyond the cap's share of it."""
        # the largest sum of consecutive pieces, each less what its time before allows
        worst = running = before = 0.0
        for at, num_bytes in self.sent:
            running = max(0.0, running - bits_s / 8 * (at - before)) + num_bytes
            worst, before = max(worst, running), at
        return worst
