"""Carries out what the round protocol wants: the one place of a peer's rounds that awaits.

Actions are carried out in order; what must be durable is on disk before anything after it is sent.
Work with arrays runs in the codec thread, one job at a time; transfers run beside each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from runnel.clock import Clock
from runnel.errors import InputFileError, PeerError, RunnelError, StorageError
from runnel.node import actions as act
from runnel.node import following
from runnel.node.action_queue import ActionQueue
from runnel.node.actions import RoundKey
from runnel.node.bulk import Bulk, PayloadSlice
from runnel.node.contacts import Contacts
from runnel.node.durable import DurableLog
from runnel.node.events import (
    ContributionWithheld,
    Event,
)
from runnel.node.joining import Rebuild, Source
from runnel.node.keeper import Keeper
from runnel.node.leaping import Leaper
from runnel.node.links import Links
from runnel.node.mailbox import DecidedMerge, HandedOver, Mailbox
from runnel.node.messages import Message
from runnel.node.moves import Landing
from runnel.node.narrator import Narrator
from runnel.node.parcels import Desk, Parcels
from runnel.node.protocol import RoundProtocol
from runnel.node.records import Commitment
from runnel.node.shelving import write_block
from runnel.node.standing import Standing
from runnel.node.transfers import TransferParts, Transfers
from runnel.protocols import Transport
from runnel.types import Digest, PeerId

logger = logging.getLogger(__name__)

TICK_S = 0.1
_KEEP_TURNS = 100
"""Links to peers that nothing is sent to any more end after so many ticks."""
_RETRY_S = 0.5
_GONE_S = 4.0

Job = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class DriverParts:
    """What a driver works with. `codec` and `disk` run a job on a thread of theirs, one at a time.

    `progress` gives the share of the run done as of a round, in millionths; `moved` is called after
    each step of the chain with the path followed; `note` takes events; `rebuild` makes states from a log.
    """

    protocol: RoundProtocol
    vault: Keeper
    log: DurableLog
    mailbox: Mailbox
    transport: Transport
    codec: Job
    disk: Job
    progress: Callable[[int], int]
    note: Callable[[Event], None]
    moved: Callable[[Sequence[Digest]], None]
    run: bytes
    max_slice_bytes: int
    snapshot_every: int
    clock: Clock
    rebuild: Rebuild | None = None


class Driver:
    """Runs one peer's protocol on the I/O thread."""

    def __init__(self, parts: DriverParts) -> None:
        self.contacts = Contacts(parts.protocol.state)
        self._parts = parts
        self._queue = ActionQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        standing = Standing(lambda peer: peer in parts.protocol.state.chain.head.view)
        self._links = Links(
            parts.transport,
            parts.run,
            receive=self._receive,
            standing=standing,
            ready=self._queue.room,
        )
        self._bulk = Bulk(
            parts.transport,
            take=self._take,
            limit=lambda peer: parts.max_slice_bytes if self._expects(peer) else 0,
            lookup=self._result,
        )
        self._desk = Desk(
            Parcels(parts.protocol.state),
            judge=lambda *claim: self._in_codec(parts.vault.judge, *claim),
            blame=self._links.blame,
            note=self._note,
        )
        self._contributing: set[RoundKey] = set()
        self._leaper = Leaper(
            parts.protocol.state, every=parts.snapshot_every, rebuild=parts.rebuild
        )
        self._transfers = Transfers(
            TransferParts(
                protocol=parts.protocol,
                vault=parts.vault,
                bulk=self._bulk,
                codec=self._in_codec,
                spawn=self._spawn,
                post=self._post,
                near=self.near,
                miss=self._leaper.miss,
                max_slice_bytes=parts.max_slice_bytes,
            )
        )
        self._narrator = Narrator(
            parts.protocol.state, parts.note, parts.transport.traffic, parts.clock
        )

    # -- life

    async def start(self) -> None:
        """Serves, and begins to take part."""
        await self._links.serve()
        await self._bulk.serve()
        self._spawn(self._work(), "driver:work")
        self._spawn(self._tick(), "driver:tick")
        self._spawn(self._follow_far(), "driver:follow")

    async def leave(self, within_s: float) -> bool:
        """Announces that this peer leaves and waits until the others have let it go; whether they did."""
        state, loop = self._parts.protocol.state, asyncio.get_running_loop()
        deadline = loop.time() + within_s
        state.members.leaving = not state.is_over
        while loop.time() < deadline:
            if self._is_let_go(loop.time()):
                await self._links.drain(min(deadline, loop.time() + 1))
                return True
            await asyncio.sleep(TICK_S)
        return False

    def _is_let_go(self, now: float) -> bool:
        """Whether nobody needs this peer: it is out of all open views, or all near have the last record."""
        state = self._parts.protocol.state
        near = self.contacts.near(now, within_s=_GONE_S)
        if state.is_over:
            head = state.chain.head.hash
            return all(state.branches.head_of(peer) == head for peer in near)
        number, span = state.chain.number, state.chain.open_rounds
        views = [state.chain.head.view, *(state.chain.view_of(number + 1 + i) for i in range(span))]
        return not near or all(state.me not in view for view in views)

    async def aclose(self) -> None:
        """Stops at once; what was promised is on disk."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._links.aclose()

    async def contribute(self, handed: HandedOver) -> None:
        """Takes the trainer's share of a round: encode, keep, commit."""
        parts, key = self._parts, handed.want.key
        if key in self._contributing:
            return
        self._contributing.add(key)
        try:
            handover = await self._in_codec(parts.vault.contribute, handed)
        except ValueError as error:
            self._note(ContributionWithheld(unix_s=0.0, round=key.number, reason=str(error)))
            return
        except RunnelError as error:  # as when a task of ours fails
            parts.mailbox.fail(error)
            return
        finally:
            self._contributing.discard(key)
        if handover is None:
            # asked for once more while the first answer was under way: that one counts
            if key not in parts.vault.contributions:
                parts.mailbox.want(replace(handed.want, urgent=True))
            return
        if handover.start is not None:  # whatever becomes of the round
            start = DecidedMerge(
                key.number, handover.start, included=False, starts=True, plain=True
            )
            parts.mailbox.deliver(start)
        actions = parts.protocol.handed_over(handover, parts.progress(key.number), self._now())
        self._narrator.committed(handed, handover)
        self._post(actions)

    # -- inputs

    def near(self) -> tuple[PeerId, ...]:
        """Peers heard just now."""
        return self.contacts.near(self._now())

    def _receive(self, sender: PeerId, message: Message) -> None:
        self.contacts.heard(sender, self._now())
        self._post(self._parts.protocol.receive(sender, message, self._now()))

    def _expects(self, peer: PeerId) -> bool:
        """Whether slices of `peer` may be for us to reduce."""
        rounds = self._parts.protocol.state.rounds.values()
        return any(peer in place.view and not place.facts.carried for place in rounds)

    async def _take(self, sender: PeerId, piece: PayloadSlice) -> None:
        """A payload slice for us to reduce: kept until its round ends."""
        await self._desk.take(sender, piece)
        self._post(
            self._parts.protocol.slice_arrived(
                piece.key, piece.index, piece.commitment, self._now()
            )
        )

    async def _result(self, root: Digest) -> bytes | memoryview | None:
        """A result for whoever asks; one that the disk has lost is to be had from others."""
        answer: bytes | memoryview | None = None
        try:
            answer = await self._parts.disk(self._parts.vault.results.get, root)
        except (InputFileError, StorageError) as error:
            logger.warning("%s; it is not given to others", error)
        return answer

    async def _tick(self) -> None:
        for turn in count():
            for sender in self._bulk.senders():
                self._parts.protocol.heard(sender, self._now())
            if not self._queue.is_full:
                self._post(self._parts.protocol.tick(self._now()))
            self._transfers.trim()
            self._desk.parcels.trim()
            if turn % _KEEP_TURNS == 0:
                self._links.keep(self.contacts.audience(self._now()))
            for refused in self._links.refusals():
                self._note(refused)
            await asyncio.sleep(TICK_S)

    async def _follow_far(self) -> None:
        """Catches up by state where results will not do."""
        parts, state = self._parts, self._parts.protocol.state
        while True:
            await asyncio.sleep(_RETRY_S)
            path = self._leaper.aim()
            if not path:
                continue
            source = Source(parts.transport, self.near(), parts.run)
            found = await self._leaper.fetch(source, path, parts.vault.store.shared_sizes)
            if found is not None:
                fetched, states = found
                await self._in_codec(parts.vault.land, Landing(path[-1], len(path) - 2, states))
                state.pursuit.landing = path
                self._note(fetched.event())
                self._post(parts.protocol.tick(self._now()))

    # -- actions

    def _post(self, actions: Sequence[act.Action]) -> None:
        self._queue.post(actions)

    async def _work(self) -> None:
        while True:
            await self._queue.wait()
            await self._stretch()

    async def _stretch(self) -> None:
        """Carries out everything up to the next step of the chain; one write makes it durable first."""
        stretch = self._queue.stretch()
        updates = {k: v for a in stretch if isinstance(a, act.Store) for k, v in a.updates.items()}
        if updates:
            await self._write(updates)
        for action in stretch:
            self._begin(action)
        # while the write was awaited, more may have come in: only a step is taken out here
        step = self._queue.step()
        if step is not None:
            await self._adopt(step)

    def _begin(self, action: act.Action) -> None:
        match action:
            case act.Send(message=message, to=to):
                self._links.send(
                    message, [to] if to is not None else self.contacts.audience(self._now())
                )
            case act.WantHandover(key=key):
                if (
                    key not in self._contributing
                ):  # what is being encoded need not be asked for again
                    self._parts.mailbox.want(action)
            case act.Scatter():
                self._transfers.scatter(action)
            case act.Fetch():
                self._transfers.fetch(action)
            case act.Note(event=event):
                self._note(event)
            case act.Reduce() | act.Prepare() | act.Recall():
                self._begin_job(action)
            case act.Blame(peer=peer, reason=reason):
                self._links.blame(peer, reason)

    def _begin_job(self, action: act.Reduce | act.Prepare | act.Recall) -> None:
        """What takes a thread's time goes on beside the rest."""
        match action:
            case act.Reduce():
                self._spawn(self._reduce(action), "driver:reduce")
            case act.Prepare():
                self._spawn(self._prepare(action), "driver:prepare")
            case act.Recall():
                self._spawn(self._recall(action), "driver:recall")

    async def _adopt(self, step: act.Adopt) -> None:
        parts = self._parts
        merges, updates = await self._in_codec(
            parts.vault.follow, parts.protocol.state.chain, step.fork, step.path
        )
        for block in step.blocks:
            await parts.disk(write_block, parts.log, block)
        await self._write({**step.updates, **updates})
        for block in step.blocks:
            parts.protocol.state.chain.archive.written(block)
        for merge in merges:
            parts.mailbox.deliver(merge)
        rounds = parts.protocol.state.rounds
        parts.mailbox.withdraw(lambda key: key in rounds)
        self._narrator.moved(step.fork, merges, self._now())
        parts.moved(step.path)

    async def _recall(self, action: act.Recall) -> None:
        """Old records for whoever is that far behind; what the disk has lost is to be had from others."""
        chain = self._parts.protocol.state.chain
        try:
            records = await self._parts.disk(following.records_after, chain, action.locator)
        except (InputFileError, StorageError) as error:
            logger.warning("%s; it is not given to others", error)
            return
        self._links.send(records, [action.to])

    async def _reduce(self, action: act.Reduce) -> None:
        parts = self._parts
        if action.key not in parts.protocol.state.rounds:
            return  # decided while this waited for the disk: its parcels are gone
        payloads = [self._payload(action, sender) for sender in action.senders]
        result, size = await self._in_codec(parts.vault.reduce, action, payloads)
        self._post(parts.protocol.reduced(action, result, size, self._now()))

    def _payload(self, action: act.Reduce, sender: Commitment) -> bytes | memoryview:
        if sender.carried:
            return sender.carried
        key, index = action.key, action.slice_index
        if sender.peer == self._parts.protocol.state.me:
            return self._parts.vault.contributions.slice_with_path(key, index)[0]
        return self._desk.parcels.payload(key, index, sender.id)

    async def _prepare(self, action: act.Prepare) -> None:
        try:
            root = await self._in_codec(self._parts.vault.prepare, action)
        except PeerError as error:  # no vote is cast for it, so that nobody adopts it
            logger.warning("a result of round %d is no result: %s", action.key.number, error)
            return
        self._post(self._parts.protocol.prepared(action.key, action.slices, root, self._now()))

    # -- ways out

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _note(self, event: Event) -> None:
        self._narrator.note(event)

    async def _in_codec(self, job: Callable[..., Any], *args: Any) -> Any:
        return await self._parts.codec(job, *args)

    async def _write(self, updates: dict[str, bytes | None]) -> None:
        await self._parts.disk(self._parts.log.write, updates)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A failed task ends the peer: its trainer gets the reason at its next step."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            if not isinstance(error, RunnelError):
                logger.error("%s failed", task.get_name(), exc_info=error)
            self._parts.mailbox.fail(error)
