"""Random schedules of crashes, partitions, joiners, freezes and losses over the real protocol and store.

Peers are real `RoundProtocol` and `OuterStore` objects; network, disk, trainers and time are simulated
from one seed. All values are integers, so that the ledger is checked exactly. `Broken` names the
promise that a schedule broke:

S1 agreement (one outcome per round, no equivocation), S2 equal state for equal heads,
S3 nothing lost and nothing twice, S4 one chain in the end, L liveness.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runnel.dht.identity import NullSigner
from runnel.dht.wire import unpack
from runnel.errors import PeerError
from runnel.hashing import digest
from runnel.node import actions as act
from runnel.node import storage_keys
from runnel.node.deadlines import Limits
from runnel.node.messages import Cast, Commit, Message, decode, encode
from runnel.node.outcomes import genesis_record
from runnel.node.protocol import RoundProtocol
from runnel.node.protocol_state import ProtocolSettings
from runnel.node.records import Record, RecordKind, SliceResult, row
from runnel.node.rounds import slice_bounds
from runnel.optim.store import OuterStore, Outcome, StoreParts
from runnel.types import PEER_ID_PREFIX, Digest, PeerId, short
from runnel.verification.agreement import Step

RUN = digest(b"schedules")
FRAGMENT_VALUES = 8192  # two slices for two or more members; each slice stands for one integer here
QUIET_AT, END = 120.0, 340.0
RETRY_S = 0.5


class Broken(Exception):
    """A promise of the protocol does not hold."""


class IntegerCodec:
    """Exact on disk, lossy by rounding to even, so that residuals matter."""

    name = "integer"

    def max_bytes(self, numel: int) -> int:
        return 8 * numel

    def encode(self, values: Any, residual: Any = None) -> bytes:
        sent = values // 2 * 2
        if residual is not None:
            residual[:] = values - sent
        return bytes(sent.astype("<i8").tobytes())

    def decode(self, payload: Any, out: Any) -> None:
        out[:] = np.frombuffer(payload, "<i8")

    def accumulate(self, payload: Any, scale: Any, out: Any) -> None:
        out += np.frombuffer(payload, "<i8") * int(scale)


class Sum:
    """Adds, so that what goes in comes out."""

    name = "sum"

    def coefficients(self, weights: Any, norms: Any) -> Any:
        return np.ones(len(weights), dtype=np.int64)

    def tolerates(self, num_peers: int) -> int:
        return 0


class Subtract:
    """theta <- theta - step."""

    name = "subtract"

    def step(self, parameters: Any, momentum: Any, pseudo_gradient: Any, *, final: bool) -> None:
        parameters -= pseudo_gradient


PARTS = StoreParts(
    codec=IntegerCodec(),
    result_codec=IntegerCodec(),
    aggregator=Sum(),
    optimizer=Subtract(),
    root_of=lambda parts: digest(*(np.ascontiguousarray(p).tobytes() for p in parts)),
)


def peer_name(index: int) -> PeerId:
    return PeerId(PEER_ID_PREFIX + bytes([index + 1]) * 32)


@dataclass
class Disk:
    """What survives a crash."""

    keys: dict[str, bytes] = field(default_factory=dict)
    results: dict[Digest, bytes] = field(default_factory=dict)
    losses: dict[Digest, Any] = field(default_factory=dict)
    contributions: dict[act.RoundKey, tuple[int, tuple[bytes, ...], Any]] = field(default_factory=dict)
    pending: set[act.RoundKey] = field(default_factory=set)
    in_w: dict[int, Any] = field(default_factory=dict)
    state: dict[int, tuple[Any, Any, Any]] = field(default_factory=dict)
    versions: dict[tuple[int, int], tuple[Any, Any]] = field(default_factory=dict)


class SimPeer:
    """One peer: protocol, store, and trainer's parameters `w`."""

    def __init__(self, world: World, index: int, disk: Disk) -> None:
        self.world, self.index, self.disk = world, index, disk
        self.name = peer_name(index)
        fragments = world.fragments
        zero = [np.zeros(2, dtype=np.int64) for _ in range(fragments)]
        self.store = OuterStore([z.copy() for z in zero], PARTS)
        restarted = storage_keys.HEAD in disk.keys
        for f, (theta, momentum, residual) in disk.state.items():
            self.store.load(f, theta, momentum, residual)
        for f, drift in disk.in_w.items():
            self.store.residual(f)[:] += drift
        for key in sorted(disk.pending, key=lambda k: k.number):
            f, payloads, drift = disk.contributions[key]
            self.store.recall(key, f, payloads, np.zeros_like(drift))
        if restarted:
            for f in range(fragments):
                s = self.store
                disk.state[f] = (s.parameters(f).copy(), s.momentum(f).copy(), s.residual(f).copy())
            disk.in_w.clear()
        self.w = [self.store.parameters(f).copy() for f in range(fragments)]
        saved = storage_keys.restore(disk.keys, world.genesis, open_rounds=world.open_rounds)
        settings = ProtocolSettings(
            run=RUN,
            fragment_sizes=(FRAGMENT_VALUES,) * fragments,
            max_weight_tokens=1 << 30,
            limits=Limits(floor_s=1.0, ceiling_s=4.0, stall_s=20.0),
            admits=lambda peer, ticket: ticket == b"ticket",
            ticket=b"ticket",
        )
        self.protocol = RoundProtocol(NullSigner(self.name), settings, saved, now=world.now)
        self.busy: set[act.RoundKey] = set()

    @property
    def chain(self) -> Any:
        return self.protocol.state.chain


class World:
    """One seed's network, faults and checks."""

    def __init__(self, seed: int, *, calm: bool = False) -> None:
        self.rng = rng = random.Random(seed)
        whole = rng.random() < 0.3
        self.open_rounds, self.fragments = (1, 1) if whole else (2, 4)
        self.count = rng.choice((1, 2, 2, 3, 3, 4, 5, 6))
        self.loss = rng.choice((0, 0.02, 0.1))
        self.bulk_loss = rng.choice((0, 0, 0.5, 0.9))
        self.duplicates, self.delay_s = rng.choice((0, 0.1)), rng.choice((0.05, 0.3))
        if calm:
            self.loss = self.bulk_loss = self.duplicates = 0
        self.genesis = genesis_record(tuple(peer_name(i) for i in range(self.count)), digest(b"zero"))
        self.now, self._seq, self._sent = 0.0, 0, 0
        self.queue: list[Any] = []
        self.disks: dict[int, Disk] = {}
        self.peers: dict[int, SimPeer] = {}
        self.gone: set[int] = set()
        self.doomed: dict[int, str | None] = {}
        self.blocked: frozenset[tuple[int, int]] = frozenset()
        self._near: dict[Any, set[int]] = {}
        self.frozen: dict[int, float] = {}
        self.slow: dict[int, float] = {}
        self.stats: Counter[str] = Counter()
        self.checks = Checks(self)
        for index in range(self.count):
            self.boot(index)
        self.kind = "calm" if calm else self._plan()

    def bounds(self, slices: int) -> tuple[tuple[int, int], ...]:
        return ((0, 2),) if slices == 1 else ((0, 1), (1, 2))

    def slices_of(self, view: Sequence[PeerId]) -> int:
        return len(slice_bounds(FRAGMENT_VALUES, len(view)))

    def at(self, when: float, *event: Any) -> None:
        self._seq += 1
        heapq.heappush(self.queue, (when, self._seq, event))

    # -- peers

    def boot(self, index: int) -> None:
        first = index not in self.disks
        disk = self.disks.setdefault(index, Disk())
        peer = SimPeer(self, index, disk)
        self.peers[index] = peer
        self.checks.booted(peer, first=first)
        self.at(self.now + self.rng.random(), "tick", index, peer)

    def kill(self, index: int) -> None:
        if self.peers.pop(index, None) is not None:
            self.doomed.pop(index, None)
            self.stats["kills"] += 1

    def reachable(self, a: int, b: int) -> bool:
        """Members forward for each other: reachable while any path of live peers connects them."""
        if not self.blocked:
            return True
        key = (a, frozenset(self.peers), frozenset(self.blocked))
        if key not in self._near:
            seen, todo = {a}, [a]
            while todo:
                x = todo.pop()
                for y in self.peers:
                    if y not in seen and (min(x, y), max(x, y)) not in self.blocked:
                        seen.add(y)
                        todo.append(y)
            self._near[key] = seen
        return b in self._near[key]

    # -- carrying out actions

    def carry(self, peer: SimPeer, todo: Sequence[act.Action]) -> None:
        doom = self.doomed.get(peer.index, "-")
        for action in todo:
            if self.peers.get(peer.index) is not peer:
                return
            self._one(peer, action)
            kind = type(action).__name__
            if doom != "-" and doom in (None, kind) and self.rng.random() < 0.5:
                self.kill(peer.index)
                return

    def _one(self, peer: SimPeer, action: act.Action) -> None:
        disk, rng = peer.disk, self.rng
        match action:
            case act.Store(updates=updates):
                self._write(peer, updates)
            case act.Send(message=message, to=to):
                self._send(peer, message, to)
            case act.WantHandover(key=key, urgent=urgent):
                if urgent or key not in peer.busy:
                    peer.busy.add(key)
                    wait = 0.0 if urgent else self.slow.get(peer.index, 1.0) * rng.uniform(0.3, 2)
                    self.at(self.now + wait, "handover", peer.index, peer, action)
            case act.Scatter():
                self.at(self.now + rng.uniform(0.01, self.delay_s), "slice", peer.index, peer, action)
            case act.Reduce():
                self.at(self.now, "reduce", peer.index, peer, action)
            case act.Fetch():
                self.at(self.now + rng.uniform(0.02, 2 * self.delay_s), "fetch", peer.index, peer, action)
            case act.Prepare():
                self.at(self.now, "prepare", peer.index, peer, action)
            case act.Adopt():
                self._adopt(peer, action)
            case act.Note():
                self.stats[type(action.event).__name__] += 1
        assert disk is peer.disk

    def _write(self, peer: SimPeer, updates: Any) -> None:
        self.checks.written(peer, updates)
        for key, value in updates.items():
            if value is None:
                peer.disk.keys.pop(key, None)
            else:
                peer.disk.keys[key] = value

    def _send(self, peer: SimPeer, message: Message, to: PeerId | None) -> None:
        self._sent += 1
        if self._sent % 8 == 0:  # not each: half of the time would go there
            message = decode(RUN, encode(RUN, message))
        for index in list(self.peers):
            if index == peer.index or (to is not None and peer_name(index) != to):
                continue
            if not self.reachable(peer.index, index):
                continue
            for _ in range(1 + (self.rng.random() < self.duplicates)):
                if self.rng.random() < self.loss:
                    continue
                delay = self.rng.uniform(0.01, self.delay_s)
                if self.rng.random() < 0.02:
                    delay += self.rng.uniform(0, 4)
                self.at(self.now + delay, "message", index, peer.name, message)

    def _handover(self, peer: SimPeer, action: act.WantHandover) -> None:
        f, store = action.fragment, peer.store
        bounds = self.bounds(action.num_slices)
        encoded = store.encode(action.key, f, peer.w[f].copy(), version=store.version(f), bounds=bounds)
        if encoded is None:
            return
        place = peer.protocol.state.rounds.get(action.key)
        if place is None or place.decided or peer.name in place.commits:
            store.forget(action.key)
            return
        peer.disk.contributions[action.key] = (f, encoded.payloads, encoded.drift)
        peer.disk.pending.add(action.key)
        peer.disk.in_w[f] = encoded.drift.copy()
        handover = act.Handover(
            action.key, digest(*encoded.payloads), encoded.norms, 1, 1, 0.0, 8, {}
        )
        self.checks.handed(peer, f)
        self.carry(peer, peer.protocol.handed_over(handover, 0, self.now))

    def _slice(self, peer: SimPeer, action: act.Scatter) -> None:
        target = next((p for p in self.peers.values() if p.name == action.to), None)
        lost = self.rng.random() < self.bulk_loss
        known = target and target.protocol.state.rounds.get(action.key)
        if target is None or lost or not known or known.commitment(action.commitment) is None:
            self._later(peer.protocol.scatter_failed, action.key, action.slice_index, action.to)
            return
        if not self.reachable(peer.index, target.index):
            self._later(peer.protocol.scatter_failed, action.key, action.slice_index, action.to)
            return
        done = target.protocol.slice_arrived(action.key, action.slice_index, action.commitment, self.now)
        self.carry(target, done)

    def _reduce(self, peer: SimPeer, action: act.Reduce) -> None:
        payloads = []
        for sender in action.senders:
            source = next(d for i, d in self.disks.items() if peer_name(i) == sender.peer)
            payloads.append(source.contributions[action.key][1][action.slice_index])
        place = peer.protocol.state.rounds.get(action.key)
        if place is None:
            return
        low, high = self.bounds(len(place.slices))[action.slice_index]
        names = [c.peer for c in action.senders]
        ones = np.ones(len(payloads), dtype=np.int64)
        own = names.index(peer.name) if peer.name in names else -1
        reduced = peer.store.reduce(payloads, ones, ones, numel=high - low, own=own)
        salt = self.rng.getrandbits(30).to_bytes(4, "big")
        root = digest(reduced.payload, peer.name, salt, repr(action.key).encode())
        peer.disk.results[root], peer.disk.losses[root] = reduced.payload, reduced.loss
        self.checks.reduced(root, action, reduced)
        result = SliceResult(root, peer.name, action.included)
        self.carry(peer, peer.protocol.reduced(action.key, action.slice_index, result, 8, self.now))

    def _fetch(self, peer: SimPeer, action: act.Fetch) -> None:
        if self.rng.random() >= self.bulk_loss:
            for other in self.peers.values():
                held = action.root in other.disk.results
                if held and other is not peer and self.reachable(peer.index, other.index):
                    peer.disk.results[action.root] = other.disk.results[action.root]
                    self.carry(peer, peer.protocol.result_held(action.root, self.now))
                    return
        self._later(peer.protocol.fetch_failed, action.root)

    def _later(self, call: Any, *args: Any) -> None:
        """A transfer failed: its driver says so after a pause."""
        self.at(self.now + RETRY_S, "later", 0, call, *args)

    def _prepare(self, peer: SimPeer, action: act.Prepare) -> None:
        place = peer.protocol.state.rounds.get(action.key)
        if place is None:
            return
        payloads = [peer.disk.results[piece.root] for piece in action.slices]
        bounds = self.bounds(len(action.slices))
        root = peer.store.prepare(
            action.slices, place.fragment, bounds, payloads, final=action.final
        )
        self.carry(peer, peer.protocol.prepared(action.key, action.slices, root, self.now))

    def _adopt(self, peer: SimPeer, action: act.Adopt) -> None:
        old_head = peer.disk.keys.get(storage_keys.HEAD)
        for record in action.fork.given_up:
            self._give_up(peer, record)
        for record in action.fork.adopted:
            self._take_up(peer, record)
        self._write(peer, action.updates)
        for key in list(peer.disk.pending):
            if key.number <= peer.chain.number or key.base not in peer.chain.path:
                peer.disk.pending.discard(key)
                peer.store.forget(key)
        self._save(peer)
        self.checks.moved(peer, old_head)
        if action.fork.given_up:
            self.stats["forks healed"] += 1

    def _save(self, peer: SimPeer) -> None:
        for f in range(self.fragments):
            s = peer.store
            peer.disk.state[f] = (s.parameters(f).copy(), s.momentum(f).copy(), s.residual(f).copy())

    def _outcome(self, peer: SimPeer, record: Record) -> Outcome:
        chain = peer.chain
        path = chain.lineage(record.parent)
        key = act.RoundKey(record.number, chain.base_of(record.number, path))
        share = record.share_of(peer.name)
        contribution = peer.disk.contributions.get(key)
        return Outcome(
            key,
            record.number % self.fragments,
            self.bounds(len(record.slices)),
            contribution[1] if contribution else (),
            tuple(share in piece.included for piece in record.slices),
            tuple(
                peer.disk.losses[piece.root] if piece.reducer == peer.name else None for piece in record.slices
            ),
            final=False,
        )

    def _take_up(self, peer: SimPeer, record: Record) -> None:
        f = record.number % self.fragments
        if record.kind is RecordKind.ROUND:
            outcome = self._outcome(peer, record)
            payloads = [peer.disk.results[piece.root] for piece in record.slices]
            root = peer.store.prepare(record.slices, f, outcome.bounds, payloads, final=False)
            if root != record.state_root:
                raise Broken("S2 state differs from the record's root")
            handed = peer.store.handed(outcome.key)
            if handed is not None and handed.snapshot is not None:
                for (low, high), included in zip(outcome.bounds, outcome.included, strict=True):
                    peer.disk.in_w[f][low:high] *= not included
            merge = peer.store.adopt(record.slices, outcome)
            peer.w[f] += merge.delta
            self.stats["records"] += 1
        elif record.kind is RecordKind.ABORT:
            self.stats["aborts"] += 1
        else:
            self.stats["branches"] += 1
        s = peer.store
        peer.disk.versions[(record.number, f)] = (s.parameters(f).copy(), s.momentum(f).copy())

    def _give_up(self, peer: SimPeer, record: Record) -> None:
        if record.kind is not RecordKind.ROUND:
            return
        f = record.number % self.fragments
        outcome = self._outcome(peer, record)
        payloads = [peer.disk.results[piece.root] for piece in record.slices]
        step = np.concatenate([np.frombuffer(p, "<i8") for p in payloads])
        merge = peer.store.give_up(outcome, peer.store.parameters(f) + step, peer.store.momentum(f))
        peer.w[f] += merge.delta
        self.stats["records given up"] += 1

    # -- faults

    def _plan(self) -> str:
        rng = self.rng
        kinds = ("calm", "crash", "crash", "cut", "cut", "both", "both", "minority", "blackout", "freeze")
        kind = rng.choice(kinds)
        tags = ("Store", "Send", "Scatter", "Reduce", "Adopt", "Prepare", "Fetch", None)
        if rng.random() < 0.2:
            self.slow[rng.randrange(self.count)] = 4.0
        if kind in ("crash", "both", "minority"):
            for _ in range(rng.randint(1, 6)):
                when, index = rng.uniform(3, QUIET_AT - 30), rng.randrange(self.count + 2)
                self.at(when, "doom", index, rng.choice(tags))
                back = rng.choice((when + rng.uniform(0.1, 5), rng.uniform(when, QUIET_AT)))
                self.at(back, "restart", index)
        if kind == "blackout":
            when = rng.uniform(10, QUIET_AT - 60)
            for index in range(self.count + 3):
                self.at(when + rng.uniform(0, 1), "doom", index, rng.choice(tags))
                self.at(when + rng.choice((2, 30, 90)) + rng.random(), "restart", index)
        if kind == "freeze":
            for _ in range(rng.randint(1, 3)):
                index, when = rng.randrange(self.count), rng.uniform(3, QUIET_AT - 40)
                self.at(when, "freeze", index, when + rng.choice((8, 30, 60)))
        if kind in ("cut", "both"):
            for _ in range(rng.randint(1, 3)):
                when = rng.uniform(3, QUIET_AT - 10)
                self.at(when, "cut", 0)
                self.at(rng.uniform(when, QUIET_AT), "heal", 0)
        dead = rng.randint(0, (self.count - 1) // 2)
        if kind == "minority":
            dead = rng.randint(dead, self.count - 1)
        for index in rng.sample(range(self.count), dead):
            self.at(rng.uniform(3, QUIET_AT), "dead", index, rng.choice(tags))
        for extra in range(rng.choice((0, 0, 1, 2, 3))):
            index, when = self.count + extra, rng.uniform(3, QUIET_AT)
            self.at(when, "join", index)
            if rng.random() < 0.4:
                self.at(when + rng.uniform(2, 30), "dead", index, rng.choice(tags))
        if rng.random() < 0.3:
            self.at(rng.uniform(20, QUIET_AT), "leave", rng.randrange(self.count))
        self.at(QUIET_AT, "quiet", 0)
        return kind

    def _fault(self, kind: str, index: int, extra: Any) -> None:
        rng = self.rng
        if kind == "doom" and index in self.peers:
            self.doomed[index] = extra
        elif kind == "freeze":
            self.frozen[index] = extra
        elif kind == "dead":
            self.gone.add(index)
            if index in self.peers:
                self.doomed[index] = extra
        elif kind == "restart":
            back = index in self.disks and index not in self.gone
            if back and (index not in self.peers or index in self.doomed):
                self.kill(index)
                self.boot(index)
        elif kind == "join" and index not in self.gone and index not in self.disks:
            self.boot(index)
        elif kind == "leave" and index in self.peers:
            self.peers[index].protocol.state.members.leaving = True
        elif kind == "cut":
            names = list(self.disks)
            pairs = [(a, b) for a in names for b in names if a < b]
            if rng.random() < 0.6:
                side = {a: rng.randint(0, rng.choice((1, 1, 2))) for a in names}
                self.blocked = frozenset((a, b) for a, b in pairs if side[a] != side[b])
            else:
                self.blocked = frozenset(pair for pair in pairs if rng.random() < 0.5)
        elif kind == "heal":
            self.blocked = frozenset()
        elif kind == "quiet":
            self._calm_down()

    def _calm_down(self) -> None:
        self.blocked = frozenset()
        self.loss, self.bulk_loss = min(self.loss, 0.02), 0
        for index in list(self.doomed):
            self.kill(index)
        for index in list(self.disks):
            if index not in self.peers and index not in self.gone:
                self.boot(index)

    # -- time

    def run(self) -> Counter[str]:
        """Runs the schedule and checks it; raises Broken with the first broken promise."""
        mark: dict[int, int] | None = None
        while self.queue and self.now < END:
            self.now, _, event = heapq.heappop(self.queue)
            self._event(*event)
            if mark is None and self.now > END - 80:
                mark = {i: p.chain.number for i, p in self.peers.items()}
        self.checks.final(mark or {})
        return self.stats

    def _event(self, kind: str, index: int, *rest: Any) -> None:
        if kind in ("message", "tick") and self.frozen.get(index, 0) > self.now:
            if kind == "tick" or self.rng.random() < 0.3:
                self.at(self.frozen[index] + self.rng.random(), kind, index, *rest)
            return
        if kind == "message":
            self._message(index, *rest)
        elif kind == "later":
            rest[0](*rest[1:])
        elif kind == "tick":
            self._tick(index, rest[0])
        elif kind in ("handover", "slice", "reduce", "fetch", "prepare"):
            peer, action = rest
            if self.peers.get(index) is peer:
                getattr(self, f"_{kind}")(peer, action)
                if kind == "handover":
                    self.checks.conserved(peer)
        else:
            self._fault(kind, index, rest[0] if rest else None)

    def _message(self, index: int, sender: PeerId, message: Message) -> None:
        peer = self.peers.get(index)
        if peer is None:
            return
        head = peer.chain.path[-1]
        try:
            todo = peer.protocol.receive(sender, message, self.now)
        except PeerError as error:
            raise Broken(f"L  an honest message was refused: {error}") from error
        self.carry(peer, todo)
        if peer.chain.path[-1] != head:
            self.checks.conserved(peer)

    def _tick(self, index: int, peer: SimPeer) -> None:
        if self.peers.get(index) is not peer:
            return
        for f in range(self.fragments):
            learned = np.array([self.rng.randint(-9, 9) for _ in range(2)])
            peer.w[f] -= learned
            self.checks.learned(peer, f, learned)
        self.carry(peer, peer.protocol.tick(self.now))
        self.checks.conserved(peer)
        self.at(self.now + self.rng.uniform(0.4, 0.6), "tick", index, peer)
        state = peer.protocol.state
        numbers = range(state.chain.number + 1, state.chain.number + 1 + self.open_rounds)
        out = peer.name not in state.chain.head.view
        if state.members.leaving and out and all(peer.name not in state.chain.view_of(n) for n in numbers):
            self.gone.add(index)
            self.kill(index)


class Checks:
    """What must hold, from the records alone and from what peers wrote to disk."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.votes: dict[Any, bytes] = {}
        self.sets: dict[str, Any] = {}
        self.outcomes: dict[tuple[int, Digest], Digest] = {}
        self.values: dict[Digest, Any] = {}
        self.losses: dict[Digest, Any] = {}
        self.trained: dict[int, Any] = {}
        self.lost: dict[int, Any] = {}
        self.unsent: dict[int, Any] = {}
        self.records: dict[Digest, Record] = {}
        self.owed: dict[tuple[Digest, PeerId], Any] = {}
        self.known: dict[tuple[act.RoundKey, PeerId, int], Any] = {}

    def zero(self) -> Any:
        return np.zeros((self.world.fragments, 2), dtype=np.int64)

    def booted(self, peer: SimPeer, *, first: bool) -> None:
        if first:
            self.trained[peer.index], self.lost[peer.index] = self.zero(), self.zero()
        else:
            left = self.trained[peer.index] - self.lost[peer.index] - self._taken(peer)
            gap = left - np.array([peer.store.residual(f) for f in range(self.world.fragments)])
            if not np.array_equal(gap, self.unsent[peer.index]):
                raise Broken("S3 a restart loses something else than unsent steps")
            self.lost[peer.index] = self.lost[peer.index] + gap
        self.unsent[peer.index] = self.zero()

    def learned(self, peer: SimPeer, fragment: int, step: Any) -> None:
        self.trained[peer.index][fragment] += step
        self.unsent[peer.index][fragment] += step

    def handed(self, peer: SimPeer, fragment: int) -> None:
        self.unsent[peer.index][fragment] = 0

    def written(self, peer: SimPeer, updates: Any) -> None:
        for key, value in updates.items():
            if key.startswith("vote/") and value is not None:
                if self.votes.setdefault((peer.index, key), value) != value:
                    raise Broken("S1 equivocation")
            elif key.startswith("set/") and value is not None:
                decided = unpack(value, max_bytes=1 << 20)[0]  # beside it: one of several proofs
                if self.sets.setdefault(key, decided) != decided:
                    raise Broken("S1 two sets for one round")

    def reduced(self, root: Digest, action: act.Reduce, reduced: Any) -> None:
        self.values[root], self.losses[root] = np.frombuffer(reduced.payload, "<i8"), reduced.loss

    def moved(self, peer: SimPeer, old_head: bytes | None) -> None:
        for name in peer.chain.path[-3:]:
            record = peer.chain.record(name)
            self.records[name] = record
            certificate = peer.chain.certificate(name)
            if certificate is not None and certificate.votes[0].step is Step.PRECOMMIT:
                place = (record.number, record.parent)
                if self.outcomes.setdefault(place, name) != name:
                    raise Broken("S1 two outcomes of one round")

    def conserved(self, peer: SimPeer) -> None:
        if self.world.peers.get(peer.index) is not peer:
            return
        owed = np.array(
            [
                peer.store.residual(f) + peer.store.parameters(f) - peer.w[f]
                for f in range(self.world.fragments)
            ]
        )
        if not np.array_equal(self.trained[peer.index] - self.lost[peer.index], self._taken(peer) + owed):
            raise Broken("S3 something was lost or counted twice")

    def _taken(self, peer: SimPeer) -> Any:
        """What the records of the peer's path took from it, from the records alone."""
        return self._taken_at(peer, peer.chain.path[-1])

    def _taken_at(self, peer: SimPeer, head: Digest) -> Any:
        todo, name = [], head
        while name and (name, peer.name) not in self.owed:
            todo.append(name)
            name = peer.chain.record(name).parent
        total = self.owed[name, peer.name] if name else self.zero()
        for name in reversed(todo):
            total = total + self._taken_by(peer, peer.chain.record(name))
            self.owed[name, peer.name] = total
        return total

    def _taken_by(self, peer: SimPeer, record: Record) -> Any:
        change = self.zero()
        if record.kind is not RecordKind.ROUND:
            return change
        path = peer.chain.lineage(record.parent)
        key = act.RoundKey(record.number, peer.chain.base_of(record.number, path))
        f, bounds = record.number % self.world.fragments, self.world.bounds(len(record.slices))
        share = record.share_of(peer.name)
        for index, ((low, high), piece) in enumerate(zip(bounds, record.slices, strict=True)):
            total = np.zeros(high - low, dtype=np.int64)
            for place in piece.included:
                author = record.shares[place].peer
                disk = next(d for i, d in self.world.disks.items() if peer_name(i) == author)
                sent = np.frombuffer(disk.contributions[key][1][index], "<i8")
                total = total + sent
                if place == share:
                    change[f, low:high] += sent
            if not np.array_equal(total, self.values[piece.root] + self.losses[piece.root]):
                raise Broken("S3 a result does not add up")
            if piece.reducer == peer.name:
                change[f, low:high] -= self.losses[piece.root]
        return change

    def final(self, mark: dict[int, int]) -> None:
        world = self.world
        peers = list(world.peers.values())
        if not peers or all(p.chain.number < 0 and p.index >= world.count for p in peers):
            return
        best = max(peers, key=lambda p: len(p.chain.path))
        for peer in peers:
            meet = min(len(peer.chain.path), len(best.chain.path))
            if peer.chain.path[: meet - 3] != best.chain.path[: meet - 3]:
                raise Broken("S4 not on one chain")
            if len(peer.chain.path) < len(best.chain.path) - 4:
                raise Broken("S4 a peer is left behind")
            view = best.chain.head.view
            if not peer.protocol.state.members.leaving and peer.name not in view:
                raise Broken("L  a live peer is not in the view")
            if peer.chain.number - mark.get(peer.index, 0) < 3:
                raise Broken("L  no progress")
        recent = [best.chain.record(name) for name in best.chain.path[-8:]]
        if not any(record.kind is RecordKind.ROUND for record in recent):
            raise Broken("L  only aborts")
        if {short(p) for p in best.chain.head.view} - {short(p.name) for p in peers}:
            raise Broken("L  a dead member stays in the view")
        world.stats["rounds"] += best.chain.number


def run_seed(seed: int, *, calm: bool = False) -> Counter[str]:
    """Runs one seeded schedule; raises Broken, with the seed in the message, if a promise is broken."""
    try:
        return World(seed, calm=calm).run()
    except Broken as error:
        raise Broken(f"seed {seed}: {error}") from error


__all__ = ["Broken", "Cast", "Commit", "World", "row", "run_seed"]
