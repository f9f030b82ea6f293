"""The composition root: the one place to read what is connected to what in a peer.

`PeerNode.attach` takes a started network and a model and wires store, vault, protocol, driver, journal and
mailbox. `PeerNode` owns all their lifetimes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import runnel
from runnel.clock import Clock
from runnel.dht.blob_server import BlobServer
from runnel.dht.blob_shelf import BlobShelf
from runnel.dht.circuits import is_circuit
from runnel.errors import ConfigError, InputFileError, StorageError
from runnel.hashing import digest
from runnel.node.announcer import Announcer
from runnel.node.assembly import Assembly, Store, assemble
from runnel.node.driver import Driver, DriverParts
from runnel.node.entrance import Entrance
from runnel.node.entry_chunks import HistoryFetch, HistorySource
from runnel.node.events import (
    ContributionWithheld,
    Event,
    PeerReady,
    PeerStarted,
    PeerStopped,
    PeerWarned,
    RunEnded,
)
from runnel.node.first_step import FirstStep, load_arithmetic
from runnel.node.invite import Invite
from runnel.node.journal import EventSink, Journal
from runnel.node.last_checkpoint import LastCheckpoint
from runnel.node.mailbox import ChainView, HandedOver, Mailbox
from runnel.node.narrator import stamped
from runnel.node.outer_parts import schedule_of
from runnel.node.pinning import Pinning
from runnel.node.progress import Progress
from runnel.node.reach import ReachWatch
from runnel.node.readings import read_home, read_protocol
from runnel.node.run_service import RunService
from runnel.node.runtime import RuntimeClosedError
from runnel.node.sampling import window_seed
from runnel.node.status import StatusFile
from runnel.types import Digest, PeerId, short

if TYPE_CHECKING:
    from torch import nn

    from runnel.dht.middle import Middle
    from runnel.node.chain import Chain
    from runnel.node.settling import Trials
    from runnel.optim.fragments import FragmentPlan
    from runnel.protocols import Float32

logger = logging.getLogger(__name__)

_CALL_S = 30.0
_WARNINGS = (ContributionWithheld, PeerWarned)
_STATUS_S = 2.0
_TRAFFIC_TURNS, _HOME_TURNS = 3, 15
_LAST_S = 600.0
_INVITE_DAYS_S = 30 * 86_400


class PeerNode:
    """One peer of one run: what its trainer talks to, and the owner of everything behind it."""

    def __init__(
        self, entrance: Entrance, parts: Assembly, journal: EventSink | None = None
    ) -> None:
        """`journal` keeps the events; a file in the run's folder if not given."""
        self.spec = parts.manifest.spec
        self.schedule = schedule_of(self.spec)
        self.mailbox = Mailbox(self._hand_over, parts.owed_tokens)
        self._entrance, self._parts = entrance, parts
        self._journal = journal or Journal(
            parts.folder / "journal.jsonl", on_error=self._journal_failed
        )
        self._status = StatusFile(
            parts.folder / "status.json",
            self._fixed_facts(),
            entrance.network.transport.traffic,
            entrance.clock,
        )
        self._driver = self._build_driver()
        self._last = LastCheckpoint(
            parts.folder,
            parts.manifest,
            parts.log,
            disk=entrance.runtime.disk,
            note=self.note,
        )
        self._closed = False
        self._listeners: list[Any] = []
        if entrance.metrics is not None:
            entrance.metrics.figures.attach(self.status)
            self.listen(entrance.metrics.figures.take)

    @classmethod
    def attach(cls, entrance: Entrance, model: nn.Module, trials: Trials | None = None) -> PeerNode:
        """Wires a peer of the run that `entrance` leads to, see `assemble`; all closes again if that fails."""
        parts: Assembly | None = None
        try:
            parts = assemble(entrance, model, trials)
            return cls(entrance, parts)
        except BaseException:
            entrance.close()
            if parts is not None:
                parts.log.close()
            raise

    # -- what the session reads

    @property
    def clock(self) -> Clock:
        """Where seconds come from."""
        return self._entrance.clock

    @property
    def plan(self) -> FragmentPlan:
        """Which parameters are in which fragment."""
        return self._parts.plan

    @property
    def shelf(self) -> BlobShelf:
        """Content by hash that this peer serves to others while it takes part; any thread."""
        return self._parts.shelf

    @property
    def run_id(self) -> Digest:
        """The run."""
        return self._parts.manifest.run_id

    @property
    def peer(self) -> PeerId:
        """This peer."""
        return self._entrance.identity.peer_id

    @property
    def folder(self) -> Path:
        """Where this peer keeps its state."""
        return self._parts.folder

    def outer_parameters(self) -> Sequence[Float32]:
        """The newest outer parameters by fragment (not copies)."""
        return [self._parts.store.parameters(f) for f in range(self.plan.num_fragments)]

    @property
    def store(self) -> Store:
        """What all peers share."""
        return self._parts.store

    def window_seed(self) -> bytes:
        """The public seed of this peer's data in the current window of one round for each fragment."""
        chain = self._parts.protocol.state.chain
        window = (chain.number + 1) // self.plan.num_fragments
        beacon = chain.path[min(window * self.plan.num_fragments, len(chain.path) - 1)]
        return window_seed(beacon, self.peer, window)

    def check(self) -> None:
        """Raises, in the trainer's thread, what ended this peer, or that it was closed."""
        self.mailbox.check()
        failure = self._entrance.runtime.failure
        if failure is not None:
            raise failure

    @property
    def is_closed(self) -> bool:
        """Whether this peer has stopped."""
        return self._closed

    def reachable(self) -> tuple[PeerId, ...]:
        """Peers of the run that were heard in the last ten seconds."""
        return self._entrance.runtime.call(self._near, timeout_s=_CALL_S)

    def status(self) -> dict[str, Any]:
        """What `runnel status --json` shows."""
        return self._status.describe(self.mailbox.chain)

    def make_invite(self, addresses: Sequence[str] | None = None) -> str:
        """An invite of the owner's; ConfigError if this peer does not hold the owner's key."""
        owner = self._entrance.owner
        if owner is None:
            raise ConfigError("only the run's owner can invite: ask whoever launched it")
        expires = int(self.clock.unix_s()) + _INVITE_DAYS_S
        known = (a for a in self._entrance.network.addresses() if not is_circuit(a))
        reachable = list(addresses or known)[:3]
        return str(Invite.issue(owner, self.run_id, reachable, expires_unix_s=expires))

    def listen(self, listener: Any) -> None:
        """Passes every event on, from whichever thread it comes."""
        self._listeners.append(listener)

    def note(self, event: Event) -> None:
        """Journals a fact and tells whoever listens."""
        event = stamped(event, self.clock)
        self._journal.append(event)
        self._status.take(event)
        line = event.diary()
        if line is not None:
            level = logging.WARNING if isinstance(event, _WARNINGS) else logging.INFO
            logger.log(level, "%s", line)
        for listener in self._listeners:
            listener(event)

    # -- life

    def begin(self) -> None:
        """Starts to serve and to take part."""
        where, run = tuple(self._entrance.network.addresses()), self.run_id.hex()
        self.note(PeerStarted(unix_s=0.0, peer=short(self.peer), run=run, addresses=where))
        fetched = self._parts.fetched
        if fetched is not None:
            self.note(fetched.event())
        runtime, first_step = self._entrance.runtime, FirstStep()
        self.listen(first_step.take)
        runtime.own(first_step.then, partial(load_arithmetic, runtime, self.spec))
        runtime.call(self._start, timeout_s=_CALL_S)
        runtime.own(self._keep_status)
        announcer = Announcer(self._entrance.network, self.run_id, self._driver.contacts.seed)
        self._entrance.announcer = announcer
        runtime.own(first_step.then, announcer.run)
        middle = self._entrance.network.middle
        if middle is not None:
            runtime.own(self._reach_watch(middle).run)
        chain = self._parts.protocol.state.chain
        seconds, members = self.clock.monotonic_s() - self._parts.began_s, len(chain.head.view)
        self.note(PeerReady(unix_s=0.0, round=chain.number, members=members, seconds=seconds))

    def leave(self, timeout_s: float) -> None:
        """Leaves in order, then closes; a peer that failed has nobody left to say goodbye."""
        if self._closed:
            return
        failure = self.mailbox.failure or self._entrance.runtime.failure
        if failure is not None:
            self.close(f"failed: {failure}")
            return
        try:
            if self.mailbox.chain.is_over:
                self._entrance.runtime.call(self._last.write, timeout_s=_LAST_S)
                # whoever is still fetching the last results needs somebody who has them
                timeout_s = max(timeout_s, self.spec.rounds.deadline_ceiling_s)
            self._entrance.runtime.call(self._driver.leave, timeout_s, timeout_s=timeout_s + 5)
            if self._entrance.announcer is not None:
                self._entrance.runtime.call(self._entrance.announcer.withdraw, timeout_s=_CALL_S)
        except Exception as error:  # noqa: BLE001 - whatever ended the loop, what follows must be done
            logger.warning("left without the others' consent: %s", error)
        self.close("left")

    def close(self, reason: str = "stopped") -> None:
        """Stops at once; idempotent. What was promised is on disk."""
        if self._closed:
            return
        self._closed = True
        over = self.mailbox.chain.is_over
        self.mailbox.fail(
            RuntimeClosedError(
                "this peer has left its run: make a new runnel.Peer to take part again"
            )
        )
        try:
            self._entrance.runtime.call(self._driver.aclose, timeout_s=_CALL_S)
        except Exception as error:  # noqa: BLE001 - whatever ended the loop, files and threads must go
            logger.warning("the peer did not stop in order: %s", error)
        self.note(self._status.traffic())
        self.note(PeerStopped(unix_s=0.0, reason="the run ended" if over else reason))
        self._entrance.close()
        self._status.keep(self.mailbox.chain, "ended" if over else reason)
        self._journal.close()
        self._parts.log.close()

    # -- wiring

    def _build_driver(self) -> Driver:
        entrance, parts, runtime = self._entrance, self._parts, self._entrance.runtime
        progress = Progress(self.spec, parts.manifest.genesis.created_unix_s, self.clock)
        chain = parts.protocol.state.chain
        return Driver(
            DriverParts(
                protocol=parts.protocol,
                vault=parts.vault,
                log=parts.log,
                mailbox=self.mailbox,
                transport=entrance.network.transport,
                codec=runtime.codec,
                disk=runtime.disk,
                progress=lambda number: progress.at(number, chain),
                note=self.note,
                moved=self._moved,
                run=self.run_id,
                max_slice_bytes=parts.max_slice_bytes,
                snapshot_every=self.spec.rounds.snapshot_every,
                clock=self.clock,
                rebuild=parts.rebuild(runtime, entrance.place.machine.catch_up),
            )
        )

    async def _start(self) -> None:
        transport, job = self._entrance.network.transport, self._entrance.runtime.disk
        parts, chain = self._parts, self._parts.protocol.state.chain
        await RunService(transport, self.run_id, parts.answers(), job=job).serve()
        await BlobServer(transport, parts.shelf).start()
        pinning = Pinning(
            parts.log,
            parts.vault,
            parts.shelf,
            every=self.spec.rounds.snapshot_every,
            keep_rounds=parts.protocol.state.settings.deepest_fork,
        )
        self._pinning = pinning
        if pinning.is_due(chain, chain.path):
            await self._renew_pins(chain, chain.path)
        self._driver.contacts.seed(self._entrance.peers)
        self._tell(chain.path)
        await self._driver.start()
        if self.spec.seeds.is_on:
            source = HistorySource(transport, self.run_id, self._driver.near, job)
            self._entrance.runtime.own(HistoryFetch(source, chain, parts.entries).run)

    def _reach_watch(self, middle: Middle) -> ReachWatch:
        middle.belongs(self._driver.contacts.belongs)
        return ReachWatch(
            middle,
            self._driver.contacts.others,
            port=0 if self._entrance.place.machine.dials_only else self._entrance.network.port,
            note=self.note,
            tell=self._status.reach,
        )

    async def _near(self) -> tuple[PeerId, ...]:
        return self._driver.near()

    async def _keep_status(self) -> None:
        for turn in count():
            await self._entrance.runtime.disk(self._status.keep, self.mailbox.chain)
            if turn % _TRAFFIC_TURNS == 0:
                self.note(self._status.traffic())
            await self._read_figures(turn)
            await asyncio.sleep(_STATUS_S)

    async def _read_figures(self, turn: int) -> None:
        if self._entrance.metrics is None:
            return
        figures, state = self._entrance.metrics.figures, self._parts.protocol.state
        now = asyncio.get_running_loop().time()
        read_protocol(figures, state, self._driver.contacts, self._pinning, now)
        if turn % _HOME_TURNS == 0:
            home = self._entrance.place.machine.home
            await self._entrance.runtime.disk(read_home, figures, home)

    def _journal_failed(self, error: StorageError) -> None:
        text = f"{error}; until then events are lost, training goes on"
        self.note(PeerWarned(unix_s=0.0, text=text))

    def _hand_over(self, handed: HandedOver) -> None:
        self._entrance.runtime.own(self._driver.contribute, handed)

    def _moved(self, path: Sequence[Digest]) -> None:
        self._tell(path)
        number = len(path) - 2
        chain = self._parts.protocol.state.chain
        if self._pinning.is_due(chain, path):
            self._entrance.runtime.own(self._renew_pins, chain, path)
        if self.mailbox.chain.is_over:
            why, root = "its end is reached", digest(*self._parts.vault.state_roots()).hex()
            self.note(RunEnded(unix_s=0.0, round=number, reason=why, state_root=root))
            self._entrance.runtime.own(self._last.write)

    async def _renew_pins(self, chain: Chain, path: Sequence[Digest]) -> None:
        """Training does not need it: what fails is done at the next pin, if the disk is well by then."""
        try:
            in_use = self._parts.protocol.state.results_in_use()
            await self._entrance.runtime.disk(self._pinning.renew, chain, path, in_use)
        except (InputFileError, StorageError) as error:
            self.note(PeerWarned(unix_s=0.0, text=f"what newcomers fetch is not renewed: {error}"))

    def _tell(self, path: Sequence[Digest]) -> None:
        """Tells the trainer what is carried out and on disk; the protocol may be further."""
        head = self._parts.protocol.state.chain.at(path, len(path) - 1)
        self.mailbox.tell(ChainView.at(head, self.peer, fragments=self.plan.num_fragments))

    def _fixed_facts(self) -> dict[str, Any]:
        return {
            "version": runnel.__version__,
            "run": self.spec.run.name,
            "run_id": self.run_id.hex(),
            "peer": short(self.peer),
            "parameters": self.plan.numel,
            "max_upload_mbit": self._entrance.place.machine.max_upload_mbit,
        }
