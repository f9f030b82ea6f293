"""What a swarm adds to tuning by shared seeds: time per step, bytes per probe, and how long a newcomer takes.

Two peers, each a process with a daemon of its own and one thread, tune a byte-level GPT of 10 million
weights over the loopback, after each has made the same steps without a network at the same time. Then
a peer alone makes thousands of steps of next to no arithmetic on a million weights, and a newcomer
comes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import Answer, Children
from benchmarks.report_line import Say, benchmark_parser, report

PEERS, LAYERS, BATCH = 2, 6, 8
PROBES = 16
SETTINGS = ("rounds.snapshot_every=64", "seeds.lr=1e-5", "rounds.deadline_ceiling_s=30")

_MODULE = "benchmarks.spsa_swarm_child"


def measure_steps(folder: Path, steps: int, probes: int, say: Say) -> dict[str, Any]:
    """Seconds of a step in the swarm and in one process, and bytes, with so many probes per step."""
    rows = [
        [str(folder / f"peer-{place}-{probes}"), str(LAYERS), str(BATCH)] for place in range(PEERS)
    ]
    with Children(_MODULE, rows, folder / "peers.log") as peers:
        alone = peers.ask_all({"do": "alone", "steps": steps, "probes": probes})
        settings = [*SETTINGS, f"seeds.probes={probes}"]
        invite = peers.ask(0, {"do": "found", "settings": settings})["invite"]
        for place in range(1, PEERS):
            peers.ask(place, {"do": "join", "invite": invite, "newest": -1})
        members = 0
        while members < PEERS:
            members = min(one["members"] for one in peers.ask_all({"do": "tune", "steps": 1}))
        swarm = peers.ask_all({"do": "tune", "steps": steps})
        peers.ask_all({"do": "leave"})
    alone_s, pair_s, perturb_s = (
        sum(one[key] for one in alone) / PEERS for key in ("step_s", "pair_s", "perturb_s")
    )
    step_s = sum(median(one["walls"]) for one in swarm) / PEERS
    overhead_s = median(_beyond_arithmetic(swarm, perturb_s))
    receivers = PEERS - 1
    sent = sum(one["control_bytes"] / (one["rounds"] * probes * receivers) for one in swarm) / PEERS
    commit = max(one["commit_bytes"] for one in swarm)
    say(
        f"{probes} probes: a step takes {step_s:.3f} s in the swarm, {alone_s:.3f} s in one process; a"
        f" forward pair {pair_s:.3f} s, what the swarm adds {overhead_s * 1e3:.0f} ms; {commit} bytes a commitment, {sent:.0f} a probe with all votes"
    )
    return {
        "step_s": round(step_s, 4),
        "alone_s": round(alone_s, 4),
        "pair_s": round(pair_s, 4),
        "overhead_of_pair": round(overhead_s / pair_s, 4),
        "efficiency": round(alone_s / step_s, 4),
        "commit_bytes": commit,
        "bytes_per_probe": round(commit / probes, 2),
        "bytes_per_probe_with_votes": round(sent, 1),
    }


def _beyond_arithmetic(swarm: Sequence[Answer], perturb_s: float) -> list[float]:
    """Of each step, the seconds beyond the slowest peer's forward passes and perturbations: all wait for it."""
    steps = range(min(len(one["walls"]) for one in swarm))
    walls = [sum(one["walls"][step] for one in swarm) / len(swarm) for step in steps]
    slowest = [max(one["forwards"][step] for one in swarm) for step in steps]
    return [wall - slow - perturb_s for wall, slow in zip(walls, slowest, strict=True)]


def measure_join(folder: Path, steps: int, say: Say) -> dict[str, Any]:
    """A newcomer after so many steps, against what the perturbations of those steps took."""
    rows = [[str(folder / name), "0", "1"] for name in ("first", "second")]
    with Children(_MODULE, rows, folder / "join.log") as peers:
        alone = peers.ask(0, {"do": "alone", "steps": 200, "probes": 1})
        settings = [*SETTINGS, "seeds.probes=1"]
        invite = peers.ask(0, {"do": "found", "settings": settings})["invite"]
        peers.ask(0, {"do": "tune", "steps": steps})
        newest = peers.ask(0, {"do": "root"})["round"]
        joined = peers.ask(1, {"do": "join", "invite": invite, "newest": newest})
        here, there = peers.ask_all({"do": "root"})
        peers.ask_all({"do": "leave"})
    perturb_s = alone["perturb_s"] * steps
    say(
        f"after {steps} steps, whose perturbations took {perturb_s:.1f} s, a newcomer holds"
        f" {'the same' if here == there else 'OTHER'} bits in {joined['seconds']:.2f} s"
    )
    return {
        "steps": steps,
        "join_s": round(joined["seconds"], 3),
        "perturb_s": round(perturb_s, 3),
        "join_of_perturb": round(joined["seconds"] / perturb_s, 4),
        "identical_bits": here == there,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("spsa_swarm", "What a swarm adds to tuning by shared seeds.")
    options = parser.parse_args(arguments)
    steps, joins = (4, 500) if options.quick else (24, 10_000)

    def run(say: Say) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="spsa-") as name:
            folder = Path(name)
            one = measure_steps(folder, steps, 1, say)
            many = {} if options.quick else measure_steps(folder, 6, PROBES, say)
            return {
                "benchmark": "spsa_swarm",
                "quick": options.quick,
                **one,
                f"with_{PROBES}_probes": many,
                "join": measure_join(folder, joins, say),
            }

    return report(run, json_only=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
