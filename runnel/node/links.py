"""Control messages between peers: one bounded queue and one stream for each peer we talk to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from runnel.dht.wire import pack, unpack
from runnel.errors import NetworkError, PeerError
from runnel.node.events import MessageRefused
from runnel.node.messages import MAX_MESSAGE_BYTES, Message, decode, encode
from runnel.node.outboxes import MAX_MESSAGES, Outboxes
from runnel.node.records import blob, items
from runnel.node.standing import Standing
from runnel.protocols import Stream, Transport
from runnel.types import PeerId, short

logger = logging.getLogger(__name__)

CONTROL_PROTOCOL = "control"
_MAX_LINKS = 512
"""More than there are members, seeds and guests: answers to strangers make way for those to others."""
_MAX_BATCH_BYTES = 2 * MAX_MESSAGE_BYTES + 4096
_SEND_S = 15.0
_IDLE_S = 60.0
_RETRY_S = 0.5

Receiver = Callable[[PeerId, Message], None]


class Links:
    """Sends messages in order to each peer, and hands over what they send.

    A queue that is full drops its oldest message: the protocol repeats what matters. `receive` refuses
    a message by a `PeerError`; `standing` counts that, and says how fast its sender is read. Nothing is
    read before `ready` returns: until then senders are held back by their links.
    """

    def __init__(
        self,
        transport: Transport,
        run: bytes,
        *,
        receive: Receiver,
        standing: Standing,
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        self._transport, self._run = transport, run
        self._receive, self._standing, self._ready = receive, standing, ready
        self._boxes = Outboxes()
        self._wake: dict[PeerId, asyncio.Event] = {}
        self._tasks: dict[PeerId, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._wanted: set[PeerId] = set()
        self._closed = False

    async def serve(self) -> None:
        """Starts taking messages."""
        await self._transport.serve(CONTROL_PROTOCOL, self._on_stream)

    def send(self, message: Message, to: Iterable[PeerId]) -> None:
        """Queues a message for each peer; encodes it once."""
        data = encode(self._run, message)
        for peer in to:
            if peer != self._transport.local_id and not self._closed:
                self._open(peer)
                self._boxes.put(peer, data)
                self._wake[peer].set()

    def keep(self, peers: Iterable[PeerId]) -> None:
        """Ends the links to all others."""
        self._wanted = set(peers)
        for peer in [peer for peer in self._tasks if peer not in self._wanted]:
            self._drop(peer)

    def blame(self, peer: PeerId, reason: str) -> None:
        """Counts against `peer` that something of it was refused."""
        self._standing.refused(peer, reason, asyncio.get_running_loop().time())

    def refusals(self) -> list[MessageRefused]:
        """What was refused since it was told last, now and then; without a time."""
        reports = self._standing.reports(asyncio.get_running_loop().time())
        return [
            MessageRefused(unix_s=0.0, peer=short(peer), reason=reason, count=count)
            for peer, reason, count in reports
        ]

    async def drain(self, deadline: float) -> None:
        """Waits until all queues are empty or the deadline is over."""
        loop = asyncio.get_running_loop()
        while self._boxes.any_waiting() and loop.time() < deadline:  # noqa: ASYNC110 - several queues
            await asyncio.sleep(0.02)

    async def aclose(self) -> None:
        """Ends all links."""
        self._closed = True
        for peer in list(self._tasks):
            self._drop(peer)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _open(self, peer: PeerId) -> None:
        if peer not in self._tasks:
            while len(self._tasks) >= _MAX_LINKS:
                strangers = (known for known in self._tasks if known not in self._wanted)
                self._drop(next(strangers, next(iter(self._tasks))))
            self._wake[peer] = asyncio.Event()
            loop = asyncio.get_running_loop()
            self._tasks[peer] = loop.create_task(self._carry(peer), name=f"link:{short(peer)}")

    def _drop(self, peer: PeerId) -> None:
        task = self._tasks.pop(peer)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()
        self._boxes.clear(peer)
        self._wake.pop(peer, None)

    async def _carry(self, peer: PeerId) -> None:
        loop = asyncio.get_running_loop()
        stream: Stream | None = None
        boxes, wake = self._boxes, self._wake[peer]
        try:
            while True:
                wake.clear()
                if not boxes.waiting(peer):
                    await wake.wait()
                try:
                    deadline = loop.time() + _SEND_S
                    if stream is None:
                        stream = await self._transport.open(
                            peer, CONTROL_PROTOCOL, deadline=deadline
                        )
                    while boxes.waiting(peer):
                        await stream.send(pack(boxes.take(peer)), deadline=loop.time() + _SEND_S)
                except (PeerError, NetworkError, TimeoutError) as error:
                    logger.debug("link to %s: %s", short(peer), error)
                    boxes.clear(peer)  # what is old by now says less than what comes next
                    if stream is not None:
                        await stream.aclose()
                        stream = None
                    await asyncio.sleep(_RETRY_S)
        finally:
            if stream is not None:
                await stream.aclose()

    async def _on_stream(self, stream: Stream) -> None:
        loop, peer = asyncio.get_running_loop(), stream.remote
        while not self._closed:
            # other streams of the same peer may have used up what it is granted meanwhile
            pause_s = self._standing.received(peer, 0, loop.time())
            if pause_s:
                await asyncio.sleep(min(pause_s, _IDLE_S))
            await self._ready()
            self._check(peer)
            data = await stream.receive(max_bytes=_MAX_BATCH_BYTES, deadline=loop.time() + _IDLE_S)
            self._check(peer)
            self._standing.received(peer, self._take(peer, data), loop.time())

    def _check(self, peer: PeerId) -> None:
        if self._standing.is_shut_out(peer, asyncio.get_running_loop().time()):
            raise PeerError("shut-out", "too many of its messages were refused")

    def _take(self, peer: PeerId, data: memoryview) -> int:
        """Hands over the messages of a frame; how many there were, at least one.

        A refused one ends the frame: whatever follows it was packed by the same hand.
        """
        try:
            messages = _messages(data)
        except PeerError as error:
            self._refuse(peer, error)
            return 1
        for message in messages:
            try:
                self._receive(peer, decode(self._run, message))
            except PeerError as error:
                self._refuse(peer, error)
                break
        return max(1, len(messages))

    def _refuse(self, peer: PeerId, error: PeerError) -> None:
        logger.debug("message of %s refused: %s", short(peer), error)
        self.blame(peer, error.reason)


def _messages(data: memoryview) -> list[bytes]:
    batch = unpack(data, max_bytes=_MAX_BATCH_BYTES)
    return [blob(message, MAX_MESSAGE_BYTES) for message in items(batch, MAX_MESSAGES)]
