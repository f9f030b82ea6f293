"""What a driver, a vault and a trainer do for the protocol, in a world of integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.hashing import digest
from runnel.node import actions as act
from runnel.node.following import records_after
from runnel.node.records import Record, RecordKind, SliceResult
from runnel.optim.store import Outcome
from tests.support.checks import Broken
from tests.support.integers import drift_of
from tests.support.sim_peer import VALUES, SimPeer, bounds_of, peer_name

if TYPE_CHECKING:
    from tests.support.world import World

RETRY_S = 0.5


class Jobs:
    """Carries out the actions of a world's peers, all but sending; most of them take some time."""

    def __init__(self, world: World) -> None:
        self.world = world

    def begin(self, peer: SimPeer, action: act.Action) -> None:
        match action:
            case act.Store(updates=updates):
                self._write(peer, updates)
            case act.WantHandover(key=key, urgent=urgent):
                if urgent or key not in peer.busy:
                    peer.busy.add(key)
                    wait = 0.0 if urgent else self._training_s(peer)
                    self._after(wait, self._hand_over, peer, action)
            case act.Scatter():
                self._after(self._transfer_s(), self._deliver, peer, action)
            case act.Reduce():
                self._after(0, self._reduce, peer, action)
            case act.Fetch():
                self._after(2 * self._transfer_s(), self._fetch, peer, action)
            case act.Prepare():
                self._after(0, self._prepare, peer, action)
            case act.Adopt():
                self._adopt(peer, action)
            case act.Recall(locator=locator, to=to):
                told = records_after(peer.chain, locator)
                self.world.carry(peer, [act.Send(told, to=to)])
            case act.Note():
                self.world.stats[type(action.event).__name__] += 1

    def train(self, peer: SimPeer) -> None:
        for fragment in range(self.world.fragments):
            learned = np.array([self.world.rng.randint(-9, 9) for _ in range(VALUES)])
            peer.w[fragment] -= learned
            self.world.checks.learned(peer, fragment, learned)

    def _after(self, wait: float, call: Any, peer: SimPeer, *args: Any) -> None:
        self.world.at(self.world.now + wait, "later", peer, call, peer, *args)

    def _training_s(self, peer: SimPeer) -> float:
        """Rounds take longer once nothing happens any more, so that a schedule does not."""
        calm = 4.0 if self.world.now > self.world.shape.quiet_at + 40 else self.world.shape.pace
        return calm * self.world.slow.get(peer.index, 1.0) * self.world.rng.uniform(0.3, 2)

    def _transfer_s(self) -> float:
        return self.world.rng.uniform(0.01, self.world.links.delay_s)

    def _write(self, peer: SimPeer, updates: Mapping[str, bytes | None]) -> None:
        self.world.checks.written(peer, updates)
        for key, value in updates.items():
            if value is None:
                peer.disk.keys.pop(key, None)
            else:
                peer.disk.keys[key] = value

    # -- contributions and results

    def _hand_over(self, peer: SimPeer, action: act.WantHandover) -> None:
        fragment, store, world = action.fragment, peer.store, self.world
        place = peer.protocol.state.rounds.get(action.key)
        if place is None or place.decided or peer.name in place.commits:
            return
        unsent: list[Any] = []
        encoded = store.encode(
            action.key,
            fragment,
            peer.w[fragment].copy(),
            version=store.version(fragment),
            bounds=bounds_of(action.num_slices),
            keep=lambda part: unsent.append(part.copy()),
        )
        if encoded is None:
            return
        peer.disk.payloads[action.key] = encoded.payloads
        peer.disk.pending.add(action.key)
        peer.disk.in_w[fragment] = drift_of(encoded, unsent)
        world.checks.handed(peer, fragment)
        root = digest(*encoded.payloads)
        carried = bytes(encoded.payloads[0]) if world.carried else b""
        handover = act.Handover(
            action.key, root, encoded.norms, peer.index + 1, 1, 0.0, 8, {}, carried
        )
        world.carry(peer, peer.protocol.handed_over(handover, 0, world.time_of(peer)))
        world.checks.conserved(peer)

    def _deliver(self, peer: SimPeer, action: act.Scatter) -> None:
        world = self.world
        target = next((p for p in world.peers.values() if p.name == action.to), None)
        lost = world.rng.random() < world.links.bulk_loss
        place = target.protocol.state.rounds.get(action.key) if target else None
        known = place is not None and place.commitment(action.commitment) is not None
        if lost or target is None or not known or not world.reachable(peer.index, target.index):
            failed = (action.key, action.slice_index, action.to)
            world.at(world.now + RETRY_S, "later", peer, peer.protocol.scatter_failed, *failed)
            return
        arrived = (action.key, action.slice_index, action.commitment)
        world.carry(target, target.protocol.slice_arrived(*arrived, world.time_of(target)))

    def _reduce(self, peer: SimPeer, action: act.Reduce) -> None:
        world, index = self.world, action.slice_index
        disks = {peer_name(i): disk for i, disk in world.disks.items()}
        payloads = [c.carried or disks[c.peer].payloads[action.key][index] for c in action.senders]
        place = peer.protocol.state.rounds.get(action.key)
        if place is None:
            return
        low, high = bounds_of(len(place.slices))[index]
        names = [c.peer for c in action.senders]
        mine = action.reducer == peer.name in names
        own = names.index(peer.name) if mine else -1
        ones = np.ones(len(payloads), dtype=np.int64)
        reduced = peer.store.reduce(payloads, ones, ones, numel=high - low, own=own)
        salt = world.rng.getrandbits(30).to_bytes(4, "big")
        salt = b"" if world.carried else salt  # everybody makes the same one
        root = digest(reduced.payload, action.reducer, salt, repr(action.key).encode())
        peer.disk.results[root], peer.disk.losses[root] = reduced.payload, reduced.loss
        world.checks.reduced(root, reduced)
        result = SliceResult(root, action.reducer, action.included)
        world.carry(peer, peer.protocol.reduced(action, result, 8, world.time_of(peer)))

    def _fetch(self, peer: SimPeer, action: act.Fetch) -> None:
        world = self.world
        if world.rng.random() >= world.links.bulk_loss:
            for other in world.peers.values():
                held = action.root in other.disk.results and other is not peer
                if held and world.reachable(peer.index, other.index):
                    peer.disk.results[action.root] = other.disk.results[action.root]
                    world.carry(peer, peer.protocol.result_held(action.root, world.time_of(peer)))
                    world.checks.conserved(peer)
                    return
        failed = peer.protocol.fetch_failed
        world.at(world.now + RETRY_S, "later", peer, failed, action.root)

    def _prepare(self, peer: SimPeer, action: act.Prepare) -> None:
        place = peer.protocol.state.rounds.get(action.key)
        if place is None:
            return
        payloads = [peer.disk.results[piece.root] for piece in action.slices]
        bounds = bounds_of(len(action.slices))
        root = peer.store.prepare(action.slices, place.fragment, bounds, payloads, final=False)
        now = self.world.time_of(peer)
        self.world.carry(peer, peer.protocol.prepared(action.key, action.slices, root, now))
        self.world.checks.conserved(peer)

    # -- the chain's steps

    def _adopt(self, peer: SimPeer, action: act.Adopt) -> None:
        disk, stats = peer.disk, self.world.stats
        for record in action.fork.given_up:
            self._give_up(peer, record)
        for record in action.fork.adopted:
            self._take_up(peer, record)
        for block in action.blocks:
            disk.blobs[block.blob] = block.content()
            peer.chain.archive.written(block)
        self._write(peer, action.updates)
        for key in list(disk.pending):
            if key.number <= len(action.path) - 2 or key.base not in action.path:
                disk.pending.discard(key)
                peer.store.forget(key)
        disk.save(peer.store)
        self.world.checks.moved(peer, action.path)
        stats["forks healed"] += bool(action.fork.given_up)

    def _outcome(self, peer: SimPeer, record: Record) -> Outcome:
        path = peer.chain.lineage(record.parent)
        key = act.RoundKey(record.number, peer.chain.base_of(record.number, path))
        share, losses = record.share_of(peer.name), peer.disk.losses
        return Outcome(
            key,
            record.number % self.world.fragments,
            bounds_of(len(record.slices)),
            peer.disk.payloads.get(key, ()),
            tuple(share in piece.included for piece in record.slices),
            tuple(losses.get(p.root) if p.reducer == peer.name else None for p in record.slices),
            final=False,
        )

    def _take_up(self, peer: SimPeer, record: Record) -> None:
        self.world.stats[record.kind.name.lower()] += 1
        if record.kind is not RecordKind.ROUND:
            return
        fragment, disk = record.number % self.world.fragments, peer.disk
        outcome = self._outcome(peer, record)
        payloads = [disk.results[piece.root] for piece in record.slices]
        bounds, slices = outcome.bounds, record.slices
        root = peer.store.prepare(slices, fragment, bounds, payloads, final=False)
        if root != record.state_root:
            raise Broken("S2 state differs from the record's root")
        handed = peer.store.handed(outcome.key)
        if handed is not None and handed.snapshot is not None:
            for (low, high), included in zip(bounds, outcome.included, strict=True):
                disk.in_w[fragment][low:high] *= not included
        peer.w[fragment] += peer.store.adopt(slices, outcome).delta

    def _give_up(self, peer: SimPeer, record: Record) -> None:
        if record.kind is not RecordKind.ROUND:
            return
        fragment, store = record.number % self.world.fragments, peer.store
        outcome = self._outcome(peer, record)
        payloads = [peer.disk.results[piece.root] for piece in record.slices]
        step = np.concatenate([np.frombuffer(payload, "<i8") for payload in payloads])
        before = store.parameters(fragment) + step
        peer.w[fragment] += store.leap(
            fragment, before, store.momentum(fragment), [], lost=[outcome]
        ).delta
        self.world.stats["given up"] += 1
