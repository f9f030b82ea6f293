"""What simulated peers do, looked at from outside: in which part of a round each is, and for whom it waits.

The protocol of a peer is asked at each of its ticks; nothing is changed. What is kept are spans.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

from runnel.node.actions import Action, RoundKey
from runnel.node.protocol import RoundProtocol
from runnel.node.rounds import Round
from runnel.types import Digest, PeerId
from runnel.verification.votes import Electorate, Instance, majority


class Phase(StrEnum):
    """What a peer does for the next round to be decided."""

    AWAY = "catching up"
    TRAIN = "training"
    COMMIT = "commitments"
    SET = "set"
    SCATTER = "scatter"
    REDUCE = "reduce"
    GATHER = "gather"
    OUTCOME = "outcome"


@dataclass(frozen=True, slots=True)
class Span:
    """Peer `peer` was in a phase of a round, for seconds of the simulation; whom it waited for at last.

    `gone_on` if it went on without those.
    """

    peer: int
    round: int
    phase: Phase
    start_s: float
    end_s: float
    waited_for: tuple[int, ...] = ()
    gone_on: bool = False

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end_s - self.start_s


@dataclass(slots=True)
class _Open:
    """The span that a peer is in."""

    round: int
    phase: Phase
    start_s: float
    seen_s: float
    place: Round | None
    waits: tuple[PeerId, ...] = ()


_LONGEST_GAP_S = 1.0
"""Without a tick for longer a peer was frozen or gone: what it did before ends there."""


@dataclass(slots=True)
class Watcher:
    """All peers' spans. `names` are the peers' numbers by their ids."""

    names: dict[PeerId, int]
    spans: list[Span] = field(default_factory=list)
    _open: dict[int, _Open] = field(default_factory=dict)

    def look(self, peer: int, protocol: RoundProtocol, now: float) -> None:
        """Notes what a peer does now."""
        phase, place, number = _phase(protocol)
        known = self._open.get(peer)
        gap = known is not None and now - known.seen_s > _LONGEST_GAP_S
        if known is None or gap or (known.round, known.phase) != (number, phase):
            if known is not None:
                self._close(peer, known, known.seen_s if gap else now)
            first = _proposer(phase, place, protocol)
            known = self._open[peer] = _Open(number, phase, now, now, place, first)
        known.seen_s = now
        waits = _waits(phase, place, protocol)
        if waits:
            known.waits = waits

    def end(self, peer: int, now: float) -> None:
        """The peer's process ended."""
        known = self._open.pop(peer, None)
        if known is not None:
            self._close(peer, known, now)

    def finish(self, now: float) -> None:
        """Ends all spans."""
        for peer in list(self._open):
            self.end(peer, now)

    def _close(self, peer: int, known: _Open, now: float) -> None:
        waits, gone_on = known.waits, False
        if known.phase is Phase.COMMIT and known.place is not None:
            missing = [p for p in known.place.view if p not in known.place.commits]
            gone_on = bool(missing)
            waits = tuple(missing) or tuple(list(known.place.commits)[-1:])
        names = tuple(sorted(self.names[p] for p in waits if self.names.get(p, peer) != peer))
        self.spans.append(Span(peer, known.round, known.phase, known.start_s, now, names, gone_on))


def watched(protocol: RoundProtocol, watcher: Watcher, peer: int) -> RoundProtocol:
    """The protocol of a peer, looked at."""
    return cast(RoundProtocol, _Watched(protocol, watcher, peer))


class _Watched:
    def __init__(self, protocol: RoundProtocol, watcher: Watcher, peer: int) -> None:
        self._protocol, self._watcher, self._peer = protocol, watcher, peer

    def tick(self, now: float) -> list[Action]:
        """See `RoundProtocol.tick`."""
        actions = self._protocol.tick(now)
        self._watcher.look(self._peer, self._protocol, now)
        return actions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)


def _phase(protocol: RoundProtocol) -> tuple[Phase, Round | None, int]:
    """What a peer does for its next round, that round if it is open there, and its number."""
    state = protocol.state
    chain, me = state.chain, state.me
    number = chain.number + 1
    place = state.rounds.get(RoundKey(number, chain.base_of(number)))
    if place is None or me not in place.view or state.target:
        return Phase.AWAY, place, number
    if place.decided is None:
        if me not in place.commits:
            return Phase.TRAIN, place, number
        full = len(place.commits) == len(place.view)
        return (Phase.SET if full or place.sets else Phase.COMMIT), place, number
    if any(place.prepared.values()):
        return Phase.OUTCOME, place, number
    for index in _missing(place, state.held):
        if place.reducers(index)[0] == me:
            reducing = place.slices[index].reducing
            return (Phase.REDUCE if reducing else Phase.SCATTER), place, number
    return Phase.GATHER, place, number


def _waits(phase: Phase, place: Round | None, protocol: RoundProtocol) -> tuple[PeerId, ...]:
    """Whose part is missing now, where that changes from tick to tick."""
    state = protocol.state
    if place is None or phase not in {Phase.SCATTER, Phase.GATHER}:
        return ()
    missing = _missing(place, state.held)
    if phase is Phase.GATHER:
        return tuple(dict.fromkeys(place.reducers(index)[0] for index in missing))
    mine = (place.slices[i] for i in missing if place.reducers(i)[0] == state.me)
    arrived = set[Digest]().union(*(piece.arrived for piece in mine))
    return tuple(c.peer for c in place.decided or () if c.id not in arrived)


def _proposer(phase: Phase, place: Round | None, protocol: RoundProtocol) -> tuple[PeerId, ...]:
    """Who is first to propose what a peer begins to wait for."""
    if place is None or phase not in {Phase.SET, Phase.OUTCOME}:
        return ()
    number, head = place.key.number, protocol.state.chain.head.hash
    instance = (
        Instance("set", number, place.key.base)
        if phase is Phase.SET
        else Instance("outcome", number, head)
    )
    return (Electorate.of(instance, place.voters, majority).proposer(0),)


def _missing(place: Round, held: Container[Digest]) -> list[int]:
    """Slices of which no result is here."""
    return [
        index
        for index, piece in enumerate(place.slices)
        if not any(result.root in held for result in piece.results)
    ]
