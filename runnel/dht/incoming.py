"""Streams that peers open to us: whose handler takes them, how many at once and how often."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from runnel.dht.framing import FramedStream, TakeRoom
from runnel.dht.handling import run_handler
from runnel.dht.rates import Buckets, Rate
from runnel.types import short

if TYPE_CHECKING:
    from runnel.dht.framing import ByteStream
    from runnel.dht.throttle import Throttle
    from runnel.dht.traffic import ByteCounter
    from runnel.protocols import StreamHandler
    from runnel.types import PeerId

_log = logging.getLogger(__name__)

PREFIX = "/runnel/1/"
"""What the names of our protocols start with on the network."""

MAX_STREAMS_PER_PEER = 64
"""Incoming streams that one peer may have open; further ones are closed at once."""

STREAM_RATE = Rate(per_s=200, burst=1000)
"""Incoming streams of one peer: a round of a large swarm takes some dozens."""

MAX_STREAMS = 1024
"""Incoming streams in all."""


ByteHandler = Callable[[Any], Awaitable[None]]
"""Serves an incoming stream of bytes, of the kind that its network has; it is closed when this returns."""


class Incoming:
    """The handlers of one transport and the streams that they serve."""

    def __init__(self, traffic: ByteCounter, take_room: TakeRoom, throttle: Throttle) -> None:
        """`take_room` gives the memory that messages arrive in, `throttle` caps what all streams send."""
        self._traffic, self._throttle = traffic, throttle
        self._take_room = take_room
        self._handlers: dict[str, ByteHandler] = {}  # by the name on the network
        self._per_peer: Counter[PeerId] = Counter()
        self._rate = Buckets(STREAM_RATE)
        self._num_refused = 0

    @property
    def names(self) -> tuple[str, ...]:
        """What is served, as the network calls it."""
        return tuple(self._handlers)

    @property
    def num_refused(self) -> int:
        """Streams that were closed because their peer, or all together, had too many."""
        return self._num_refused

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """From now on `handler` serves the streams of `protocol`."""

        async def serve_frames(stream: ByteStream) -> None:
            await run_handler(handler, self.framed(stream, protocol))

        self._handlers[PREFIX + protocol] = serve_frames

    def handle_bytes(self, name: str, handler: ByteHandler) -> None:
        """From now on `handler` serves the streams of a protocol that is not of our frames.

        What it raises beyond OSError and ValueError is a mistake in this program.
        """
        self._handlers[name] = handler

    def take_all(self) -> tuple[str, ...]:
        """Ends all handlers; the names of what was served."""
        served, self._handlers = self.names, {}
        return served

    def framed(self, stream: ByteStream, protocol: str) -> FramedStream:
        """`stream` as a conversation whose bytes count under `protocol`."""
        return FramedStream(
            stream, self._traffic, protocol, take_room=self._take_room, throttle=self._throttle
        )

    def refuse(self, stream: ByteStream, who: str) -> None:
        """Closes a stream that is one too many, and counts it."""
        self._num_refused += 1
        _log.debug("too many incoming streams of %s; closed one", who)
        stream.abort()

    async def serve(self, stream: ByteStream, name: str) -> None:
        """Serves one stream to its end, and ends it; `name` is the protocol as the network calls it."""
        peer, handler = stream.remote, self._handlers.get(name)
        often = not self._rate.take(peer, asyncio.get_running_loop().time())
        if handler is None or often or self._per_peer[peer] >= MAX_STREAMS_PER_PEER:
            self.refuse(stream, short(peer))
            return
        self._per_peer[peer] += 1
        try:
            await handler(stream)
        except (OSError, ValueError) as error:
            _log.debug("stream of %s: %s", short(peer), error)
        finally:
            stream.abort()
            self._per_peer[peer] -= 1
            if not self._per_peer[peer]:
                del self._per_peer[peer]
