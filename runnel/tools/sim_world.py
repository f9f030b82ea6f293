"""A simulated swarm: starts peers, lets faults strike, waits until all agree, and tells what happened."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from blake3 import blake3

from runnel.dht.memory import Link
from runnel.errors import BugError, RunnelError
from runnel.node.event_lines import to_json
from runnel.node.events import Branched, Event, RoundDecided
from runnel.node.invite import Invite
from runnel.node.manifest import RunSpec
from runnel.node.place import Local, Place
from runnel.node.ticket import NONCE_BYTES
from runnel.node.wording import count_text
from runnel.tools import sim_faults as do
from runnel.tools.sim_faults import Fault, Faults
from runnel.tools.sim_peer import Ground, SimPeer, address_of, home_of, invited_place
from runnel.tools.sim_runtime import UNIX_S, Process
from runnel.tools.sim_watch import Watcher
from runnel.types import PeerId

logger = logging.getLogger(__name__)

_ARRIVE_S = 3.0
_SETTLE_S = 240.0
_STEADY_TURNS = 3
_RESTART_AGAIN_S = 5.0
_LOOK_S = 2.0
_YEAR_S = 365 * 86_400

UP_BITS_S, DOWN_BITS_S = 20e6, 100e6
_LATENCY_S = (0.005, 0.04)


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault that was carried out: which, when, and until when, in seconds of the simulation."""

    fault: Fault
    start_s: float
    end_s: float


@dataclass(slots=True)
class Course:
    """What happened.

    Attributes:
        events: of all peers with their numbers, in order.
        struck: faults that were carried out.
        problems: what should not have happened, a line each.
        lasted_s: seconds of the simulation until training stopped; `settled_s` until all agreed.
        heads: the newest record of each peer that was there at the end, and its parameters' digest.
        sent: bytes by purpose of all peers together.
        trace: digest of everything: equal for equal simulations.
    """

    events: list[tuple[int, Event]] = field(default_factory=list)
    struck: list[Struck] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lasted_s: float = 0.0
    settled_s: float = 0.0
    heads: dict[int, tuple[int, bytes, bytes]] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    trace: str = ""

    @property
    def decisions(self) -> list[tuple[float, int, str]]:
        """Rounds that a peer saw being decided: when, which, and how; in the order of times."""
        return [
            (event.unix_s - UNIX_S, event.round, event.kind)
            for _, event in self.events
            if isinstance(event, RoundDecided) and not event.missed
        ]

    @property
    def branches(self) -> list[tuple[float, int, int]]:
        """When which peer took which round for a branch, in the order of times."""
        return [
            (event.unix_s - UNIX_S, index, event.round)
            for index, event in self.events
            if isinstance(event, Branched)
        ]

    @property
    def agree(self) -> bool:
        """Whether all who were there ended with one record and the same bits."""
        return bool(self.heads) and len(set(self.heads.values())) == 1


class World:
    """Peers 0 to n - 1, of which 0 founds the run; all are members from the start."""

    def __init__(self, ground: Ground, spec: RunSpec, faults: Faults, *, loss: float = 0.0) -> None:
        self.course = Course()
        self.ids: list[PeerId] = [ground.signer(index).peer_id for index in range(ground.cells)]
        self.watcher = Watcher({peer: index for index, peer in enumerate(self.ids)})
        self.peers: dict[int, SimPeer] = {}
        self._ground, self._spec, self._faults = ground, spec, faults
        self._trace = blake3()
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._invite: Invite | None = None
        self._context = contextvars.copy_context()  # what a peer's event sets off is not the peer's
        rng = Random(f"links {ground.seed}")
        self._links = {
            peer: Link(
                latency_s=rng.uniform(*_LATENCY_S),
                up_bits_s=UP_BITS_S,
                down_bits_s=DOWN_BITS_S,
                loss=loss,
            )
            for peer in self.ids
        }
        for peer, link in self._links.items():
            ground.network.relink(peer, link)
        ground.network.killed = self._killed

    @property
    def now(self) -> float:
        """Seconds of the simulation."""
        return self._ground.loop.time()

    async def run(self, lasts_s: float, tell: Callable[[World], None]) -> Course:
        """Everything; `tell` is called once in each simulated minute, and when all agree.

        Training stops after `lasts_s`, or when the run has come to its own end.
        """
        try:
            await self.begin()
            self._plan()
            told_s = self.now
            while self.now < lasts_s and not self._is_over():
                await asyncio.sleep(min(_LOOK_S, lasts_s - self.now))
                self._look_for_failures()
                if self.now >= min(told_s + 60.0, lasts_s):
                    told_s = self.now
                    tell(self)
            self.course.lasted_s = self.now
            await self._settle()
            tell(self)
        finally:
            await self.end()
        return self.course

    def _is_over(self) -> bool:
        nodes = [peer.node for peer in self.peers.values() if peer.node]
        return bool(nodes) and all(node.mailbox.chain.is_over for node in nodes)

    def line(self) -> str:
        """How far it is, for people."""
        heads = [peer.node.mailbox.chain.number for peer in self.peers.values() if peer.node]
        return f"round {max(heads, default=-1)}, {count_text(len(heads), 'peer')}"

    # -- starting and ending

    async def begin(self) -> None:
        """Founds the run; the others are on their way then.

        Raises:
            RunnelError: it cannot.
        """
        await self._start(0)
        founder = self.peers[0].node
        if founder is None:
            raise RunnelError(f"the simulation did not begin: {'; '.join(self.course.problems)}")
        self._invite = Invite.issue(
            self._ground.owner(),
            founder.run_id,
            [address_of(self.ids[0])],
            expires_unix_s=int(UNIX_S) + _YEAR_S,
            nonce=bytes(NONCE_BYTES),
        )
        rng = Random(f"arrivals {self._ground.seed}")
        for index in range(1, len(self.ids)):
            self._later(rng.uniform(0, _ARRIVE_S), self._start(index))

    def _place(self, index: int) -> Place:
        if index or self._invite is not None:
            assert self._invite is not None  # all others come after the founder
            return invited_place(self._invite, self._ground.folder, index)
        machine = home_of(self._ground.folder, 0)
        return Local(spec=self._spec, machine=machine, members=tuple(self.ids))

    async def _start(self, index: int) -> None:
        """Starts a peer; one that finds nobody, or itself still leaving, tries again as a person would."""
        before = self.peers.get(index)
        if before is not None:
            if before.is_leaving:
                self._later(_RESTART_AGAIN_S, self._start(index))
            return
        process = Process(self._ground.loop, self._ground.turns)
        peer = self.peers[index] = SimPeer(self._ground, index, process, self.watcher)
        try:
            await peer.start(self._place(index), lambda event: self._note(index, event))
        except RunnelError as error:
            logger.info("peer %d does not get in: %s", index, error)
            if self.peers.get(index) is peer:
                await self._remove(index)
                self._later(_RESTART_AGAIN_S, self._start(index))

    async def _remove(self, index: int) -> None:
        peer = self.peers.pop(index, None)
        if peer is None:
            return
        self.watcher.end(index, self.now)
        if peer.node is not None:
            self._count(peer)
        if self._ground.network.alive(self.ids[index]):
            self._ground.network.kill(self.ids[index])
        await peer.kill()

    def _killed(self, peer: PeerId) -> None:
        """The network ended a process: at once, or after some more bytes."""
        index = self.watcher.names[peer]
        if index in self.peers:
            self._spawn(self._remove(index))

    async def end(self) -> None:
        """Ends all peers where they are."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.watcher.finish(self.now)
        for index in sorted(self.peers):
            await self._remove(index)
        for purpose in sorted(self.course.sent):
            self._trace.update(f"{purpose} {self.course.sent[purpose]}".encode())
        self.course.trace = self._trace.hexdigest()

    # -- faults

    def _plan(self) -> None:
        for fault in self._faults.all:
            if fault.second is not None:
                self._later(max(0.0, fault.second - self.now), self._strike(fault))
            elif not fault.round:
                self._spawn(self._strike(fault))

    def _after_round(self, index: int, number: int) -> None:
        for fault in self._faults.all:
            due = fault.round == number + 1 and fault.peer in {index, -1}
            if due and all(struck.fault is not fault for struck in self.course.struck):
                self._spawn(self._strike(fault))

    async def _strike(self, fault: Fault) -> None:
        begun = self.now
        lasts_s = getattr(fault.do, "lasts_s", 0.0)
        self.course.struck.append(Struck(fault, begun, begun + lasts_s))
        await self._carry_out(fault)

    async def _carry_out(self, fault: Fault) -> None:
        network, index, peer = self._ground.network, fault.peer, self.peers.get(fault.peer)
        match fault.do:
            case do.Crash(after_bytes=after):
                if peer is not None:
                    network.kill(self.ids[index], after_bytes=after)
            case do.Leave():
                if peer is not None and peer.node is not None:
                    await self._leave(index, peer)
            case do.Restart() | do.Join():
                await self._start(index)
            case do.Freeze(lasts_s=lasts_s):
                if peer is not None:
                    peer.process.freeze()
                    await asyncio.sleep(lasts_s)
                    peer.process.thaw()
            case do.Slow() | do.Lossy():
                await self._relink(index, fault.do)
            case do.Partition(peers=peers, lasts_s=lasts_s):
                network.partition([self.ids[i] for i in peers])
                await asyncio.sleep(lasts_s)
                network.heal()

    async def _relink(self, index: int, deed: do.Slow | do.Lossy) -> None:
        """Gives a peer a worse link for a while."""
        peer = self.ids[index]
        usual = self._links[peer]
        if isinstance(deed, do.Lossy):
            worse = replace(usual, loss=deed.loss)
        else:
            up, down = usual.up_bits_s / deed.factor, usual.down_bits_s / deed.factor
            worse = replace(usual, up_bits_s=up, down_bits_s=down)
        self._ground.network.relink(peer, worse)
        if deed.lasts_s != float("inf"):
            await asyncio.sleep(deed.lasts_s)
            self._ground.network.relink(peer, usual)

    async def _leave(self, index: int, peer: SimPeer) -> None:
        try:
            await peer.leave()
        except RunnelError as error:
            logger.info("peer %d left without a goodbye: %s", index, error)
        if self.peers.get(index) is peer:
            await self._remove(index)

    # -- what comes of it

    def _note(self, index: int, event: Event) -> None:
        self.course.events.append((index, event))
        self._trace.update(f"{index} {to_json(event)}\n".encode())
        if isinstance(event, RoundDecided) and not event.missed:
            self._after_round(index, event.round)

    def _count(self, peer: SimPeer) -> None:
        traffic = peer.traffic
        for purpose in traffic.purposes():
            self.course.sent[purpose] = self.course.sent.get(purpose, 0) + traffic.sent(purpose)

    def _look_for_failures(self) -> None:
        for index, peer in self.peers.items():
            if peer.failure is not None:
                line = f"peer {index} failed: {type(peer.failure).__name__}: {peer.failure}"
                if line not in self.course.problems:
                    self.course.problems.append(line)

    async def _settle(self) -> None:
        """No more training, no more faults: waits until all who are there hold the same record."""
        for task in list(self._tasks):
            task.cancel()
        self._ground.network.heal()
        for peer in self.peers.values():
            peer.process.thaw()
            peer.stop_training()
        steady, deadline = 0, self.now + _SETTLE_S
        before: set[tuple[int, bytes, bytes]] = set()
        while steady < _STEADY_TURNS and self.now < deadline:
            await asyncio.sleep(1.0)
            heads = {peer.head() for peer in self.peers.values() if peer.node is not None}
            steady = steady + 1 if len(heads) == 1 and heads == before else 0
            before = heads
        self._look_for_failures()
        self.course.settled_s = self.now
        for index, peer in sorted(self.peers.items()):
            if peer.node is not None:
                self.course.heads[index] = peer.head()
        if not self.course.agree:
            self.course.problems.append(
                f"{len(set(self.course.heads.values()))} different states among"
                f" {len(self.course.heads)} peers, {_SETTLE_S:.0f} s after training stopped"
            )

    # -- tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._ground.loop.create_task(work, context=self._context)
        self._tasks[task] = None
        task.add_done_callback(self._finished)

    def _later(self, wait_s: float, work: Coroutine[Any, Any, None]) -> None:
        async def after() -> None:
            try:
                await asyncio.sleep(wait_s)
            except asyncio.CancelledError:
                work.close()  # it never began
                raise
            await work

        self._spawn(after())

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("a part of the simulation failed", exc_info=error)
            problem = BugError(f"the simulation failed: {type(error).__name__}: {error}")
            self.course.problems.append(str(problem))
