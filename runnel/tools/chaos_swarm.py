"""The course of a chaos run: starts peers, does to them what the plan says, lets them come back."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from runnel.node.events import Event, PeerStarted, RoundDecided
from runnel.tools.chaos_plan import ENDS_PROCESS, WORDS, Kind, Strike, most_at_once
from runnel.tools.peer_processes import LEAVE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runnel.clock import Clock
    from runnel.tools.live import View
    from runnel.tools.peer_processes import PeerProcess, PeerProcesses

POLL_S = 0.1
START_S = 180.0
"""How long it may take until all peers have a part in a round: each loads torch, all at once."""

RETURN_S = 120.0
"""How long after the last strike it may take until all have a part in a round again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Struck(Event):
    """A strike begins; said by the chaos run, not by the peer."""

    name: str
    what: str
    lasts_s: float

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"{self.name} is {self.what} for {self.lasts_s:.1f} s"


@dataclass(frozen=True, kw_only=True, slots=True)
class LetGo(Event):
    """A strike is over: the peer goes on, or is started again."""

    name: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"{self.name} may go on"


@dataclass(slots=True)
class Blow:
    """A strike that was carried out; times in seconds since 1970, `back_unix_s` None for not yet."""

    strike: Strike
    struck_unix_s: float
    back_unix_s: float | None = None

    def is_over(self, contributed_unix_s: float) -> bool:
        """Whether its peer has had a part in a round since it came back, given its newest part in one."""
        return self.back_unix_s is not None and contributed_unix_s > self.back_unix_s


@dataclass(slots=True)
class Course:
    """How it went.

    Attributes:
        blows: in the order of their beginnings.
        ids: each peer's number by its short id.
        ended_unix_s: when the peers were asked to leave.
        stopped: somebody pressed Ctrl-C.
        problems: what should not have happened, one sentence each.
    """

    blows: list[Blow] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)
    ended_unix_s: float = float("inf")
    stopped: bool = False
    problems: list[str] = field(default_factory=list)


class Conductor:
    """Carries out strikes on a swarm whose peers have all been started.

    A strike that is due waits until its peer and a majority beside it take part again.

    Args:
        peers: number 0 has launched the run; the others join it.
        strikes: what to do; times count from the moment when all have a part in a round.
        clock: for all times.
        lasts_s: what would begin later than that is left out.
    """

    def __init__(
        self,
        peers: PeerProcesses,
        strikes: Sequence[Strike],
        clock: Clock,
        *,
        lasts_s: float = float("inf"),
    ) -> None:
        self.course = Course()
        self._peers, self._clock, self._lasts_s = peers, clock, lasts_s
        self._due = list(strikes)
        self._contributed_s: dict[int, float] = {}
        self._elapsed_s = self._waited_s = 0.0
        self._newest_round = -1
        self._told: set[int] = set()

    def run(self, view: View, stop: threading.Event) -> Course:
        """Returns when all strikes are over and all peers take part again, or something went wrong."""
        if self._wait(self._all_contributed(0.0), START_S, view, stop, "had a part in a round"):
            began_s, waiting_s = self._clock.monotonic_s(), 0.0
            while not self._is_done(stop):
                self._follow(view)
                before_s, self._elapsed_s = self._elapsed_s, self._clock.monotonic_s() - began_s
                if self._elapsed_s > self._lasts_s:
                    self._due.clear()
                if self._has_to_wait():
                    self._waited_s += self._elapsed_s - before_s
                    waiting_s += self._elapsed_s - before_s
                else:
                    waiting_s = 0.0
                    self._strike(view)
                if waiting_s > RETURN_S:
                    self.course.problems.append(
                        f"a strike waited {RETURN_S:.0f} s for a majority that takes part: see the logs"
                    )
                self._let_go_due(view)
                self._look_after()
                stop.wait(POLL_S)
            since_s = self._clock.unix_s()
            if not self.course.problems and not stop.is_set():
                again = "had a part in a round again after the last strike"
                self._wait(self._all_contributed(since_s), RETURN_S, view, stop, again)
        self._release(view)
        self.course.stopped, self.course.ended_unix_s = stop.is_set(), self._clock.unix_s()
        return self.course

    def _is_done(self, stop: threading.Event) -> bool:
        struck = any(blow.back_unix_s is None for blow in self.course.blows)
        return stop.is_set() or bool(self.course.problems) or not (self._due or struck)

    def _all_contributed(self, since_unix_s: float) -> Callable[[], list[int]]:
        """What names the peers without a part in a round since then."""
        return lambda: [
            index
            for index in self._peers.all
            if self._contributed_s.get(index, 0.0) <= since_unix_s
        ]

    def _wait(
        self,
        missing: Callable[[], list[int]],
        within_s: float,
        view: View,
        stop: threading.Event,
        what: str,
    ) -> bool:
        until_s = self._clock.monotonic_s() + within_s
        while not stop.wait(POLL_S):
            self._follow(view)
            self._look_after()
            if self.course.problems:
                return False
            names = ", ".join(self._peers.all[index].fate.name for index in missing())
            if not names:
                return True
            if self._clock.monotonic_s() > until_s:
                self.course.problems.append(f"not all {what} within {within_s:.0f} s: {names}")
                return False
        return False

    def _follow(self, view: View) -> None:
        for index, peer in self._peers.all.items():
            for event in peer.tail.new_events():
                self._take(index, event)
                view.feed(event, source=peer.fate.name)

    def _take(self, index: int, event: Event) -> None:
        if isinstance(event, PeerStarted):
            self.course.ids[event.peer] = index
        elif isinstance(event, RoundDecided) and event.round > self._newest_round:
            self._newest_round = event.round  # who was away tells of earlier ones later
            for name in event.contributors:
                if name in self.course.ids:
                    self._contributed_s[self.course.ids[name]] = event.unix_s

    def _has_to_wait(self) -> bool:
        """Whether the strike that is due would leave no majority that takes part, or hit twice."""
        if not self._due or self._due[0].at_s + self._waited_s > self._elapsed_s:
            return False
        away = {
            blow.strike.peer
            for blow in self.course.blows
            if not blow.is_over(self._contributed_s.get(blow.strike.peer, 0.0))
        }
        return self._due[0].peer in away or len(away) >= most_at_once(len(self._peers.all))

    def _strike(self, view: View) -> None:
        if not self._due or self._due[0].at_s + self._waited_s > self._elapsed_s:
            return
        strike = self._due.pop(0)
        peer = self._peers.all[strike.peer]
        blow = Blow(strike, self._clock.unix_s())
        self.course.blows.append(blow)
        event = Struck(
            unix_s=blow.struck_unix_s,
            name=peer.fate.name,
            what=WORDS[strike.kind],
            lasts_s=strike.lasts_s,
        )
        view.feed(event)
        begin(peer, strike.kind)
        if strike.kind is Kind.KILL:
            view.killed(peer.fate.name, blow.struck_unix_s)

    def _let_go_due(self, view: View) -> None:
        now_s = self._clock.unix_s()
        for blow in self.course.blows:
            if blow.back_unix_s is None and blow.struck_unix_s + blow.strike.lasts_s <= now_s:
                self._let_go(blow, view)

    def _let_go(self, blow: Blow, view: View) -> None:
        peer, kind = self._peers.all[blow.strike.peer], blow.strike.kind
        if kind in ENDS_PROCESS:
            if peer.runs:  # it is still saying goodbye
                if self._clock.unix_s() > blow.struck_unix_s + blow.strike.lasts_s + LEAVE_S:
                    self._say_once(blow.strike.peer, f"did not leave within {LEAVE_S:.0f} s")
                return
            if kind is Kind.LEAVE and peer.fate.exit_code:
                self._say_once(blow.strike.peer, f"ended with code {peer.fate.exit_code}")
                return
            self._peers.start_again(blow.strike.peer)
        else:
            end(peer, kind)
        blow.back_unix_s = self._clock.unix_s()
        view.feed(LetGo(unix_s=blow.back_unix_s, name=peer.fate.name))

    def _release(self, view: View) -> None:
        """Lets everything go on that is frozen, so that it can be ended in order."""
        for blow in self.course.blows:
            if blow.back_unix_s is None and blow.strike.kind not in ENDS_PROCESS:
                self._let_go(blow, view)

    def _look_after(self) -> None:
        """Notes who ended although nobody told it to."""
        gone = {
            blow.strike.peer
            for blow in self.course.blows
            if blow.back_unix_s is None and blow.strike.kind in ENDS_PROCESS
        }
        for index, peer in self._peers.all.items():
            if index not in gone and not peer.runs:
                code = peer.fate.exit_code
                self._say_once(index, f"ended by itself with code {code}: {peer.last_words()}")

    def _say_once(self, index: int, text: str) -> None:
        if index not in self._told:
            self._told.add(index)
            self.course.problems.append(f"{self._peers.all[index].fate.name} {text}")


def begin(peer: PeerProcess, kind: Kind) -> None:
    """Strikes a peer."""
    match kind:
        case Kind.KILL:
            peer.kill()
        case Kind.LEAVE:
            peer.ask_to_leave()
        case Kind.FREEZE:
            peer.freeze()
        case Kind.SUSPEND | Kind.CUT | Kind.DAEMON:
            for daemon in peer.daemons():
                with suppress(psutil.NoSuchProcess):
                    daemon.kill() if kind is Kind.DAEMON else daemon.suspend()
            if kind is Kind.SUSPEND:
                peer.freeze()


def end(peer: PeerProcess, kind: Kind) -> None:
    """Lets a peer go on whose process has not ended."""
    if kind in (Kind.SUSPEND, Kind.CUT):
        for daemon in peer.daemons():
            with suppress(psutil.NoSuchProcess):
                daemon.resume()
    if kind in (Kind.SUSPEND, Kind.FREEZE):
        peer.thaw()
