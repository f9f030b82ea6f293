"""The round protocol of one peer: messages, times and finished jobs in, actions out. Pure.

A chain of decided records drives everything: at most k rounds are open, each derives from a decided
record, and rounds are decided strictly in order. The set of contributions and the outcome of a round
are decided by the same agreement machine. No clock, no sockets, no arrays: whoever drives this
carries out the returned actions in order and feeds results back.
"""

from __future__ import annotations

from collections.abc import Sequence

from runnel.node import branching, following, storage_keys, taking_part
from runnel.node.actions import (
    Action,
    Adopt,
    Handover,
    Reduce,
    RoundKey,
    Send,
    Store,
)
from runnel.node.archive import Block
from runnel.node.certificates import Certificate
from runnel.node.elections import Elections
from runnel.node.inbox import Inbox
from runnel.node.messages import (
    Commit,
    Message,
    ResultReady,
    SetDecided,
)
from runnel.node.protocol_state import Handler, ProtocolSettings, ProtocolState
from runnel.node.records import RecordKind, SliceResult
from runnel.node.round_data import DataWait, advance_data, overdue_for_data
from runnel.node.rounds import Round
from runnel.protocols import Signer
from runnel.types import Digest, PeerId
from runnel.verification.agreement import Decided

REPEAT_S = 1.0
WAKE_GAP_S = 5.0
HISTORY_ROUNDS = 64
"""How many rounds back votes and sets are kept beyond those whose results are."""


class RoundProtocol:
    """One peer's protocol. All public methods return actions to carry out in order."""

    def __init__(
        self,
        signer: Signer,
        settings: ProtocolSettings,
        saved: storage_keys.Restored,
        *,
        now: float,
    ) -> None:
        self.state = ProtocolState.begin(signer, settings, saved, now)
        self._elections = Elections(self.state)
        self._inbox = Inbox(self.state, self._elections)
        self._handlers: dict[type, Handler] = {
            **following.handlers(self.state),
            **branching.handlers(self.state),
            **self._inbox.handlers(),
        }
        self._opened = Digest(b"")

    def receive(self, sender: PeerId, message: Message, now: float) -> list[Action]:
        """Takes in a control message from an authenticated sender.

        Raises:
            PeerError: the message is unusable and without effect.
        """
        self.state.members.hear(sender, now, self.state.chain.number)
        actions = self._handlers[type(message)](sender, message, now)
        return actions + self._advance(now)

    def heard(self, peer: PeerId, now: float) -> None:
        """Bytes of a transfer came from `peer`, which may take longer than a deadline."""
        self.state.members.hear(peer, now, self.state.chain.number)

    def tick(self, now: float) -> list[Action]:
        """Lets time pass; call it several times a second."""
        pulse = self.state.pulse
        if now - pulse.ticked > WAKE_GAP_S:
            pulse.moved = now  # asleep is not stalled: hear the others first
        pulse.ticked = now
        actions: list[Action] = []
        actions += following.greet_if_due(self.state, now)
        actions += self._advance(now, all_rounds=True)
        if now - pulse.repeat > REPEAT_S:
            pulse.repeat = now
            self._trim()
            actions += self._elections.repeats()
            for place in self.state.rounds.values():
                actions += taking_part.repeat(self.state, place, now)
        for place in self.state.rounds.values():
            actions += taking_part.hurry(self.state, place, now)
        actions += branching.call_if_stalled(self.state, now)
        return actions + self._advance(now)

    def _trim(self) -> None:
        members = {*self.state.chain.head.view}
        for place in self.state.rounds.values():
            members.update(place.view)
        self.state.members.trim(members)
        self.state.pulse.trim(members)
        self.state.branches.trim(members)

    def handed_over(self, handover: Handover, progress: int, now: float) -> list[Action]:
        """The trainer's contribution is encoded and kept: commit to it, if its round still stands.

        `progress` is the share of the run done as this peer sees it, in millionths.
        """
        place = self.state.rounds.get(handover.key)
        me = self.state.me
        if place is None or me in place.commits or not place.takes(me) or place.decided:
            return []
        commitment = taking_part.commitment_of(self.state, handover, progress, now)
        self.state.saved.commits[place.key] = commitment
        self._inbox.note(place, commitment, now)
        updates = {**handover.updates, **storage_keys.commitment_updates(commitment)}
        return [Store(updates), Send(Commit(commitment)), *self._advance(now)]

    def slice_arrived(
        self, key: RoundKey, index: int, commitment: Digest, now: float
    ) -> list[Action]:
        """A checked payload slice is here."""
        place = self.state.rounds.get(key)
        if place is None:
            return []
        piece = place.slices[index]
        sender = next((c.peer for c in place.decided or () if c.id == commitment), None)
        if sender is not None:
            self.state.members.hear(sender, now, self.state.chain.number)
        if place.decided and commitment not in piece.arrived:
            worker, _ = place.reducers(index)
            if worker == self.state.me:  # what comes to a standby waited for a deadline first
                self.state.deadlines.data.arrived(now - place.decided_at)
        piece.arrived.add(commitment)
        self.state.news.add(key.number)
        return self._advance(now)

    def scatter_failed(self, key: RoundKey, index: int, to: PeerId) -> None:
        """A payload slice did not get through; it is sent again at a later tick."""
        place = self.state.rounds.get(key)
        if place is not None:
            place.slices[index].sent_to.discard(to)

    def reduced(
        self, job: Reduce, result: SliceResult, size_bytes: int, now: float
    ) -> list[Action]:
        """Our result of a slice is encoded and durable: announce it, unless everybody makes it."""
        key, index, told = job.key, job.slice_index, list[Action]()
        place = self.state.rounds.get(key)
        if place is None:
            return []
        self.state.held[result.root] = key.number
        if place.stands_on(job):
            place.slices[index].results[result] = size_bytes
            self.state.news.add(key.number)
        if not place.facts.carried:
            told.append(Send(ResultReady(key.number, key.base, index, result, size_bytes)))
        elif place.decided is not None:
            self.state.deadlines.data.arrived(now - place.decided_at)
        return [Store(storage_keys.result_updates(result.root)), *told, *self._advance(now)]

    def result_held(self, root: Digest, now: float) -> list[Action]:
        """A result's bytes are here, checked and durable."""
        state = self.state
        asked = state.pursuit.fetching.pop(root, None)
        if asked is not None:
            state.deadlines.data.arrived(now - asked)
        if root in state.held:
            return []
        if state.target:
            state.pursuit.fed = now
        state.held[root] = state.chain.number + 1
        return [Store(storage_keys.result_updates(root)), *self._advance(now, all_rounds=True)]

    def fetch_failed(self, root: Digest) -> None:
        """Nobody gave a result; it is asked for again at a later tick."""
        self.state.pursuit.fetching.pop(root, None)

    def prepared(
        self, key: RoundKey, slices: tuple[SliceResult, ...], state_root: Digest, now: float
    ) -> list[Action]:
        """The state after these results is computed."""
        place = self.state.rounds.get(key)
        if place is None or place.decided is not None:
            self.state.deadlines.finished(key, now)
        if place is not None:
            place.prepared[slices] = state_root
            self.state.news.add(key.number)
        return self._advance(now)

    def _advance(self, now: float, *, all_rounds: bool = False) -> list[Action]:
        """Goes as far as the inputs allow: in rounds with news, in all once the chain has moved."""
        chain, state = self.state.chain, self.state
        if not all_rounds and not state.news:
            return []
        before = chain.path[-1]
        actions = self._catch_up(now)
        head = None if all_rounds or chain.path[-1] != before else before
        while True:
            anywhere, head = head != chain.path[-1], chain.path[-1]
            actions += self._open_rounds(now)
            for place in list(state.rounds.values()):
                if anywhere or place.key.number in state.news:
                    actions += self._advance_round(place, now)
            if anywhere or chain.number + 1 in state.news:
                actions += self._advance_outcome(now)
            actions += self._catch_up(now)
            if chain.path[-1] == head:
                break
        state.news.clear()
        return actions if head == before else actions + following.greet(state, now)

    def _open_rounds(self, now: float) -> list[Action]:
        chain, actions = self.state.chain, list[Action]()
        if self._opened == chain.path[-1]:
            return actions
        self._opened = chain.path[-1]
        first = chain.number + 1
        for number in range(first, first + (0 if self.state.is_over else chain.open_rounds)):
            key = RoundKey(number, chain.base_of(number))
            if key not in self.state.rounds:
                actions += self._open(key, now)
        return actions

    def _open(self, key: RoundKey, now: float) -> list[Action]:
        state = self.state
        place = taking_part.open_round(state, key, now)
        own = state.saved.commits.get(key)
        if own is not None:
            self._inbox.note(place, own, now)
            return [Send(Commit(own))]
        if not place.takes(state.me):
            return []
        return [taking_part.want(place, state.me, urgent=False)]

    def _advance_round(self, place: Round, now: float) -> list[Action]:
        state = self.state
        if state.me not in place.view:
            return []
        actions: list[Action] = []
        if place.decided is None:
            actions, decided = self._elections.advance_set(place, now)
            if decided is not None:
                actions += self._set_decided(place, decided, now)
            elif place.expected is None:
                return actions
        for result, size_bytes in place.missing(state.held):
            holders = (result.reducer, *place.view)
            actions += state.fetch(result.root, holders, now, size_bytes=size_bytes)
        waited_s = now - place.decided_at
        if waited_s > state.deadlines.data.deadline_s():
            for peer in overdue_for_data(place, state.me, state.held):
                state.members.missed(peer, place.decided_at, now, among=len(place.view))
        wait = DataWait(waited_s, state.deadlines.data_s, state.members.is_overdue)
        return actions + advance_data(place, state.me, state.held, wait=wait)

    def _set_decided(self, place: Round, decided: Decided, now: float) -> list[Action]:
        commitments = place.sets[decided.value]
        certificate = Certificate(decided.attempt, decided.certificate)
        actions = self._inbox.fix_set(place, commitments, certificate, now)
        told = SetDecided(commitments, certificate)
        return actions + [Send(told, to=peer) for peer in place.view if peer not in place.voters]

    def _advance_outcome(self, now: float) -> list[Action]:
        chain = self.state.chain
        actions, decided = self._elections.advance_outcome(now)
        if decided is None:
            return actions
        place = self.state.round_of(decided.instance)
        if place is None:
            return actions
        record = place.candidates[decided.value]
        chain.add(record, Certificate(decided.attempt, decided.certificate))
        return actions + self._move(chain.path.then(record.hash), now)

    def _catch_up(self, now: float) -> list[Action]:
        actions: list[Action] = []
        while True:
            landing = self.state.pursuit.landing
            fetches, path = following.next_step(self.state, now)
            actions += fetches
            if not path:
                return actions
            actions += self._move(path, now, landed=path == landing)

    def _move(self, path: Sequence[Digest], now: float, *, landed: bool = False) -> list[Action]:
        """Follows another path; state, head and records change in one durable step."""
        state, chain = self.state, self.state.chain
        fork, before = chain.fork_to(path), chain.number
        meet = before - len(fork.given_up)
        archived = chain.archive.blocks
        back = chain.follow(path)
        self._opened = Digest(b"")
        if len(fork.adopted) == 1 and chain.head.kind is RecordKind.ROUND:
            state.deadlines.moved(now - state.pulse.moved)
        state.pulse.moved = now
        state.branches.forming = None
        updates: storage_keys.Updates = {storage_keys.HEAD: chain.head.hash}
        if landed:
            state.saved.past.floor = chain.number
            updates |= storage_keys.floor_updates(chain.number)
        if fork.given_up:
            updates |= state.saved.past.part(before, meet)
        updates |= storage_keys.reopened_updates(chain.archive.blocks, archived)
        for record in (*back, *fork.adopted):
            updates |= storage_keys.record_updates(record, chain.certificate(record.hash))
        last = chain.number + (0 if state.is_over else chain.open_rounds)
        state.rounds = {
            key: place
            for key, place in state.rounds.items()
            if chain.number < key.number <= last and key.base == chain.base_of(key.number)
        }
        self._elections.retain()
        recent = chain.number - 4 * len(state.settings.fragment_sizes)
        state.held = {root: number for root, number in state.held.items() if number > recent}
        updates |= state.saved.expire(recent - HISTORY_ROUNDS)
        blocks = list[Block]()
        while folded := chain.fold(state.settings.kept_records, state.target):
            updates |= storage_keys.folded_updates(folded)
            blocks.append(folded.block)
        if blocks:
            updates |= state.saved.forget_stops()
        return [Adopt(fork, chain.path, updates, tuple(blocks))]
