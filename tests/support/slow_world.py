"""A calm world whose trainers count steps as real ones do, and in which everything takes a set time.

Nothing fails here: whatever the protocol gives up, removes or branches off is its own mistake.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from random import Random
from typing import Any

from runnel.hashing import digest
from runnel.node import actions as act
from runnel.node.actions import RoundKey, WantHandover
from runnel.node.outcomes import genesis_record
from runnel.node.records import Record, RecordKind
from tests.support.checks import Checks
from tests.support.faults import Shape
from tests.support.jobs import Jobs
from tests.support.sim_peer import SimPeer, peer_name
from tests.support.world import Links, World

_SHARE_STEPS = 10


class SlowJobs(Jobs):
    """Requests wait for the trainer's steps; transfers and arithmetic take the world's times."""

    def __init__(self, world: SlowWorld) -> None:
        super().__init__(world)
        self._slow = world

    def begin(self, peer: SimPeer, action: act.Action) -> None:
        wants = self._slow.wants.setdefault(peer.index, {})
        if isinstance(action, WantHandover):
            if action.key not in wants or action.urgent:
                wants[action.key] = action
            return
        super().begin(peer, action)
        if isinstance(action, act.Adopt):
            rounds = peer.protocol.state.rounds
            self._slow.wants[peer.index] = {k: w for k, w in wants.items() if k in rounds}

    def hand_over(self, peer: SimPeer, want: WantHandover) -> None:
        self._hand_over(peer, want)

    def _transfer_s(self) -> float:
        return self._slow.transfer_s

    def _after(self, wait_s: float, call: Any, peer: SimPeer, *args: Any) -> None:
        arithmetic = call.__name__ in {"_reduce", "_prepare"}
        super()._after(self._slow.work_s if arithmetic else wait_s, call, peer, *args)


class SlowWorld(World):
    """Peers whose shares of a round, transfers and arithmetic take these times; those in `idle` never step.

    Shares of those in `slow` take so many times as long.
    """

    def __init__(
        self,
        count: int,
        *,
        share_s: float,
        transfer_s: float = 0.1,
        work_s: float = 0.05,
        idle: Collection[int] = (),
        open_rounds: int = 2,
    ) -> None:
        self.share_s, self.transfer_s, self.work_s = share_s, transfer_s, work_s
        self.idle = set(idle)
        self.wants: dict[int, dict[RoundKey, WantHandover]] = {}
        self.steps: Counter[int] = Counter()
        self.rng = Random(1)
        self.open_rounds, self.fragments, self.count = open_rounds, 4, count
        self.carried = False
        self.links = Links(0, 0, 0, 0.05)
        self.genesis = genesis_record(tuple(map(peer_name, range(count))), digest(b"zero"))
        self.now, self.queue = 0.0, []
        self.disks, self.peers = {}, {}
        self.gone, self.doomed, self.blocked = set(), {}, frozenset()
        self.frozen, self.slow, self.ahead, self.stats = {}, {}, {}, Counter()
        self.shape = Shape()
        self.checks = Checks(self)
        self._jobs = self._slow_jobs = SlowJobs(self)
        self._ordered = self._sent = 0
        self._near = {}
        self.kind = "slow"
        for index in range(count):
            self.boot(index)

    def boot(self, index: int) -> None:
        """Starts a peer and its trainer."""
        super().boot(index)
        self.at(self.now + self.rng.random(), "step", self.peers[index])

    def run_until(self, end_s: float) -> SlowWorld:
        """Everything up to a time."""
        while self.queue and self.queue[0][0] < end_s:
            self.step()
        self.now = end_s
        return self

    def path(self) -> list[Record]:
        """The longest chain's records, without genesis."""
        longest = max(self.peers.values(), key=lambda peer: len(peer.chain.path)).chain
        return [longest.record(name) for name in longest.path[1:]]

    def kinds(self) -> Counter[RecordKind]:
        """How many records of each kind there are."""
        return Counter(record.kind for record in self.path())

    def _on_step(self, peer: SimPeer) -> None:
        index = peer.index
        if self.peers.get(index) is not peer:
            return
        step_s = self.share_s / _SHARE_STEPS * self.rng.uniform(0.95, 1.05)
        step_s *= self.slow.get(index, 1.0)
        self.at(self.now + step_s, "step", peer)
        if index in self.idle:
            return
        self.steps[index] += 1
        wants = sorted(self.wants.get(index, {}).values(), key=lambda want: want.key.number)
        if wants and (any(w.urgent for w in wants) or self.steps[index] >= _SHARE_STEPS):
            self.steps[index] = 0
            del self.wants[index][wants[0].key]
            self._slow_jobs.hand_over(peer, wants[0])
