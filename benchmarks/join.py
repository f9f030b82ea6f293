"""Joining a running swarm: from a process' start to its first inner step, and what it costs the donors.

Peers, each a process with a daemon of its own, train a model of 10 million parameters over the
loopback; newcomers, each a `runnel join INVITE`, start one after the other. Before each one a process
takes the same step without a swarm: it loads torch, makes the model and its optimizer. So one can tell
what joining adds on the same machine at the same time.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

from benchmarks.processes import Answer, Children, cpu_of
from benchmarks.report_line import Say, benchmark_parser, report
from runnel.clock import SystemClock
from runnel.errors import BugError
from runnel.node.events import (
    Event,
    InnerProgress,
    MergeApplied,
    PeerReady,
    PeerStarted,
    StateFetched,
)
from runnel.tools.peer_processes import LEAVE_S, PROGRAM, Fate, PeerProcess, environment

DONORS = 3
JOINS, QUICK_JOINS = 6, 2
PAUSE_S = 0.3
"""Between two steps of a donor: it stands for arithmetic on another device."""
SETTINGS = (
    "model.layers=6",
    "model.heads=6",
    "model.width=384",
    "model.context=16",
    "data.batch_size=1",
    "outer.every_steps=40",
    "rounds.snapshot_every=8",
)
TEXT_BYTES = 1 << 20

_TURN_S = 1.0
_PART_S = 200.0
_POLL_S = 0.2
_LOOK_S = 0.02
_STAGES = ("started", "ready", "stepped")


@dataclass(slots=True)
class Start:
    """A peer on its way to its first step and its first part in a round.

    Attributes:
        began_s: just before its process was started, in seconds since 1970, as all times here.
        at_s: when each stage was done: its network known and the state there, ready, one step taken.
        cpu_s: of the process and its daemon up to there.
        bytes_by_donor: of state, by who gave them.
        fetch_s: from asking for the state to having it.
        takes_part: whether a decided round holds something of it.
    """

    began_s: float
    at_s: dict[str, float] = field(default_factory=dict)
    cpu_s: float = 0.0
    bytes_by_donor: Mapping[str, int] = field(default_factory=dict)
    fetch_s: float = 0.0
    takes_part: bool = False

    @property
    def seconds(self) -> float:
        """From the process' start to the end of its first step."""
        return self.at_s["stepped"] - self.began_s

    def stages(self) -> dict[str, float]:
        """Seconds of each stage."""
        done = [self.began_s, *(self.at_s[name] for name in _STAGES)]
        return {name: done[i + 1] - done[i] for i, name in enumerate(_STAGES)}

    def take(self, event: Event) -> None:
        """Notes what a newcomer's journal says."""
        match event:
            case PeerStarted():
                self.at_s["started"] = event.unix_s
            case StateFetched():
                self.bytes_by_donor, self.fetch_s = event.bytes_by_donor, event.seconds
            case PeerReady():
                self.at_s["ready"] = event.unix_s
            case InnerProgress():
                self.at_s.setdefault("stepped", event.unix_s)
            case MergeApplied():
                self.takes_part = self.takes_part or event.included
            case _:
                pass


@dataclass(frozen=True, slots=True)
class Alone:
    """The same step in a process without a swarm."""

    seconds: float
    cpu_s: float


class Donors:
    """Peers that train all the time, and how long their trainers were held up, second by second."""

    def __init__(self, peers: Children) -> None:
        self._peers = peers
        self._stop = threading.Event()
        self._newest: list[Answer] = [{"included": 0, "members": 0} for _ in range(len(peers))]
        self._pool = ThreadPoolExecutor(len(peers))
        self._training = [self._pool.submit(self._train, i) for i in range(len(peers))]

    def wait_for_members(self, count: int) -> None:
        """Returns once all have given something to a round of a run with so many members.

        Raises:
            BugError: that takes too long.
        """
        deadline_s = SystemClock().monotonic_s() + _PART_S
        while not all(place["included"] and place["members"] >= count for place in self._newest):
            if SystemClock().monotonic_s() > deadline_s or any(t.done() for t in self._training):
                raise BugError(
                    f"{count} peers do not take part after {_PART_S:g} s: {self._newest}"
                )
            sleep(_POLL_S)

    def stop(self) -> list[Answer]:
        """Ends training; all parts of it, of all peers."""
        self._stop.set()
        parts = [part for training in self._training for part in training.result()]
        self._pool.shutdown()
        return parts

    def _train(self, place: int) -> list[Answer]:
        parts = []
        while not self._stop.is_set():
            parts.append(self._peers.ask(place, {"do": "train", "seconds": _TURN_S}))
            self._newest[place] = parts[-1]
        return parts


def stall_share(parts: Sequence[Answer], spans: Sequence[tuple[float, float]]) -> float:
    """Of the time of the parts of training that touch any span, the share in which trainers were held up.

    Args:
        parts: with `began_s`, `ended_s` and `stalled_s`.
        spans: beginnings and ends, on the same clock.
    """
    inside = [
        part
        for part in parts
        if any(part["began_s"] < end and part["ended_s"] > begin for begin, end in spans)
    ]
    whole_s = sum(part["ended_s"] - part["began_s"] for part in inside)
    return sum(part["stalled_s"] for part in inside) / whole_s if whole_s else 0.0


def measure(joins: int, say: Say) -> dict[str, Any]:
    """Everything, as JSON has it."""
    with tempfile.TemporaryDirectory(prefix="join-") as name:
        folder = Path(name)
        (folder / "text").write_bytes(os.urandom(TEXT_BYTES // 2).hex().encode())
        settings = [*SETTINGS, f"data.text={folder / 'text'}"]
        rows = [[str(folder / f"donor-{place}"), str(PAUSE_S)] for place in range(DONORS)]
        with Children("benchmarks.join_child", rows, folder / "donors.log") as peers:
            invite = peers.ask(0, {"do": "found", "settings": settings})["invite"]
            for place in range(1, DONORS):
                peers.ask(place, {"do": "join", "invite": invite})
            donors = Donors(peers)
            starts, alone = list[Start](), list[Alone]()
            try:
                donors.wait_for_members(DONORS)
                for number in range(joins):
                    alone.append(_step_alone(folder, number, settings))
                    starts.append(_join(folder, number, invite))
                    say(_line(number, starts[-1], alone[-1]))
            finally:
                parts = donors.stop()
            peers.ask_all({"do": "leave"})
    spans = [(start.began_s, start.at_s["stepped"]) for start in starts]
    return _result(starts, alone, stall_share(parts, spans), stall_share(parts, [_around(parts)]))


def _join(folder: Path, number: int, invite: str) -> Start:
    """A newcomer from its process' start until it takes part; then it leaves."""
    clock = SystemClock()
    start, name = Start(clock.unix_s()), f"newcomer-{number}"
    command = [*PROGRAM, "join", invite]
    peer = PeerProcess(Fate(name, start.began_s), folder, command, environment(os.environ))
    try:
        _follow(peer, start, lambda: "stepped" in start.at_s, _LOOK_S)
        start.cpu_s = cpu_of({peer.pid})
        _follow(peer, start, lambda: start.takes_part, _POLL_S)
        peer.ask_to_leave()
        peer.wait(LEAVE_S)
    finally:
        peer.kill()
        peer.wait(LEAVE_S)
    return start


def _follow(peer: PeerProcess, start: Start, until: Callable[[], bool], every_s: float) -> None:
    deadline_s = SystemClock().unix_s() + _PART_S
    while not until():
        if not peer.runs or SystemClock().unix_s() > deadline_s:
            raise BugError(f"a newcomer takes no part: {peer.last_words()}")
        sleep(every_s)
        for event in peer.tail.new_events():
            start.take(event)


def _step_alone(folder: Path, number: int, settings: Sequence[str]) -> Alone:
    began_s, name = SystemClock().monotonic_s(), f"alone-{number}"
    row = [str(folder / name), str(PAUSE_S)]
    with Children("benchmarks.join_child", [row], folder / f"{name}.log") as one:
        told = one.ask(0, {"do": "step_alone", "settings": list(settings)})
    return Alone(told["stepped_s"] - began_s, told["cpu_s"])


def _around(parts: Sequence[Answer]) -> tuple[float, float]:
    return min(part["began_s"] for part in parts), max(part["ended_s"] for part in parts)


def _line(number: int, start: Start, alone: Alone) -> str:
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in start.stages().items())
    given = ", ".join(f"{size / 1e6:.0f}" for size in start.bytes_by_donor.values())
    return (
        f"newcomer {number}: {start.seconds:.2f} s ({stages}; {start.cpu_s:.1f} s of CPU),"
        f" {given} MB of state in {start.fetch_s:.2f} s; without a swarm {alone.seconds:.2f} s"
        f" ({alone.cpu_s:.1f} s of CPU)"
    )


def _result(
    starts: Sequence[Start], alone: Sequence[Alone], stall: float, stall_always: float
) -> dict[str, Any]:
    seconds, floor = [s.seconds for s in starts], [s.seconds for s in alone]
    stages = {
        name: round(statistics.median(start.stages()[name] for start in starts), 3)
        for name in _STAGES
    }
    return {
        "joins": len(starts),
        "seconds_to_first_step": round(statistics.median(seconds), 3),
        "seconds_to_first_step_max": round(max(seconds), 3),
        "seconds_alone": round(statistics.median(floor), 3),
        "seconds_beyond_alone": round(statistics.median(seconds) - statistics.median(floor), 3),
        "cpu_s": round(statistics.median(start.cpu_s for start in starts), 3),
        "cpu_s_alone": round(statistics.median(one.cpu_s for one in alone), 3),
        "stages_s": stages,
        "fetch_s": round(statistics.median(start.fetch_s for start in starts), 3),
        "donors": min(len(start.bytes_by_donor) for start in starts),
        "bytes_by_donor": [sorted(start.bytes_by_donor.values()) for start in starts],
        "donor_stall_share": round(stall, 5),
        "stall_share_always": round(stall_always, 5),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("join", "Joining a running swarm, and what it costs the donors.")
    parser.add_argument("--joins", type=int, default=0, help="how many newcomers")
    options = parser.parse_args(arguments)
    joins = options.joins or (QUICK_JOINS if options.quick else JOINS)

    def run(say: Say) -> dict[str, Any]:
        return {"benchmark": "join", "quick": options.quick, **measure(joins, say)}

    return report(run, json_only=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
