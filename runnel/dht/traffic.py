"""The ledger of bytes that every transport keeps: what was sent and received, by purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class ByteCounter:
    """Counts bytes by purpose and direction; implements `runnel.protocols.Traffic`.

    Written by one thread (the one that owns the loop), readable from any.
    """

    def __init__(self) -> None:
        self._sent: dict[str, int] = {}
        self._received: dict[str, int] = {}

    def add_sent(self, purpose: str, num_bytes: int) -> None:
        """Notes `num_bytes` that left this peer."""
        self._sent[purpose] = self._sent.get(purpose, 0) + num_bytes

    def add_received(self, purpose: str, num_bytes: int) -> None:
        """Notes `num_bytes` that arrived at this peer."""
        self._received[purpose] = self._received.get(purpose, 0) + num_bytes

    def sent(self, purpose: str | None = None) -> int:
        """Bytes sent under `purpose`, or in all."""
        return _total(self._sent, purpose)

    def received(self, purpose: str | None = None) -> int:
        """Bytes received under `purpose`, or in all."""
        return _total(self._received, purpose)

    def purposes(self) -> Sequence[str]:
        """All purposes seen, sorted."""
        return sorted({*tuple(self._sent), *tuple(self._received)})


class StreamCounter:
    """Counts one stream's bytes, in the ledger under its purpose."""

    def __init__(self, ledger: ByteCounter, purpose: str) -> None:
        self.received_bytes = 0
        self._ledger, self._purpose = ledger, purpose

    def add_sent(self, num_bytes: int) -> None:
        """Notes `num_bytes` that left this peer."""
        self._ledger.add_sent(self._purpose, num_bytes)

    def add_received(self, num_bytes: int) -> None:
        """Notes `num_bytes` that arrived at this peer."""
        self.received_bytes += num_bytes
        self._ledger.add_received(self._purpose, num_bytes)


def _total(ledger: dict[str, int], purpose: str | None) -> int:
    # tuple(...) first: one step under the interpreter's lock, so that another thread may add a key.
    return sum(tuple(ledger.values())) if purpose is None else ledger.get(purpose, 0)
