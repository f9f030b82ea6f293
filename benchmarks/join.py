"""Joining a running swarm: from a process' start to its first inner step, and what it costs the donors.

Peers, each a process with a daemon of its own, train a model of 10 million parameters over the
loopback; newcomers start one after the other. Each one is followed by a process that does the same
without a swarm: it loads torch and takes the first step. So one can tell what joining adds on the
same machine at the same time.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

from benchmarks.processes import Answer, Children
from benchmarks.report_line import Say, benchmark_parser, report
from runnel.clock import SystemClock
from runnel.errors import BugError

DONORS = 3
JOINS, QUICK_JOINS = 6, 2
PAUSE_S = 0.3
"""Between two steps of a donor: it stands for arithmetic on another device."""
SETTINGS = ("outer.every_steps=40", "rounds.snapshot_every=8")

_TURN_S = 1.0
_PART_S = 200.0
_POLL_S = 0.2
_STAGES = ("imported", "built", "joined", "stepped")


@dataclass(frozen=True, slots=True)
class Start:
    """A process that came to its first step.

    Attributes:
        began_s: just before it was started, by the machine's monotonic clock.
        at_s: when each stage was done.
        cpu_s: of the process itself up to then, without its daemon.
        bytes_by_donor: of state, by who gave them.
        fetch_s: from asking for the state to having it.
    """

    began_s: float
    at_s: dict[str, float]
    cpu_s: float
    bytes_by_donor: dict[str, int]
    fetch_s: float

    @property
    def seconds(self) -> float:
        """From the process' start to the end of its first step."""
        return self.at_s["stepped"] - self.began_s

    def stages(self) -> dict[str, float]:
        """Seconds of each stage that there was."""
        done = [self.began_s, *(self.at_s[name] for name in _STAGES if name in self.at_s)]
        names = [name for name in _STAGES if name in self.at_s]
        return {name: done[i + 1] - done[i] for i, name in enumerate(names)}


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
        rows = [[str(folder / f"donor-{place}"), str(PAUSE_S)] for place in range(DONORS)]
        with Children("benchmarks.join_child", rows, folder / "donors.log") as peers:
            invite = peers.ask(0, {"do": "found", "settings": list(SETTINGS)})["invite"]
            for place in range(1, DONORS):
                peers.ask(place, {"do": "join", "invite": invite})
            donors = Donors(peers)
            starts, alone = [], []
            try:
                donors.wait_for_members(DONORS)
                for number in range(joins):
                    alone.append(_start(folder, f"alone-{number}", ""))
                    starts.append(_start(folder, f"newcomer-{number}", invite))
                    say(_line(number, starts[-1], alone[-1]))
            finally:
                parts = donors.stop()
            peers.ask_all({"do": "leave"})
    spans = [(start.began_s, start.at_s["stepped"]) for start in starts]
    return _result(starts, alone, stall_share(parts, spans), stall_share(parts, [_around(parts)]))


def _start(folder: Path, name: str, invite: str) -> Start:
    """One process from its start to its first step and, with an invite, to its first part in a round."""
    began_s = SystemClock().monotonic_s()
    row = [str(folder / name), str(PAUSE_S)]
    with Children("benchmarks.join_child", [row], folder / f"{name}.log") as one:
        told = one.ask(0, {"do": "join", "invite": invite})
        if invite:
            one.ask(0, {"do": "take_part"})
        one.ask(0, {"do": "leave"})
    return Start(
        began_s, told["at_s"], told["cpu_s"], dict(told["bytes_by_donor"]), told["fetch_s"]
    )


def _around(parts: Sequence[Answer]) -> tuple[float, float]:
    return min(part["began_s"] for part in parts), max(part["ended_s"] for part in parts)


def _line(number: int, start: Start, alone: Start) -> str:
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in start.stages().items())
    given = ", ".join(f"{size / 1e6:.0f}" for size in start.bytes_by_donor.values())
    return (
        f"newcomer {number}: {start.seconds:.2f} s ({stages}; {start.cpu_s:.1f} s of CPU),"
        f" {given} MB of state in {start.fetch_s:.2f} s; without a swarm {alone.seconds:.2f} s"
        f" ({alone.cpu_s:.1f} s of CPU)"
    )


def _result(
    starts: Sequence[Start], alone: Sequence[Start], stall: float, stall_always: float
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
        "cpu_s_alone": round(statistics.median(start.cpu_s for start in alone), 3),
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
