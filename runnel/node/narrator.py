"""Turns steps of the chain into events: who was in, who joined or went, how long it took."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from runnel.clock import Clock, SystemClock
from runnel.node.actions import Handover
from runnel.node.chain import Fork
from runnel.node.events import (
    Branched,
    CaughtUp,
    Event,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    ResidualCut,
    RoundCommitted,
    RoundDecided,
    RoundLate,
)
from runnel.node.mailbox import DecidedMerge, HandedOver
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Record, RecordKind
from runnel.protocols import Traffic
from runnel.types import short


def stamped(event: Event, clock: Clock) -> Event:
    """The event with the time, if it has none yet."""
    return event if event.unix_s else replace(event, unix_s=clock.unix_s())


_MANY = 4
"""So many records at once, or more, were missed: fewer come late now and then."""


@dataclass(slots=True)
class _Away:
    """What was missed so far."""

    first: int
    since: float
    kinds: Counter[RecordKind] = field(default_factory=Counter)
    included: int = 0
    given_up: int = 0


class Narrator:
    """Stamps and passes on events; derives those that follow from the chain."""

    def __init__(
        self,
        state: ProtocolState,
        note: Callable[[Event], None],
        traffic: Traffic,
        clock: Clock | None = None,
    ) -> None:
        self._state, self._note, self._traffic = state, note, traffic
        self._sent_bytes = self._withheld = 0
        self._cuts = False
        self._clock = clock or SystemClock()
        self._moved_at: float | None = None
        self._away: _Away | None = None

    def note(self, event: Event) -> None:
        """Stamps an event with the time and passes it on."""
        self._note(stamped(event, self._clock))

    def committed(self, handed: HandedOver, handover: Handover) -> None:
        """A share was encoded and, if it is in time, committed to."""
        pace, commitment = self._state.deadlines.pace, self._state.saved.commits.get(handover.key)
        withheld = len(commitment.withheld) if commitment else 0
        rate = pace.bits_s()
        paced, self._withheld = withheld != self._withheld, withheld
        self.note(
            RoundCommitted(
                unix_s=0.0,
                round=handover.key.number,
                fragment=handed.want.fragment,
                tokens=handed.tokens,
                steps=handed.steps,
                payload_bytes=handover.payload_bytes,
                slices=len(handover.slice_norms),
                withheld=withheld,
                uplink_mbit=rate / 1e6 if math.isfinite(rate) else 0.0,
                paced=paced,
            )
        )

    def moved(self, fork: Fork, merges: Sequence[DecidedMerge], now: float) -> None:
        """The chain took a step."""
        by_number = {merge.number: merge for merge in merges}
        missed = self._is_behind(fork.adopted[-1]) or len(fork.adopted) >= _MANY
        if missed and self._away is None:
            self._away = _Away(fork.adopted[0].number, now)
        for record in fork.adopted:
            merge = by_number.get(record.number)
            self._decided(record, merge, now, missed=missed)
            if merge is not None and merge.included:
                self._bounded(merge)
            self._members(record)
            if self._away is not None:
                self._away.kinds[record.kind] += 1
                self._away.included += merge is not None and merge.included
        if self._away is not None:
            self._away.given_up += len(fork.given_up)
            if not self._is_behind(fork.adopted[-1]):
                self._back(self._away, fork.adopted[-1].number, now)
                self._away = None

    def _is_behind(self, record: Record) -> bool:
        """Whether more is known to follow than the rounds that may be open."""
        state = self._state
        newest = max(state.chain.number, len(state.target) - 2)
        return newest - record.number >= _MANY

    def _back(self, away: _Away, last: int, now: float) -> None:
        """Tells in one line what was missed, if it was more than a few rounds."""
        if away.kinds.total() < _MANY:
            return
        told = CaughtUp(
            unix_s=0.0,
            first=away.first,
            last=last,
            records=away.kinds[RecordKind.ROUND],
            aborts=away.kinds[RecordKind.ABORT],
            branches=away.kinds[RecordKind.BRANCH],
            included=away.included,
            given_up=away.given_up,
            seconds=now - away.since,
        )
        self.note(told)

    def _decided(
        self, record: Record, merge: DecidedMerge | None, now: float, *, missed: bool
    ) -> None:
        seconds = 0.0 if self._moved_at is None else now - self._moved_at
        self._moved_at = now
        names = tuple(short(peer) for peer in record.view)
        if record.kind is RecordKind.BRANCH:
            self.note(Branched(unix_s=0.0, round=record.number, members=names))
        contributors = tuple(short(peer) for peer in record.contributors)
        kind = {RecordKind.ROUND: "record", RecordKind.ABORT: "abort", RecordKind.BRANCH: "branch"}
        self.note(
            RoundDecided(
                unix_s=0.0,
                round=record.number,
                kind=kind[record.kind],
                fragment=record.number % len(self._state.settings.fragment_sizes),
                contributors=contributors,
                members=len(names),
                seconds=seconds,
                sent_bytes=self._sent_since(),
                state_root=record.state_root.hex(),
                mean_norm=merge.mean_norm if merge else 0.0,
                deadline_s=self._state.deadlines.patience_s,
                slices=len(record.slices),
                included=self._included(record),
                missed=missed,
            )
        )
        catching_up = missed or bool(self._state.target)  # it was away, which is told of by itself
        late = record.kind is RecordKind.ROUND and merge is not None and not merge.included
        if late and self._state.me in record.view and not catching_up:
            self.note(
                RoundLate(unix_s=0.0, round=record.number, reason="our contribution came too late")
            )

    def _bounded(self, merge: DecidedMerge) -> None:
        """Tells of what a cap took."""
        cut, before, self._cuts = merge.merge.cut, self._cuts, merge.merge.cut > 0
        if cut > 0:
            self.note(
                ResidualCut(
                    unix_s=0.0,
                    round=merge.number,
                    fragment=merge.merge.fragment,
                    cut=cut,
                    again=before,
                )
            )

    def _included(self, record: Record) -> int:
        """How many slices hold this peer's share."""
        owners = [share.peer for share in record.shares]
        if self._state.me not in owners:
            return 0
        return sum(owners.index(self._state.me) in piece.included for piece in record.slices)

    def _sent_since(self) -> int:
        """Bytes sent since the record before."""
        before, self._sent_bytes = self._sent_bytes, self._traffic.sent()
        return self._sent_bytes - before

    def _members(self, record: Record) -> None:
        if record.parent not in self._state.chain:
            return
        before = set(self._state.chain.record(record.parent).view)
        for peer in sorted(set(record.view) - before):
            self.note(MemberJoined(unix_s=0.0, peer=short(peer)))
        for peer in sorted(before - set(record.view)):
            members = self._state.members
            left = members.leaving if peer == self._state.me else members.said_goodbye(peer)
            name = short(peer)
            gone = MemberLeft(unix_s=0.0, peer=name)
            lost = MemberRemoved(unix_s=0.0, peer=name, reason="not heard for several rounds")
            self.note(gone if left else lost)
