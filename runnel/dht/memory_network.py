"""A network in memory: links with latency, bandwidth and loss; partitions, crashes and slow peers.

Time is the running loop's, so on a `VirtualLoop` hours pass in seconds, and equal seeds make equal
histories. Streams here are as bad as the worst real ones: closing either end closes both
directions and drops what is still under way.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from runnel.dht.memory_stream import MemoryByteStream, Pipe
from runnel.errors import BugError, NetworkError
from runnel.types import short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from runnel.types import PeerId


_PACKET_BYTES = 1500
"""What is no longer goes on once it has come in whole."""
_INSTANT_S = 1e-3
"""Waits for a downlink below this are not worth an event of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """How one peer is connected; between two peers both links count.

    Losses are per write (a piece of up to 256 KiB), drawn from the network's seed.
    """

    latency_s: float = 0.0
    """One way, from the peer to the middle of the network."""
    up_bits_s: float = math.inf
    down_bits_s: float = math.inf
    loss: float = 0.0
    """Probability that a write of this peer is held up by `retransmit_s`."""
    retransmit_s: float = 0.25
    breaks: float = 0.0
    """Probability that a write of this peer breaks its stream."""

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.retransmit_s < 0:
            raise ValueError(f"a delay in the past: {self}")
        if self.up_bits_s <= 0 or self.down_bits_s <= 0:
            raise ValueError(f"a link without bandwidth carries nothing: {self}; cut it instead")
        if not (0 <= self.loss <= 1 and 0 <= self.breaks <= 1):
            raise ValueError(f"probabilities are between 0 and 1: {self}")


@dataclass(frozen=True, slots=True)
class Cut:
    """Nothing passes between `a` and `b` until `Heal`; streams stall, they do not close."""

    a: PeerId
    b: PeerId


@dataclass(frozen=True, slots=True)
class Partition:
    """Nothing passes between peers of different groups; those in no group form one more."""

    groups: tuple[frozenset[PeerId], ...]


@dataclass(frozen=True, slots=True)
class Heal:
    """Ends all cuts and partitions; what was stalled arrives."""


@dataclass(frozen=True, slots=True)
class Kill:
    """The peer's process dies, once it has sent `after_bytes` more; others see its streams close."""

    peer: PeerId
    after_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Relink:
    """The peer's connection becomes another one."""

    peer: PeerId
    link: Link


Fault = Cut | Partition | Heal | Kill | Relink


class Endpoint(Protocol):
    """What a peer attaches to the network."""

    def accept(self, protocol: str, stream: MemoryByteStream) -> bool:
        """Takes an incoming stream; false if `protocol` is not served."""
        ...

    def die(self) -> None:
        """Cancels all that runs here, as the end of the process would."""
        ...


@dataclass(slots=True)
class _Queue:
    """What waits for one direction of a link."""

    free_s: float = 0.0

    def take(self, now: float, seconds: float) -> float:
        """Joins the queue for so long a transfer; when it begins."""
        begins = max(now, self.free_s)
        self.free_s = begins + seconds
        return begins


@dataclass(slots=True)
class _Node:
    link: Link
    endpoint: Endpoint | None = None
    streams: dict[MemoryByteStream, None] = field(default_factory=dict)  # a set, in order
    up: _Queue = field(default_factory=lambda: _Queue())
    down: _Queue = field(default_factory=lambda: _Queue())
    bulk_up: _Queue = field(default_factory=lambda: _Queue())
    bulk_down: _Queue = field(default_factory=lambda: _Queue())
    dies_after_bytes: int | None = None


class MemoryNetwork:
    """Connects the `MemoryTransport`s of one process; see `Link` and `Fault` for what it can do."""

    def __init__(
        self,
        seed: int,
        *,
        links: Mapping[PeerId, Link] | None = None,
        default_link: Link | None = None,
        window_bytes: int = 1024 * 1024,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """`weights`: how many bytes one byte of a protocol stands for, where small data plays large data.

        Such data has queues of its own: its few large writes are many packets, between which others get
        their turn.
        """
        self.killed: Callable[[PeerId], None] = lambda _: None
        """Told of each peer whose process has died."""
        self.records: dict[str, dict[PeerId, tuple[bytes, float]]] = {}
        """The directory's: key -> peer -> value and the loop time at which it expires."""
        self._rng = random.Random(seed)
        usual = default_link or Link()
        self._links = defaultdict(lambda: usual, links or {})
        self._window_bytes = window_bytes
        self._weights = dict(weights or {})
        self._nodes: dict[PeerId, _Node] = {}
        self._cuts: set[frozenset[PeerId]] = set()
        self._groups: dict[PeerId, int] = {}
        self._stalled: dict[Pipe, None] = {}
        self._dialling: dict[asyncio.Future[None], None] = {}
        # What is under way arrives whatever becomes of its sender: timers are nobody's in particular.
        self._context = contextvars.copy_context()

    def cut(self, a: PeerId, b: PeerId) -> None:
        """See `Cut`."""
        self._cuts.add(frozenset((a, b)))

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """See `Partition`; replaces an earlier partition."""
        self._groups = {peer: number for number, group in enumerate(groups, 1) for peer in group}
        self._release()

    def heal(self) -> None:
        """See `Heal`."""
        self._cuts.clear()
        self._groups.clear()
        self._release()

    def kill(self, peer: PeerId, *, after_bytes: int = 0) -> None:
        """See `Kill`. A new transport for the same peer is its restart."""
        node = self._node(peer)
        if after_bytes > 0:
            node.dies_after_bytes = after_bytes
            return
        endpoint, node.endpoint = node.endpoint, None
        for stream in tuple(node.streams):  # what the kernel has already taken is still sent
            stream.end(lose_under_way=False)
        if endpoint is not None:
            endpoint.die()
            self.killed(peer)

    def relink(self, peer: PeerId, link: Link) -> None:
        """See `Relink`; what is under way keeps its arrival time."""
        self._node(peer).link = link

    def inject(self, fault: Fault) -> None:
        """Makes `fault` happen now."""
        match fault:
            case Cut(a, b):
                self.cut(a, b)
            case Partition(groups):
                self.partition(*groups)
            case Heal():
                self.heal()
            case Kill(peer, after_bytes):
                self.kill(peer, after_bytes=after_bytes)
            case Relink(peer, link):
                self.relink(peer, link)

    def schedule(self, at_s: float, fault: Fault) -> None:
        """Makes `fault` happen at `at_s` (loop time); call it inside the loop."""
        asyncio.get_running_loop().call_at(at_s, self.inject, fault)

    def alive(self, peer: PeerId) -> bool:
        """Whether a transport is attached under `peer`."""
        return self._node(peer).endpoint is not None

    def separated(self, a: PeerId, b: PeerId) -> bool:
        """Whether a cut or a partition lies between two peers."""
        return frozenset((a, b)) in self._cuts or self._groups.get(a, 0) != self._groups.get(b, 0)

    def latency_s(self, a: PeerId, b: PeerId) -> float:
        """Seconds that the first bit takes from `a` to `b`, or back."""
        return self._node(a).link.latency_s + self._node(b).link.latency_s

    def attach(self, peer: PeerId, endpoint: Endpoint) -> None:
        """Puts `peer` on the network.

        Raises:
            BugError: it is there already.
        """
        node = self._node(peer)
        if node.endpoint is not None:
            raise BugError(f"peer {short(peer)} has a transport on this network already")
        node.endpoint = endpoint
        node.dies_after_bytes = None

    def detach(self, peer: PeerId) -> None:
        """Takes `peer` off the network and drops its streams."""
        node = self._node(peer)
        node.endpoint = None
        for stream in tuple(node.streams):
            stream.abort()

    async def connect(self, source: PeerId, target: PeerId, protocol: str) -> MemoryByteStream:
        """A stream from `source` to `target`, after one round trip; waits while they are separated.

        Raises:
            NetworkError: no such peer, or it does not serve `protocol`.
        """
        while self.separated(source, target):
            healed = asyncio.get_running_loop().create_future()
            self._dialling[healed] = None
            try:
                await healed
            finally:
                del self._dialling[healed]
        await asyncio.sleep(2 * self.latency_s(source, target))
        endpoint = self._node(target).endpoint
        if source == target or endpoint is None or not self.alive(source):
            raise NetworkError(f"peer {short(target)} cannot be reached; is it running?")
        weight = self._weights.get(protocol, 1.0)
        there, back = Pipe(source, target, weight), Pipe(target, source, weight)
        ours = MemoryByteStream(self, reads=back, writes=there)
        theirs = MemoryByteStream(self, reads=there, writes=back)
        if not endpoint.accept(protocol, theirs):
            raise NetworkError(f"peer {short(target)} does not serve {protocol!r}")
        for peer, stream in ((source, ours), (target, theirs)):
            self._node(peer).streams[stream] = None
        return ours

    def forget(self, peer: PeerId, stream: MemoryByteStream) -> None:
        """Drops a closed stream from the peer's list."""
        self._node(peer).streams.pop(stream, None)

    @property
    def window_bytes(self) -> int:
        """How much of one direction of a stream may be written and not yet read."""
        return self._window_bytes

    def admit(self, pipe: Pipe, num_bytes: int) -> None:
        """Lets a write through, or raises ConnectionError: a fault broke the stream or killed us."""
        sender = self._node(pipe.source)
        if sender.dies_after_bytes is not None:
            sender.dies_after_bytes -= num_bytes
            if sender.dies_after_bytes < 0:
                self.kill(pipe.source)
                raise ConnectionResetError("this peer was killed")
        if sender.link.breaks and self._rng.random() < sender.link.breaks:
            for stream in tuple(sender.streams):
                if stream.writes_to(pipe):
                    stream.abort()
            raise ConnectionResetError("the link broke the stream")

    def carry(self, pipe: Pipe, num_bytes: int) -> None:
        """Makes the newest entry of `pipe`, `num_bytes` long, arrive when the two links allow."""
        sender, receiver = self._node(pipe.source), self._node(pipe.target)
        now, bits = asyncio.get_running_loop().time(), 8 * num_bytes * pipe.weight
        queue = sender.up if pipe.weight == 1.0 else sender.bulk_up
        start = queue.take(now, bits / sender.link.up_bits_s)
        delay = self.latency_s(pipe.source, pipe.target)
        if num_bytes and self._rng.random() < sender.link.loss:
            delay += sender.link.retransmit_s
        # Entries of one pipe never overtake each other. An event delivers whichever is the oldest,
        # so it does no harm that timers set for the same time fire in any order.
        pipe.first_s = max(pipe.first_s, start + delay)
        pipe.last_s = max(pipe.last_s, queue.free_s + delay)
        if math.isinf(receiver.link.down_bits_s):
            self._at(pipe.last_s, self._arrive, pipe)
        else:  # the downlink's queue is joined on arrival, not when it is known that one will come
            joins_s = pipe.last_s if num_bytes <= _PACKET_BYTES else pipe.first_s
            self._at(joins_s, self._queue_down, pipe, bits, pipe.last_s)

    def _queue_down(self, pipe: Pipe, bits: float, last_s: float) -> None:
        receiver, now = self._node(pipe.target), asyncio.get_running_loop().time()
        queue = receiver.down if pipe.weight == 1.0 else receiver.bulk_down
        queue.take(now, bits / receiver.link.down_bits_s)
        if max(last_s, queue.free_s) - now < _INSTANT_S:
            self._arrive(pipe)
        else:
            self._at(max(last_s, queue.free_s), self._arrive, pipe)

    def _arrive(self, pipe: Pipe) -> None:
        if self.separated(pipe.source, pipe.target):
            pipe.num_stalled += 1
            self._stalled[pipe] = None
        else:
            pipe.arrive()

    def _release(self) -> None:
        for pipe in tuple(self._stalled):
            if not self.separated(pipe.source, pipe.target):
                del self._stalled[pipe]
                for _ in range(pipe.num_stalled):
                    pipe.arrive()
                pipe.num_stalled = 0
        for healed in tuple(self._dialling):
            if not healed.done():
                healed.set_result(None)

    def _node(self, peer: PeerId) -> _Node:
        if peer not in self._nodes:
            self._nodes[peer] = _Node(self._links[peer])
        return self._nodes[peer]

    def _at(self, at_s: float, step: Callable[..., None], *args: object) -> None:
        loop = asyncio.get_running_loop()
        if at_s <= loop.time():
            step(*args)
        else:
            loop.call_at(at_s, step, *args, context=self._context)
