"""One peer of a simulation: the parts of a real one, over a network in memory and without threads of its own.

Entrance, assembly, node and trainer are those of any peer. If nothing else is to be learned, it is by
rule: in each inner step a peer moves its parameters toward values of its own, and lowers its cell of a
ledger by one unit, so that everything it learned can be looked for in the end
(`runnel.tools.chaos_ledger`).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Protocol

import torch
from torch import nn

from runnel.dht.identity import Identity, NullSigner, null_peer_id, to_base58
from runnel.dht.memory import MemoryDirectory, MemoryNetwork, MemoryTransport
from runnel.dht.throttle import Throttle
from runnel.hashing import digest
from runnel.node.assembly import assemble
from runnel.node.config import MachineConfig
from runnel.node.disk import DirectoryLock
from runnel.node.durable import DurableLog
from runnel.node.entrance import Entrance, ask_manifest, known_manifest
from runnel.node.events import Event
from runnel.node.invite import Invite
from runnel.node.peer import PeerNode
from runnel.node.place import Joined, Local, Place
from runnel.node.trainer import Trainer
from runnel.optim.binding import ModelBinding
from runnel.optim.store import OuterStore, raw
from runnel.protocols import Signer, Traffic, Transport
from runnel.tools.chaos_ledger import UNIT
from runnel.tools.sim_runtime import LoopClock, Process, SimLoop, SimRuntime, Turns
from runnel.tools.sim_watch import Watcher, watched
from runnel.types import PeerId

_ASK_S = 60.0
_LEAVE_S = 20.0
_PULL = 0.05


class Pupil(nn.Module):
    """A ledger with a cell for each peer, and values without a meaning."""

    def __init__(self, cells: int, values: int) -> None:
        super().__init__()
        self.ledger = nn.Parameter(torch.zeros(cells))
        self.values = nn.Parameter(torch.zeros(values))


class Learner(Protocol):
    """What a peer trains from one start to its end; `Ground.learner` makes it."""

    @property
    def model(self) -> nn.Module:
        """Gets the run's parameters before the first step."""
        ...

    @property
    def optimizer(self) -> object:
        """Of the inner steps; None if there is none."""
        ...

    def step(self, progress: float) -> tuple[float, int]:
        """Takes an inner step at this share of the run, 0 to 1; its loss and tokens."""
        ...


class Drill:
    """Learning by rule: implements `Learner`."""

    optimizer = None

    def __init__(self, ground: Ground, index: int) -> None:
        torch.manual_seed(0)
        self.model = Pupil(ground.cells, ground.values)
        self._index = index
        self._target = torch.randn(ground.values, generator=torch.Generator().manual_seed(index))

    def step(self, progress: float) -> tuple[float, int]:
        """See `Learner.step`."""
        del progress
        with torch.no_grad():
            self.model.ledger[self._index] -= UNIT
            self.model.values.lerp_(self._target, _PULL)
        return 1.0, 1


class SimNetwork:
    """A peer's place on the network in memory; implements `runnel.dht.network.Network`."""

    def __init__(self, transport: Transport, directory: MemoryDirectory) -> None:
        self._transport, self._directory = transport, directory

    @property
    def transport(self) -> Transport:
        """See `Network.transport`."""
        return self._transport

    @property
    def directory(self) -> MemoryDirectory:
        """See `Network.directory`."""
        return self._directory

    @property
    def port(self) -> int:
        """See `Network.port`; there are none."""
        return 0

    @property
    def middle(self) -> None:
        """See `Network.middle`: everybody meets everybody here, but for the faults."""
        return

    def addresses(self) -> list[str]:
        """See `Network.addresses`."""
        return [address_of(self.transport.local_id)]

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """See `Network.learn`: here a peer's id is its address."""

    async def connect(self, address: str, *, timeout_s: float = 10.0) -> None:
        """See `Network.connect`: here everybody is connected."""

    async def aclose(self) -> None:
        """See `Network.aclose`."""
        await self.directory.aclose()
        await self.transport.aclose()


def address_of(peer: PeerId) -> str:
    """An address that invites can carry; nobody dials it."""
    return f"/ip4/127.0.0.1/tcp/4001/p2p/{to_base58(peer)}"


TransportWrap = Callable[[MemoryTransport], Transport]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """What all peers of a simulation stand on.

    Attributes:
        folder: holds a home for each.
        values: of the model, beside the ledger's `cells`.
        step_s: seconds of an inner step.
        null_signatures: whether signatures are only as long as real ones; the owner's are real.
        wrap: what goes around each transport.
        learner: makes what peer number so and so trains; by default a `Drill`.
        caps: what peers, by number, send at most, such as "500 kbit/s".
    """

    loop: SimLoop
    network: MemoryNetwork
    folder: Path
    seed: int
    cells: int
    values: int
    step_s: float
    null_signatures: bool = True
    wrap: TransportWrap | None = None
    learner: Callable[[int], Learner] | None = None
    caps: Mapping[int, str] = field(default_factory=dict)
    turns: Turns = field(default_factory=Turns)

    def signer(self, index: int) -> Signer:
        """Who peer `index` is."""
        if self.null_signatures:
            return NullSigner(null_peer_id(index))
        return Identity.from_seed(Random(f"key {self.seed} {index}").randbytes(32))

    def owner(self) -> Identity:
        """The run's owner."""
        return Identity.from_seed(Random(f"owner {self.seed}").randbytes(32))


class Ear:
    """Takes a peer's events until its process dies; implements `runnel.node.journal.EventSink`."""

    def __init__(self, process: Process, note: Callable[[Event], None]) -> None:
        self._process, self._note = process, note

    def append(self, event: Event) -> None:
        """See `EventSink.append`."""
        if not self._process.is_dead:
            self._note(event)

    def close(self) -> None:
        """See `EventSink.close`."""


class SimPeer:
    """A running peer, from its start to its end."""

    def __init__(self, ground: Ground, index: int, process: Process, watcher: Watcher) -> None:
        self.index, self.process = index, process
        self.signer = ground.signer(index)
        self._ground, self._watcher = ground, watcher
        self._runtime = SimRuntime(ground.loop, process)
        self._rng = Random(f"trainer {ground.seed} {index}")
        self._entrance: Entrance | None = None
        self._log: DurableLog | None = None
        self.node: PeerNode | None = None
        self._is_training = True

    async def start(self, place: Place, note: Callable[[Event], None]) -> None:
        """Comes in, catches up and begins to train.

        Raises:
            RunnelError: it cannot.
        """
        cap = self._ground.caps.get(self.index)
        capped = replace(place, machine=place.machine.sending(cap))
        await self.process.block(lambda: self._start(capped, note))

    async def leave(self) -> None:
        """Says goodbye, and stops."""
        self._is_training = False
        node = self.node
        if node is not None:
            await self.process.block(lambda: node.leave(_LEAVE_S))

    async def kill(self) -> None:
        """Ends it where it is: what is on disk stays, nothing else."""
        await self.process.kill()
        if self._log is not None:
            self._log.close()
        if self._entrance is not None:
            self._entrance.lock.close()

    def stop_training(self) -> None:
        """No more inner steps; all else goes on."""
        self._is_training = False

    def head(self) -> tuple[int, bytes, bytes]:
        """The newest record that its trainer was told of, and the digest of its parameters."""
        assert self.node is not None  # it has started
        chain, arrays = self.node.mailbox.chain, self.node.outer_parameters()
        return chain.number, chain.beacon, digest(*map(raw, arrays))

    @property
    def is_leaving(self) -> bool:
        """Whether it trains no more, and is perhaps still saying goodbye."""
        return not self._is_training

    @property
    def traffic(self) -> Traffic:
        """Bytes by purpose."""
        assert self._entrance is not None  # it has started
        return self._entrance.network.transport.traffic

    @property
    def failure(self) -> BaseException | None:
        """What ended it, if anything did."""
        return self._runtime.failure or (self.node.mailbox.failure if self.node else None)

    def _start(self, place: Place, note: Callable[[Event], None]) -> None:
        entrance = self._enter(place)
        make, index = self._ground.learner, self.index
        learner = Drill(self._ground, index) if make is None else make(index)
        try:
            parts = assemble(entrance, learner.model)
            self._log = parts.log
            parts.protocol = watched(parts.protocol, self._watcher, self.index)
            self.node = PeerNode(entrance, parts, journal=Ear(self.process, note))
        except BaseException:
            entrance.close()
            raise
        store = parts.store
        assert isinstance(store, OuterStore)  # learners step by themselves
        binding = ModelBinding(learner.model, self.node.plan)
        trainer = Trainer(self.node, binding, store, learner.optimizer)
        self.node.begin()
        self._runtime.own(self._train, self.node, trainer, learner)

    def _enter(self, place: Place) -> Entrance:
        ground, machine = self._ground, place.machine
        machine.prepare()
        throttle = Throttle(machine.max_upload_bits_s)
        transport: Transport = MemoryTransport(ground.network, self.signer.peer_id, throttle)
        if ground.wrap is not None:
            transport = ground.wrap(transport)  # type: ignore[arg-type]  # just made
        network = SimNetwork(transport, MemoryDirectory(ground.network, self.signer.peer_id))
        owner = ground.owner() if isinstance(place, Local) else None
        self._entrance = entrance = Entrance(
            place,
            self._runtime,
            network,
            self.signer,
            owner,
            known_manifest(place, owner),
            DirectoryLock(machine.home),
            LoopClock(ground.loop),
        )
        try:
            if entrance.manifest is None and isinstance(place, Joined):
                entrance.manifest = self._runtime.call(ask_manifest, entrance, timeout_s=_ASK_S)
        except BaseException:
            entrance.close()
            raise
        return entrance

    async def _train(self, node: PeerNode, trainer: Trainer, learner: Learner) -> None:
        pace_s = self._ground.step_s * self._rng.uniform(0.8, 1.25)
        while self._is_training and not node.mailbox.chain.is_over:
            await asyncio.sleep(pace_s * self._rng.uniform(0.9, 1.1))
            trainer.step(*learner.step(trainer.progress))


def home_of(folder: Path, index: int) -> MachineConfig:
    """The machine of peer `index`."""
    return MachineConfig.at(folder / f"peer-{index:02d}", host="127.0.0.1")


def invited_place(invite: Invite, folder: Path, index: int) -> Place:
    """Where a peer that did not found the run takes part."""
    return Joined(invite=invite, machine=home_of(folder, index))


def fast_folder() -> str | None:
    """A place for temporary folders in memory, where the system has one."""
    shared = Path("/dev/shm")  # noqa: S108 - a private folder is made in it
    return str(shared) if shared.is_dir() else None


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for the homes of a simulation."""
    return tempfile.TemporaryDirectory(prefix="runnel-sim-", dir=fast_folder())
