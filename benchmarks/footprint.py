"""What a peer costs beside its training: memory beyond torch's own, and the start of the command line.

Two peers, each a process of its own, train a stack of linear layers over the loopback through a pin
of their state; a third process takes the same steps without a peer. What the peers' processes need
beyond it is the peer's (its daemon is a process of its own, some 70 MB).
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import Children
from benchmarks.report_line import Say, benchmark_parser, report

LAYERS, QUICK_LAYERS = 32, 4
"""Of a million parameters each."""
ALLOWANCE_BYTES = 150_000_000
ROUNDS, QUICK_ROUNDS = 24, 20
STEPS = 20
SETTINGS = ("outer.every_steps=8", "rounds.deadline_ceiling_s=60.0", "rounds.stall_s=600.0")
SEED_SETTINGS = ("seeds.method=spsa", "seeds.lr=0.001", "rounds.snapshot_every=8")
HELP_RUNS = 7


def measure_memory(layers: int, rounds: int, say: Say) -> dict[str, Any]:
    """Peaks of a process without and of two with a peer."""
    with tempfile.TemporaryDirectory(prefix="footprint-") as name:
        folder = Path(name)
        with _children([folder / "alone"], layers, folder / "torch.log") as alone:
            plain = alone.ask(0, {"do": "train", "steps": STEPS, "rounds": 0})
        homes = [folder / "first", folder / "second"]
        with _children(homes, layers, folder / "runnel.log") as peers:
            invite = peers.ask(0, {"do": "found", "settings": list(SETTINGS)})["invite"]
            peers.ask(1, {"do": "join", "invite": invite})
            with_peer = peers.ask_all({"do": "train", "steps": STEPS, "rounds": rounds})
            peers.ask_all({"do": "close"})
    copy_bytes = 4 * plain["parameters"]
    beyond = [answer["peak_bytes"] - plain["peak_bytes"] for answer in with_peer]
    copies = [(size - ALLOWANCE_BYTES) / copy_bytes for size in beyond]
    say(f"{plain['parameters']:,} parameters, {copy_bytes / 1e6:.0f} MB a copy in fp32")
    say(f"torch alone: {plain['peak_bytes'] / 1e6:.0f} MB at its peak")
    for place, (size, count) in enumerate(zip(beyond, copies, strict=True)):
        who = "who founded the run" if place == 0 else "who joined it"
        say(f"{who}: {size / 1e6:.0f} MB more: {count:.2f} copies and 150 MB")
    return {
        "parameters": plain["parameters"],
        "torch_peak_mb": round(plain["peak_bytes"] / 1e6, 1),
        "peer_extra_mb": [round(size / 1e6, 1) for size in beyond],
        "copies_beyond_150_mb": [round(count, 2) for count in copies],
        "members": min(answer["members"] for answer in with_peer),
    }


def measure_seeds(layers: int, say: Say) -> dict[str, Any]:
    """What a peer of a run of shared seeds needs beyond forward passes, by weight: between two sizes of a model."""
    found = {count: _beyond_inference(count) for count in (layers // 2, layers)}
    (small, fewer), (large, more) = found[layers // 2], found[layers]
    each = (large - small) / (more - fewer)
    say(f"shared seeds: {large / 1e6:.0f} MB beyond forward passes, {each:.2f} bytes a weight")
    return {
        "seeds_extra_mb": round(large / 1e6, 1),
        "seeds_bytes_per_weight": round(each, 2),
    }


def _beyond_inference(layers: int) -> tuple[int, int]:
    """By how much a peer's peak is above that of forward passes, and the model's weights."""
    answers = []
    for settings in ((), SEED_SETTINGS):
        with tempfile.TemporaryDirectory(prefix="footprint-") as name:
            folder = Path(name)
            with _children([folder / "one"], layers, folder / "one.log") as child:
                asked = {"do": "tune", "settings": list(settings), "steps": STEPS}
                answers.append(child.ask(0, asked))
                child.ask(0, {"do": "close"})
    plain, tuned = answers
    return tuned["peak_bytes"] - plain["peak_bytes"], plain["parameters"]


def measure_help(say: Say) -> dict[str, Any]:
    """CPU seconds of ``runnel --help``, and whether it loads torch."""
    command = [sys.executable, "-m", "runnel", "--help"]
    spent = []
    for _ in range(HELP_RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "runnel", "--help"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    loads_torch = any(line.split("|")[-1].strip() == "torch" for line in traced.stderr.splitlines())
    say(f"runnel --help: {statistics.median(spent):.2f} s of CPU, torch loaded: {loads_torch}")
    return {
        "help_cpu_s": round(statistics.median(spent), 3),
        "help_cpu_s_min": round(min(spent), 3),
        "help_loads_torch": loads_torch,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("footprint", "A peer's memory, and the start of the command line.")
    options = parser.parse_args(arguments)
    layers = QUICK_LAYERS if options.quick else LAYERS
    rounds = QUICK_ROUNDS if options.quick else ROUNDS

    def run(say: Say) -> dict[str, Any]:
        return {
            "benchmark": "footprint",
            "quick": options.quick,
            **measure_help(say),
            **measure_memory(layers, rounds, say),
            **measure_seeds(layers, say),
        }

    return report(run, json_only=options.json)


def _children(homes: Sequence[Path], layers: int, log: Path) -> Children:
    rows = [[str(home), str(layers)] for home in homes]
    return Children("benchmarks.footprint_child", rows, log)


if __name__ == "__main__":
    raise SystemExit(main())
