"""What takes a processor seconds and no first step needs begins after the first step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from runnel.kernels import warm_up
from runnel.node.events import InnerProgress

if TYPE_CHECKING:
    from runnel.node.events import Event
    from runnel.node.manifest import RunSpec
    from runnel.node.runtime import PeerRuntime

PATIENCE_S = 3.0
"""Steps may take minutes, or come from elsewhere: so long is waited for the first one."""

_LOOK_S = 0.05


class FirstStep:
    """Knows whether this peer's trainer has taken a step, by the events that it is told."""

    def __init__(self) -> None:
        self._taken = False

    def take(self, event: Event) -> None:
        """Notes an event; any thread."""
        self._taken = self._taken or isinstance(event, InnerProgress)

    async def then(self, begin: Callable[[], Awaitable[None]]) -> None:
        """Begins after the first step, or after `PATIENCE_S`."""
        loop = asyncio.get_running_loop()
        latest_s = loop.time() + PATIENCE_S
        while not self._taken and loop.time() < latest_s:  # noqa: ASYNC110 - told by another thread
            await asyncio.sleep(_LOOK_S)
        await begin()


async def load_arithmetic(runtime: PeerRuntime, spec: RunSpec) -> None:
    """Loads what a run's codecs and outer optimizer are compiled to; whatever needs it sooner loads it itself."""
    await runtime.load(warm_up, *spec.outer.codecs, spec.outer.optimizer)
