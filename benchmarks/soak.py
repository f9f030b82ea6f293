"""A long run under strikes: does a peer that lives through all of it grow?

Real peers on the loopback are killed, frozen and cut off by a seed, one strike about every half a
minute, but for the first one, whose process and daemon live from the beginning to the end. Their
memory, open files, threads and the size of their folder are read while the run lasts; what they grow
by in an hour is the slope between samples, leaving out the first sixth of the run, in which buffers
and caches come to their size.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.report_line import Say, benchmark_parser, report
from runnel.clock import SystemClock
from runnel.errors import RunnelError
from runnel.tools.chaos import run_chaos
from runnel.tools.chaos_options import ChaosOptions
from runnel.tools.chaos_plan import Kind, Strike, draw
from runnel.tools.live import Mode

PEERS = 4
MINUTES, QUICK_MINUTES = 120.0, 1.0
KINDS = (Kind.KILL, Kind.FREEZE, Kind.CUT, Kind.LEAVE)
STRETCH = 5.0
"""Times between strikes are this many times those of a chaos run: a soak is about time, not blows."""
SPARED = 0
WARM_UP_SHARE = 1 / 6
SAMPLES = 240
"""About how many are taken; the slope compares all pairs of them."""

_SPARED_HOME = f"peer-{SPARED}"


@dataclass(frozen=True, slots=True)
class Sample:
    """What the spared peer holds at one moment: bytes, numbers, and bytes of its folder."""

    at_s: float
    rss: float
    daemon_rss: float
    files: float
    threads: float
    disk: float


def slope_per_hour(times_s: Sequence[float], values: Sequence[float]) -> float:
    """The median slope of all pairs of samples (Theil and Sen), which a few outliers do not move.

    Args:
        times_s: when each was taken, rising.
        values: as many; the result is in their unit per hour, 0 for fewer than two samples.
    """
    pairs = combinations(zip(times_s, values, strict=True), 2)
    slopes = [(b - a) / (t - s) * 3600 for (s, a), (t, b) in pairs if t > s]
    return statistics.median(slopes) if slopes else 0.0


def take_sample(home: Path, at_s: float) -> Sample | None:
    """Of the peer with that home among this process' children; None unless it and its daemon run."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if str(home) not in child.cmdline():
                continue
            daemons = child.children()
            if not daemons:
                return None
            return Sample(
                at_s,
                child.memory_info().rss,
                sum(daemon.memory_info().rss for daemon in daemons),
                child.num_fds() + sum(daemon.num_fds() for daemon in daemons),
                child.num_threads(),
                _disk_bytes(home),
            )
    return None


def _disk_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # rotated away meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def watch(home: Path, every_s: float, samples: list[Sample], done: threading.Event) -> None:
    """Adds a sample every so often until `done`."""
    clock = SystemClock()
    while not done.wait(every_s):
        sample = take_sample(home, clock.monotonic_s())
        if sample is not None:
            samples.append(sample)


def _planned(seed: int, lasts_s: float) -> list[Strike]:
    drawn = draw(seed, peers=PEERS, kinds=KINDS, lasts_s=lasts_s / STRETCH)
    return [replace(s, at_s=s.at_s * STRETCH) for s in drawn if s.peer != SPARED]


def measure(minutes: float, seed: int, say: Say) -> dict[str, Any]:
    """Everything, as JSON has it."""
    lasts_s, samples, done = minutes * 60, list[Sample](), threading.Event()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        options = ChaosOptions(out=Path(folder) / "run", peers=PEERS, minutes=minutes, seed=seed)
        home = options.out / "homes" / _SPARED_HOME
        every_s = max(1.0, lasts_s / SAMPLES)
        watcher = threading.Thread(target=watch, args=(home, every_s, samples, done))
        watcher.start()
        try:
            with (Path(folder) / "said.txt").open("w") as said:
                course, verdict = run_chaos(
                    options,
                    _planned(seed, lasts_s),
                    Console(file=said),
                    Mode.PLAIN,
                    lasts_s=lasts_s,
                )
        finally:
            done.set()
            watcher.join()
    if len(samples) < 2:
        raise RunnelError("stopped before there was anything to compare: let it run longer")
    for row in verdict.rows:
        say(f"{row.check}: {row.seen} (wanted: {row.wanted}) {'' if row.held else 'NO'}".rstrip())
    for problem in verdict.problems:
        say(problem)
    growth = _growth(samples, say)
    strikes = len(course.blows)
    return {"benchmark": "soak", "minutes": minutes, "seed": seed, "strikes": strikes} | {
        "stopped": course.stopped,
        "held": verdict.held,
        "samples": len(samples),
        **growth,
    }


def _growth(samples: Sequence[Sample], say: Say) -> dict[str, Any]:
    began_s, ended_s = samples[0].at_s, samples[-1].at_s
    warm = [s for s in samples if s.at_s >= began_s + WARM_UP_SHARE * (ended_s - began_s)]
    facts: dict[str, Any] = {}
    for name, unit in (
        ("rss", 1e6),
        ("daemon_rss", 1e6),
        ("disk", 1e6),
        ("files", 1),
        ("threads", 1),
    ):
        values = [getattr(sample, name) / unit for sample in warm]
        slope = slope_per_hour([sample.at_s for sample in warm], values)
        ending = "_mb" if unit != 1 else ""
        say(f"{name}{ending}: {values[0]:.1f} then {values[-1]:.1f}, {slope:+.2f} an hour")
        facts[f"{name}{ending}_first"], facts[f"{name}{ending}_last"] = (
            round(values[0], 2),
            round(values[-1], 2),
        )
        facts[f"{name}{ending}_per_hour"] = round(slope, 3)
    return facts


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("soak", "A long run under strikes: does a peer grow?")
    parser.add_argument("--minutes", type=float, default=0.0, help="how long (120)")
    parser.add_argument("--seed", type=int, default=11, help="of what is done to whom and when")
    options = parser.parse_args(arguments)
    minutes = options.minutes or (QUICK_MINUTES if options.quick else MINUTES)

    def run(say: Say) -> dict[str, Any]:
        return {"quick": options.quick, **measure(minutes, options.seed, say)}

    return report(run, json_only=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
