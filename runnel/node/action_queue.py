"""What the protocol wants done, in order, and how much of it may wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from runnel.node.actions import Action, Adopt

MAX_WAITING = 4096
"""So many actions wait at most before nothing more is read and no time passes for the protocol.

Nothing is dropped then: whoever sends is held back by its own link. A message asks for a few actions, so that a
disk that works never lets so many wait; one that hangs for minutes does.
"""


class ActionQueue:
    """Actions that wait to be carried out. What comes in while it is full is taken, but not asked for."""

    def __init__(self) -> None:
        self._waiting: deque[Action] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be asked for as yet."""
        return not self._room.is_set()

    def post(self, actions: Sequence[Action]) -> None:
        """Puts actions at the end."""
        if actions:
            self._waiting.extend(actions)
            self._wake.set()
        if len(self._waiting) >= MAX_WAITING:
            self._room.clear()

    async def wait(self) -> None:
        """Returns once something is there to do."""
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()

    async def room(self) -> None:
        """Returns once there is room for more."""
        await self._room.wait()

    def stretch(self) -> list[Action]:
        """Takes out everything up to the next step of the chain."""
        taken: list[Action] = []
        while self._waiting and not isinstance(self._waiting[0], Adopt):
            taken.append(self._waiting.popleft())
        self._taken()
        return taken

    def step(self) -> Adopt | None:
        """Takes out a step of the chain if it is next."""
        if self._waiting and isinstance(self._waiting[0], Adopt):
            step = self._waiting.popleft()
            self._taken()
            assert isinstance(step, Adopt)
            return step
        return None

    def _taken(self) -> None:
        if len(self._waiting) < MAX_WAITING // 2:
            self._room.set()
