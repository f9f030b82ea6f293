"""Messages that wait to be sent, by peer: bounded for each and for all, the oldest make way. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from runnel.node.messages import MAX_MESSAGE_BYTES
from runnel.types import PeerId

MAX_MESSAGES = 256
"""To one peer."""
MAX_BYTES = 4 * MAX_MESSAGE_BYTES
"""To one peer: a few answers of the largest size to one that is slow to read them."""
MAX_TOTAL_BYTES = 32 << 20
"""To all peers: whoever asks and does not read makes others hold this much."""


@dataclass(slots=True)
class Outboxes:
    """The protocol repeats what matters, so that the oldest message is the one to drop."""

    _boxes: dict[PeerId, deque[bytes]] = field(default_factory=dict)
    _sizes: dict[PeerId, int] = field(default_factory=dict)
    _total: int = 0

    @property
    def total_bytes(self) -> int:
        """What waits for all peers."""
        return self._total

    def waiting(self, peer: PeerId) -> bool:
        """Whether anything waits for `peer`."""
        return bool(self._boxes.get(peer))

    def any_waiting(self) -> bool:
        """Whether anything waits for anybody."""
        return any(self._boxes.values())

    def put(self, peer: PeerId, data: bytes) -> None:
        """Puts a message at the end of a peer's."""
        box = self._boxes.setdefault(peer, deque())
        box.append(data)
        self._add(peer, len(data))
        while len(box) > MAX_MESSAGES or (self._sizes[peer] > MAX_BYTES and len(box) > 1):
            self._add(peer, -len(box.popleft()))
        while self._total > MAX_TOTAL_BYTES:
            largest = max(self._sizes, key=self._sizes.__getitem__)
            self._add(largest, -len(self._boxes[largest].popleft()))

    def take(self, peer: PeerId) -> list[bytes]:
        """The next messages that fit into one frame, at least one, or none if none waits."""
        box, batch, size = self._boxes.get(peer, deque()), list[bytes](), 0
        while box and (not batch or size + len(box[0]) < MAX_MESSAGE_BYTES):
            size += len(box[0])
            batch.append(box.popleft())
        self._add(peer, -size)
        return batch

    def clear(self, peer: PeerId) -> None:
        """Forgets all that waits for `peer`."""
        self._total -= self._sizes.pop(peer, 0)
        self._boxes.pop(peer, None)

    def _add(self, peer: PeerId, size_bytes: int) -> None:
        self._sizes[peer] = self._sizes.get(peer, 0) + size_bytes
        self._total += size_bytes
