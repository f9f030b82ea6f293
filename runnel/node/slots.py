"""How many transfers go on beside each other: fewer where a link gets none of them done in time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """Slots for transfers, given in the order in which they were asked for.

    As TCP's window (RFC 5681): halved where a transfer was too slow, one more after as many in time as
    there are slots. Transfers that share a slow link and are all given up at their deadlines carry
    nothing, however long they are tried.
    """

    def __init__(self, most: int) -> None:
        """As many as `most` at once."""
        self._most, self._width = most, float(most)
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def width(self) -> int:
        """How many there are now."""
        return int(self._width)

    @property
    def taken(self) -> int:
        """How many are in use."""
        return self._taken

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Waits for a slot and holds it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._hand_out()
        try:
            await turn
            yield
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:
                self._taken -= 1
            self._hand_out()

    def in_time(self) -> None:
        """A transfer was done in time."""
        self._width = min(self._most, self._width + 1 / self._width)
        self._hand_out()

    def too_slow(self) -> None:
        """A transfer was not done in time."""
        self._width = max(1.0, self._width / 2)

    def _hand_out(self) -> None:
        while self._waiting and self._taken < self.width:
            turn = self._waiting.popleft()
            self._taken += 1
            if not turn.done():  # or its owner gives the slot back in a moment
                turn.set_result(None)
