"""The course of a demo: starts peers, kills one, lets one join late, watches until all have ended."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runnel.errors import (
    ConfigError,
    InputFileError,
    NetworkError,
    RunMismatchError,
    RunnelError,
    StorageError,
)
from runnel.node.events import PeerStarted, RoundDecided
from runnel.tools.demo_plan import DemoPlan, Kill, Start

if TYPE_CHECKING:
    from pathlib import Path

    from runnel.clock import Clock
    from runnel.node.events import Event
    from runnel.tools.live import View
    from runnel.tools.peer_processes import PeerProcess, PeerProcesses

POLL_S = 0.25
START_S = 120.0
"""How long the first peer may take until there is an invite: it loads torch and compiles kernels."""

GRACE_S = 45.0
"""How long after the run's end its last rounds and the peers' goodbyes may take."""

_CLASSES = {
    kind.exit_code: kind
    for kind in (ConfigError, InputFileError, NetworkError, RunMismatchError, StorageError)
}


@dataclass(frozen=True, slots=True)
class Launched:
    """A run that others can join, and the number of its model's parameters."""

    invite: str
    parameters: int


@dataclass(slots=True)
class Course:
    """How it went.

    Attributes:
        stopped: somebody pressed Ctrl-C.
        problems: what should not have happened, one sentence each.
    """

    stopped: bool = False
    problems: list[str] = field(default_factory=list)


def launch(
    peers: PeerProcesses, run_file: Path, stop: threading.Event, clock: Clock
) -> Launched | None:
    """Starts the first peer and waits for its invite; None if `stop` was set meanwhile.

    Raises:
        RunnelError: it ended or said nothing in time; of the kind that its exit code says.
    """
    first = peers.launch(run_file)
    until = clock.monotonic_s() + START_S
    while not stop.wait(POLL_S):
        invite, parameters = first.invite(), _parameters(first)
        if invite and parameters:
            return Launched(invite, parameters)
        if not first.runs:
            raise _CLASSES.get(first.fate.exit_code or 0, RunnelError)(
                f"{first.fate.name} did not start: {first.last_words()}"
            )
        if clock.monotonic_s() > until:
            raise NetworkError(
                f"{first.fate.name} printed no invite for {START_S:.0f} s, expected it sooner: see"
                f" {first.log_path}"
            )
    return None


class Conductor:
    """Carries out the plan and passes on what the peers' journals say.

    Args:
        peers: number 0 runs already.
        plan: who starts and who is killed when.
        invite: for those who join.
        lasts_s: from the first peer's start to the run's end.
        clock: whose seconds those are.
    """

    def __init__(
        self, peers: PeerProcesses, plan: DemoPlan, invite: str, lasts_s: float, clock: Clock
    ) -> None:
        self.course = Course()
        self._peers, self._plan, self._invite = peers, plan, invite
        self._lasts_s, self._clock = lasts_s, clock
        self._began_unix_s = peers.all[0].fate.started_unix_s
        self._ids: dict[str, int] = {}
        self._contributed: set[int] = set()
        self._missed: set[int] = set()

    def run(self, view: View, stop: threading.Event) -> Course:
        """Returns when all peers have ended, or were made to."""
        while self._peers.running():
            if stop.wait(POLL_S):
                self.course.stopped = True
                self._peers.leave()
                break
            self._follow(view)
            elapsed_s = self._clock.unix_s() - self._began_unix_s
            for step in self._plan.due(elapsed_s, self._contributed):
                self._carry_out(step, view)
            self._look_after(elapsed_s)
        self._follow(view)
        self._conclude()
        return self.course

    def _carry_out(self, step: Start | Kill, view: View) -> None:
        if isinstance(step, Start):
            self._peers.join(step.index, self._invite)
            return
        if self._peers.all[step.index].runs:
            killed_s = self._peers.kill(step.index)
            view.killed(self._peers.all[step.index].fate.name, killed_s)

    def _follow(self, view: View) -> None:
        for index, peer in self._peers.all.items():
            for event in peer.tail.new_events():
                self._take(index, event)
                view.feed(event, source=peer.fate.name)

    def _take(self, index: int, event: Event) -> None:
        if isinstance(event, PeerStarted):
            self._ids[event.peer] = index
            if index == 0:
                self._began_unix_s = event.unix_s  # the run's minutes count from about here
        elif isinstance(event, RoundDecided):
            known = (self._ids.get(name) for name in event.contributors)
            self._contributed.update(number for number in known if number is not None)

    def _look_after(self, elapsed_s: float) -> None:
        """Notes who failed, and ends those who go on for too long."""
        for index, peer in self._peers.all.items():
            fate = peer.fate
            if not peer.runs and fate.exit_code and not fate.forced and fate.killed_unix_s is None:
                self._say_once(index, f"{fate.name} ended with code {fate.exit_code}")
        if elapsed_s > self._lasts_s + GRACE_S:
            late = self._peers.running()
            for peer in late:
                self.course.problems.append(
                    f"{peer.fate.name} still ran {GRACE_S:.0f} s after the run's end and was made to"
                    f" leave: see {peer.log_path}"
                )
                peer.fate.forced = True
            self._peers.leave()

    def _say_once(self, index: int, text: str) -> None:
        if index not in self._missed:
            self._missed.add(index)
            words = self._peers.all[index].last_words()
            self.course.problems.append(f"{text}: {words}")

    def _conclude(self) -> None:
        if self.course.stopped:  # who was asked to leave while it started ends by the signal
            self.course.problems += [
                f"{peer.fate.name} did not leave when asked"
                for peer in self._peers.all.values()
                if peer.fate.forced
            ]
            return
        self._look_after(0.0)
        victim = self._plan.victim
        if victim is None:
            return
        peer_ = self._peers.all.get(victim)
        if peer_ is None or peer_.fate.killed_unix_s is None:
            self.course.problems.append(
                f"peer {victim} was not killed as planned: it had no part in a round in time"
            )


def _parameters(peer: PeerProcess) -> int:
    path = peer.status_path()
    if path is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(path.read_bytes())["parameters"])
    return 0
