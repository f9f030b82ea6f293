"""One seed's world: peers on a simulated network with faults, time, and checks of what they do."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from runnel.errors import PeerError
from runnel.hashing import digest
from runnel.node import actions as act
from runnel.node.messages import Message, decode, encode
from runnel.node.outcomes import genesis_record
from runnel.types import PeerId
from tests.support import faults
from tests.support.checks import Broken, Checks
from tests.support.jobs import Jobs
from tests.support.sim_peer import RUN, Disk, SimPeer, peer_name

SETTLING_S = 140.0
"""How long a schedule goes on once nothing fails any more."""
_MARK_S = 80.0
_CODED_EVERY = 8


@dataclass(frozen=True, slots=True)
class Links:
    """How bad the network is: chances of loss (of messages, of transfers), duplication, delay and of being late."""

    loss: float
    bulk_loss: float
    duplicates: float
    delay_s: float
    late: float = 0.02
    latest_s: float = 4.0

    @staticmethod
    def drawn(rng: Random) -> Links:
        return Links(
            rng.choice((0, 0.02, 0.1)),
            rng.choice((0, 0, 0.5, 0.9)),
            rng.choice((0, 0.1)),
            rng.choice((0.05, 0.3)),
        )

    def calmed(self) -> Links:
        return replace(self, loss=min(self.loss, 0.02), bulk_loss=0.0, late=0.02, latest_s=4.0)


class World:
    """Peers, the events to come, and what went wrong so far. Equal seeds give equal worlds."""

    liars: frozenset[int] = frozenset()

    def __init__(self, seed: int, *, calm: bool = False, kind: str = "") -> None:
        self.rng = rng = Random(seed)
        whole = rng.random() < 0.3
        self.carried = kind == "carried"
        self.open_rounds, self.fragments = (1, 1) if whole or self.carried else (2, 4)
        self.count = rng.choice(self.founders(kind))
        self.shape = faults.SHAPES.get(kind, faults.Shape())
        self.links = Links.drawn(rng)
        self.genesis = genesis_record(tuple(map(peer_name, range(self.count))), digest(b"zero"))
        self.now = 0.0
        self.queue: list[tuple[float, int, tuple[Any, ...]]] = []
        self.disks: dict[int, Disk] = {}
        self.peers: dict[int, SimPeer] = {}
        self.gone: set[int] = set()
        self.doomed: dict[int, str | None] = {}
        self.blocked: frozenset[tuple[int, int]] = frozenset()
        self.frozen: dict[int, float] = {}
        self.slow: dict[int, float] = {}
        self.ahead: dict[int, float] = {}
        self.stats: Counter[str] = Counter()
        self.checks = Checks(self)
        self._jobs = Jobs(self)
        self._ordered = self._sent = 0
        self._near: dict[Any, set[int]] = {}
        for index in range(self.count):
            self.boot(index)
        self.kind = self._prepare_faults(kind, calm=calm)

    def founders(self, kind: str) -> tuple[int, ...]:
        """How many founders there may be, in a schedule of this kind."""
        return faults.FOUNDERS.get(kind, (1, 2, 2, 3, 3, 4, 5, 6))

    def _prepare_faults(self, kind: str, *, calm: bool) -> str:
        if calm:
            self.links = Links(0, 0, 0, self.links.delay_s)
            return "quiet"
        kind = kind or self.rng.choice(faults.KINDS)
        if kind == "late":
            self.links = replace(self.links, duplicates=0.5, late=0.1, latest_s=60.0)
        if self.rng.random() < 0.2:
            self.slow[self.rng.randrange(self.count)] = 4.0
        for when, fault in faults.plan(self.rng, kind, self.count):
            self.at(when, "fault", fault)
        return kind

    def at(self, when: float, *event: Any) -> None:
        self._ordered += 1
        heapq.heappush(self.queue, (when, self._ordered, event))

    # -- peers

    def boot(self, index: int) -> None:
        first = index not in self.disks
        disk = self.disks.setdefault(index, Disk())
        peer = SimPeer(
            index,
            disk,
            self.genesis,
            open_rounds=self.open_rounds,
            fragments=self.fragments,
            carried=self.carried,
            now=self.now + self.ahead.get(index, 0.0),
        )
        self.peers[index] = peer
        self.checks.booted(peer, first=first)
        self.at(self.now + self.rng.random(), "tick", peer)

    def kill(self, index: int) -> None:
        if self.peers.pop(index, None) is not None:
            self.doomed.pop(index, None)
            self.stats["kills"] += 1

    def reachable(self, a: int, b: int) -> bool:
        """Members forward for each other: reachable while any path of live peers connects them."""
        if not self.blocked:
            return True
        if not self.shape.forwards:
            return (min(a, b), max(a, b)) not in self.blocked
        place = (a, tuple(self.peers), self.blocked)
        if place not in self._near:
            seen, todo = {a}, [a]
            for x in todo:
                near = [y for y in self.peers if (min(x, y), max(x, y)) not in self.blocked]
                todo += [y for y in near if y not in seen]
                seen.update(near)
            self._near[place] = seen
        return b in self._near[place]

    def time_of(self, peer: SimPeer) -> float:
        """What a peer's clock shows."""
        return self.now + self.ahead.get(peer.index, 0.0)

    # -- carrying out actions

    def carry(self, peer: SimPeer, todo: Sequence[act.Action]) -> None:
        doomed, tag = peer.index in self.doomed, self.doomed.get(peer.index)
        for action in todo:
            if self.peers.get(peer.index) is not peer:
                return
            if isinstance(action, act.Send):
                self._send(peer, action.message, action.to)
            else:
                self._jobs.begin(peer, action)
            hit = doomed and tag in {None, type(action).__name__}
            if hit and self.rng.random() < 0.5:
                self.kill(peer.index)
                return

    def _send(self, peer: SimPeer, message: Message, to: PeerId | None) -> None:
        rng, links = self.rng, self.links
        self._sent += 1
        self.checks.sent(peer, message)
        if self._sent % _CODED_EVERY == 0:  # not each: half of the time would go there
            message = decode(RUN, encode(RUN, message))
        for other in list(self.peers.values()):
            if other is peer or (to is not None and other.name != to):
                continue
            if not self.reachable(peer.index, other.index):
                continue
            for _ in range(1 + (rng.random() < links.duplicates)):
                if rng.random() >= links.loss:
                    delay = rng.uniform(0.01, links.delay_s)
                    delay += rng.uniform(0, links.latest_s) if rng.random() < links.late else 0
                    self.at(self.now + delay, "message", other.index, peer.name, message)

    # -- time

    def run(self) -> Counter[str]:
        """Runs the schedule to its end and checks it.

        Raises:
            Broken: a promise did not hold.
        """
        mark: dict[int, int] | None = None
        end = self.shape.quiet_at + SETTLING_S
        while self.queue and self.now < end:
            self.step()
            if mark is None and self.now > end - _MARK_S:
                mark = {i: p.chain.number for i, p in self.peers.items()}
        self.checks.final(mark or {})
        return self.stats

    def step(self) -> None:
        """Lets the next event happen."""
        self.now, _, (kind, *rest) = heapq.heappop(self.queue)
        getattr(self, f"_on_{kind}")(*rest)

    def _on_fault(self, fault: faults.Fault) -> None:
        faults.strike(self, fault)

    def _on_later(self, peer: SimPeer, call: Any, *args: Any) -> None:
        if self.peers.get(peer.index) is peer:
            call(*args)

    def _on_message(self, index: int, sender: PeerId, message: Message) -> None:
        peer = self.peers.get(index)
        if self.frozen.get(index, 0) > self.now:
            if self.rng.random() < 0.3:
                thawed = self.frozen[index] + self.rng.random()
                self.at(thawed, "message", index, sender, message)
            return
        if peer is None:
            return
        head = peer.chain.path[-1]
        try:
            todo = peer.protocol.receive(sender, message, self.time_of(peer))
        except PeerError as error:
            self._refused(sender, error)
            return
        self.carry(peer, todo)
        if peer.chain.path[-1] != head:
            self.checks.conserved(peer)

    def _refused(self, sender: PeerId, error: PeerError) -> None:
        raise Broken(f"L  an honest message was refused: {error}") from error

    def _on_tick(self, peer: SimPeer) -> None:
        index = peer.index
        if self.peers.get(index) is not peer:
            return
        if self.frozen.get(index, 0) > self.now:
            self.at(self.frozen[index] + self.rng.random(), "tick", peer)
            return
        self._jobs.train(peer)
        self.carry(peer, peer.protocol.tick(self.time_of(peer)))
        self.checks.conserved(peer)
        self.at(self.now + self.rng.uniform(0.4, 0.6), "tick", peer)
        chain, numbers = peer.chain, range(peer.chain.number + 1, peer.chain.number + 3)
        views = [chain.head.view, *(chain.view_of(n) for n in numbers[: self.open_rounds])]
        if peer.protocol.state.members.leaving and all(peer.name not in view for view in views):
            self.gone.add(index)
            self.kill(index)
