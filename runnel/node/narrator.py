"""Turns steps of the chain into events: who was in, who joined or went, how long it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from runnel.clock import Clock, SystemClock
from runnel.node.chain import Fork
from runnel.node.events import (
    Branched,
    Event,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    RoundDecided,
    RoundLate,
)
from runnel.node.mailbox import DecidedMerge
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Record, RecordKind
from runnel.protocols import Traffic
from runnel.types import short


def stamped(event: Event, clock: Clock) -> Event:
    """The event with the time, if it has none yet."""
    return event if event.unix_s else replace(event, unix_s=clock.unix_s())


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
        self._sent_bytes = 0
        self._clock = clock or SystemClock()
        self._moved_at: float | None = None

    def note(self, event: Event) -> None:
        """Stamps an event with the time and passes it on."""
        self._note(stamped(event, self._clock))

    def moved(self, fork: Fork, merges: Sequence[DecidedMerge], now: float) -> None:
        """The chain took a step."""
        by_number = {merge.number: merge for merge in merges}
        for record in fork.adopted:
            self._decided(record, by_number.get(record.number), now)
            self._members(record)

    def _decided(self, record: Record, merge: DecidedMerge | None, now: float) -> None:
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
            )
        )
        catching_up = bool(self._state.target)  # it was away, which it has said already
        missed = record.kind is RecordKind.ROUND and merge is not None and not merge.included
        if missed and self._state.me in record.view and not catching_up:
            self.note(
                RoundLate(unix_s=0.0, round=record.number, reason="our contribution came too late")
            )

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
