"""A cap on what a peer sends: used to its limit, never exceeded, small messages before large ones."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterator, Sequence

from runnel.dht.rates import Bucket

URGENT_BYTES = 16 * 1024
"""Messages up to this size go before larger ones: votes and the like, by which others wait for us."""

_OVERHEAD = 1.06
"""What the headers of TCP, IP and the encryption add to a byte of ours."""
_BURST_S = 0.25
"""What may be made up for at once after a pause: loops and timers are late by some milliseconds."""
_PIECE_S = 0.05
_SMALLEST_PIECE = 1400
_LARGEST_PIECE = 256 * 1024

_Turn = tuple[float, asyncio.Future[None]]


class Throttle:
    """Lets through so many bits a second, all streams of a peer together; belongs to one loop.

    In any time t at most `bits_s` * t and `burst_bytes` leave, headers on the way included as an
    estimate. Streams take turns piece by piece, so that none waits for another one's end.
    """

    def __init__(self, bits_s: float = math.inf) -> None:
        """`bits_s`: infinite lets everything through at once."""
        self.bits_s = bits_s
        per_s = bits_s / 8 / _OVERHEAD
        self.piece_bytes = int(min(max(per_s * _PIECE_S, _SMALLEST_PIECE), _LARGEST_PIECE))
        self.burst_bytes = max(per_s * _BURST_S, 2.0 * self.piece_bytes)
        self._bucket = Bucket(per_s, self.burst_bytes)
        self._urgent, self._bulk = deque[_Turn](), deque[_Turn]()
        self._timer: asyncio.TimerHandle | None = None

    def pieces(self, parts: Sequence[bytes | memoryview]) -> Iterator[Sequence[bytes | memoryview]]:
        """`parts` as lists of buffers, each small enough for `admit`."""
        if math.isinf(self.bits_s):
            yield parts
            return
        for part in parts:
            view = memoryview(part).cast("B")
            for start in range(0, view.nbytes, self.piece_bytes):
                yield (view[start : start + self.piece_bytes],)

    async def admit(self, num_bytes: int, *, urgent: bool) -> None:
        """Waits until `num_bytes`, at most a piece, may leave; `urgent` ones go first.

        Whoever is cancelled has sent nothing, and may have cost the others a piece's time.
        """
        if math.isinf(self.bits_s):
            return
        loop = asyncio.get_running_loop()
        turn = (float(num_bytes), loop.create_future())
        queue = self._urgent if urgent else self._bulk
        queue.append(turn)
        try:
            self._let_through()
            await turn[1]
        finally:
            if turn in queue:
                queue.remove(turn)

    def _let_through(self) -> None:
        """Gives turns to all who may go now, and comes back for the next one."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while queue := self._urgent or self._bulk:
            num_bytes, turn = queue[0]
            now = loop.time()
            due = self._bucket.due(num_bytes, now)
            if due > now:
                self._timer = loop.call_at(due, self._let_through)
                return
            queue.popleft()
            if not turn.done():
                self._bucket.take(num_bytes, now)
                turn.set_result(None)
