"""Bytes on the wire of real peers: against what `runnel plan` says, and how streaming flattens their peaks.

Four peers, a process and a daemon each, train on the loopback with steps of a fixed time, once with
fragments that travel in turn and once with the whole model at once, as often. What the transports of
all of them count is compared with the forecast, and the most that leaves a peer within a time with the
same of the other run: within half of the time between two streaming rounds, which is what an exchange is given
(`runnel.node.deadlines.BEHIND_SHARE`), and within all of it.
"""

from __future__ import annotations

import statistics
import tempfile
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import Answer, Children
from benchmarks.report_line import Say, benchmark_parser, report
from runnel.node.deadlines import BEHIND_SHARE
from runnel.node.forecast import Forecast, forecast, parse_crowds
from runnel.node.manifest import make_spec, parse_overrides

PEERS, LAYERS = 4, 8
"""A layer has a million parameters."""
FRAGMENTS, EVERY_STEPS = 4, 16
STEP_S = 0.5
WINDOWS, QUICK_WINDOWS = 6, 2
"""Rounds of each fragment that are counted."""

Sample = tuple[float, int]


def peak_bytes(samples: Sequence[Sample], window_s: float) -> int:
    """The most that was sent within any `window_s` between two samples.

    Args:
        samples: time in seconds and bytes sent until then, both rising.
        window_s: above 0.
    """
    times = [time for time, _ in samples]
    most = 0
    for time, sent in samples:
        first = bisect_left(times, time - window_s)
        most = max(most, sent - samples[first][1])
    return most


def bytes_per_round(rounds_at: Sequence[Sample]) -> float:
    """Bytes from the end of one round to the end of the next, the mean of all that were seen."""
    return (rounds_at[-1][1] - rounds_at[0][1]) / (len(rounds_at) - 1)


def measure(windows: int, say: Say) -> dict[str, Any]:
    """Everything, as JSON has it."""
    between_s = EVERY_STEPS * STEP_S / FRAGMENTS
    peaks, parts = [], []
    for fragments in (FRAGMENTS, 1):
        answers, planned = _run(fragments, windows * fragments)
        sent = statistics.fmean(bytes_per_round(answer["rounds_at"]) for answer in answers)
        peaks.append([_usual_peak(answers, share * between_s) for share in (BEHIND_SHARE, 1.0)])
        parts.append(sent / planned.sent_bytes)
        say(
            f"{fragments} fragments: {sent / 1e6:.3f} MB a round and peer, planned"
            f" {planned.sent_bytes / 1e6:.3f}; at most {peaks[-1][0] / 1e6:.3f} MB in"
            f" {BEHIND_SHARE * between_s:g} s, {peaks[-1][1] / 1e6:.3f} MB in {between_s:g} s"
        )
    return {
        "benchmark": "bandwidth",
        "fragments": FRAGMENTS,
        "peak_of_unstreamed": round(peaks[0][0] / peaks[1][0], 4),
        "interval_peak_of_unstreamed": round(peaks[0][1] / peaks[1][1], 4),
        "sent_of_planned": round(parts[0], 4),
        "unstreamed_sent_of_planned": round(parts[1], 4),
    }


def _usual_peak(answers: Sequence[Answer], window_s: float) -> float:
    """The median of the peers' peaks in the rounds that are counted."""
    return statistics.median(
        peak_bytes(
            [sample for sample in answer["samples"] if sample[0] >= answer["rounds_at"][0][0]],
            window_s,
        )
        for answer in answers
    )


def _run(fragments: int, rounds: int) -> tuple[list[Answer], Forecast]:
    """What each peer counted in so many rounds, and what was planned."""
    settings = [
        f"outer.fragments={fragments}",
        f"outer.every_steps={EVERY_STEPS}",
        f"rounds.open={max(1, fragments - 2)}",
    ]
    spec = make_spec(parse_overrides(["run.name=bandwidth", *settings]), source="benchmark")
    with tempfile.TemporaryDirectory(prefix="bandwidth-") as name:
        folder = Path(name)
        rows = [[str(folder / f"home{i}"), "127.0.0.1", str(LAYERS)] for i in range(PEERS)]
        with Children("benchmarks.stall_child", rows, folder / "peers.log") as peers:
            invite = peers.ask(0, {"do": "found", "settings": settings})["invite"]
            for place in range(1, PEERS):
                peers.ask(place, {"do": "join", "invite": invite})
            peers.ask_all({"do": "gather", "members": PEERS, "step_s": STEP_S})
            answers = peers.ask_all({"do": "count", "rounds": rounds, "step_s": STEP_S})
            peers.ask_all({"do": "close"})
    return answers, forecast(spec, answers[0]["sizes"], parse_crowds(f"lab:{PEERS}"), STEP_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("bandwidth", "Bytes on the wire, planned and seen, and their peaks.")
    options = parser.parse_args(arguments)
    windows = QUICK_WINDOWS if options.quick else WINDOWS

    def run(say: Say) -> dict[str, Any]:
        return {"quick": options.quick, **measure(windows, say)}

    return report(run, json_only=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
