"""One round of a shared-seed run: what everybody makes of the decided set, and what the log is made of.

An entry is a function of the set alone, so that all members write the same bytes; whoever was away
needs the entries it missed, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgpack

from runnel.errors import PeerError

FULL_PROGRESS = 1_000_000
MAX_ENTRY_BYTES = 1 << 20
_MAX_SEATS = 64


@dataclass(frozen=True, slots=True)
class RoundEntry:
    """The contributions that a round took.

    Attributes:
        progress: share of the run done before it, in millionths.
        shares: payloads by their senders' seats (places in the round's view).
    """

    progress: int
    shares: Mapping[int, bytes]

    def encode(self) -> bytes:
        """The only encoding: seats ascend."""
        rows = [[seat, self.shares[seat]] for seat in sorted(self.shares)]
        encoded: bytes = msgpack.packb([self.progress, rows])
        return encoded

    @staticmethod
    def decode(data: bytes | memoryview) -> RoundEntry:
        """Reads an entry.

        Raises:
            PeerError: these bytes are no entry's.
        """
        try:
            progress, rows = msgpack.unpackb(data)
            entry = RoundEntry(progress, dict(rows))
        except (ValueError, TypeError, msgpack.exceptions.UnpackException):
            raise PeerError("malformed", "a result that is no round of shared seeds") from None
        seats_fit = all(
            type(seat) is int and 0 <= seat < _MAX_SEATS and isinstance(payload, bytes)
            for seat, payload in entry.shares.items()
        )
        sound = type(progress) is int and 0 <= progress <= FULL_PROGRESS and seats_fit
        if not sound or entry.encode() != bytes(data):
            raise PeerError("malformed", "a result that is no round of shared seeds")
        return entry
