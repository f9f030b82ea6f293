"""What a home link costs the trainer, and what one slow link costs the others.

Four real peers, each in a network namespace of its own behind a link of 20 Mbit/s both ways (a token
bucket), train a model of ten million parameters with the settings of run.toml: 4 bits both ways, four
fragments. An inner step takes a fixed time (`benchmarks.stall_child` says why). Then one link is made
ten times slower while they train, and the same is measured again. Linux, as root.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.namespaces import Namespaces
from benchmarks.processes import Answer, Children
from benchmarks.report_line import Say, benchmark_parser, report

PEERS = 4
LAYERS = 10
"""Of a million parameters each."""
STEP_S = 0.5
EVERY_STEPS = 60
SECONDS, QUICK_SECONDS = 120.0, 45.0
FAST_MBIT, SLOW_MBIT = 20.0, 2.0
SETTLE_S, QUICK_SETTLE_S = 240.0, 30.0
"""Before the slow link is measured: its peer learns what it carries, and catches up with what that cost."""
SLOW = PEERS - 1


def measure(seconds: float, settle_s: float, say: Say) -> dict[str, Any]:
    """Everything, as JSON has it."""
    with (
        tempfile.TemporaryDirectory(prefix="stall-") as name,
        Namespaces("stall") as net,
    ):
        hosts = [net.host(f"peer{i}", rate_mbit=FAST_MBIT) for i in range(PEERS)]
        rows = [
            [str(Path(name) / f"home{i}"), host.address, str(LAYERS)]
            for i, host in enumerate(hosts)
        ]
        starters = [host.popen for host in hosts]
        with Children("benchmarks.stall_child", rows, Path(name) / "stall.log", starters) as peers:
            settings = [f"outer.every_steps={EVERY_STEPS}"]
            founded = peers.ask(0, {"do": "found", "settings": settings})
            for place in range(1, PEERS):
                peers.ask(place, {"do": "join", "invite": founded["invite"]})
            peers.ask_all({"do": "gather", "members": PEERS, "step_s": STEP_S})
            say(f"{PEERS} peers, {founded['parameters']:,} parameters, {FAST_MBIT:g} Mbit/s each")
            train = {"do": "train", "step_s": STEP_S}
            even = peers.ask_all({**train, "seconds": seconds})
            _tell("all links alike", even, say)
            hosts[SLOW].set_rate(SLOW_MBIT)
            peers.ask_all({**train, "seconds": settle_s})
            uneven = peers.ask_all({**train, "seconds": seconds})
            _tell(f"peer {SLOW} at {SLOW_MBIT:g} Mbit/s", uneven, say)
            peers.ask_all({"do": "close"})
    return {
        "benchmark": "stall",
        "parameters": founded["parameters"],
        "stall_share": round(max(map(_stall, even)), 5),
        "stall_share_beside_slow": round(max(map(_stall, uneven[:SLOW])), 5),
        "slow_peer_slowdown": round(_slowdown(even, uneven), 3),
        "step_slowdown": round(_steps(even[:SLOW]) / _steps(uneven[:SLOW]), 3),
        "round_s": [round(_round_s(answers), 2) for answers in (even, uneven)],
        "slow_peer_slices": round(uneven[SLOW]["included"] / max(1, uneven[SLOW]["slices"]), 3),
        "slow_peer_sent": round(1 - uneven[SLOW]["withheld"] / max(1, uneven[SLOW]["slices"]), 3),
        "fast_peer_slices": round(_fast_slices(uneven), 3),
        "aborts": max(answer["aborts"] for answer in (*even, *uneven)),
    }


def _stall(answer: Answer) -> float:
    return float(answer["stalled_s"] / answer["seconds"])


def _steps(answers: Sequence[Answer]) -> float:
    """Steps a second of the slowest."""
    return float(min(answer["steps"] / answer["seconds"] for answer in answers))


def _round_s(answers: Sequence[Answer]) -> float:
    """Seconds from one decided round to the next, as the peers with fast links saw it."""
    return float(
        statistics.median(
            answer["seconds"] / max(1, len(answer["rounds"])) for answer in answers[:SLOW]
        )
    )


def _slowdown(even: Sequence[Answer], uneven: Sequence[Answer]) -> float:
    return _round_s(uneven) / _round_s(even)


def _fast_slices(answers: Sequence[Answer]) -> float:
    """Of the slices that peers with fast links committed to, the part that was included."""
    included = sum(answer["included"] for answer in answers[:SLOW])
    return float(included / max(1, sum(answer["slices"] for answer in answers[:SLOW])))


def _tell(what: str, answers: Sequence[Answer], say: Say) -> None:
    say(what)
    say(
        f"{'peer':>6} {'steps':>6} {'stall':>7} {'rounds':>7} {'slices in':>10} {'withheld':>9}"
        f" {'link Mbit/s':>12} {'up Mbit/s':>10} {'down':>6} {'deadline s':>11}"
    )
    for place, answer in enumerate(answers):
        up, down = (
            8e-6 * answer[key] / answer["seconds"] for key in ("sent_bytes", "received_bytes")
        )
        say(
            f"{place:>6} {answer['steps']:>6} {_stall(answer):>7.2%} {len(answer['rounds']):>7}"
            f" {answer['included']:>4}/{answer['slices']:<5} {answer['withheld']:>9}"
            f" {answer['uplink_mbit']:>12.1f} {up:>10.2f} {down:>6.2f} {answer['deadline_s']:>11.2f}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("stall", "What home links, and a slow one among them, cost.")
    options = parser.parse_args(arguments)
    seconds = QUICK_SECONDS if options.quick else SECONDS
    settle_s = QUICK_SETTLE_S if options.quick else SETTLE_S

    def run(say: Say) -> dict[str, Any]:
        return {"quick": options.quick, **measure(seconds, settle_s, say)}

    return report(run, json_only=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
