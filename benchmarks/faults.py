"""Kills and freezes of real peers: what they cost the others, and whether anything is lost or differs.

Peers are processes with daemons of their own on the loopback; the strikes are drawn from a seed and
leave a majority alone at any time. What is counted comes from the peers' journals and from the state
on disk (`runnel.tools.chaos_verdict`, `runnel.tools.chaos_ledger`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.report_line import Say, benchmark_parser, report
from runnel.errors import RunnelError
from runnel.tools.chaos import run_chaos
from runnel.tools.chaos_options import ChaosOptions
from runnel.tools.chaos_plan import WORDS, Kind, draw
from runnel.tools.live import Mode

PEERS = 6
STRIKES, QUICK_STRIKES = 50, 5
LONGEST_S, QUICK_LONGEST_S = 14.0, 4.0
KINDS = (Kind.KILL, Kind.FREEZE)


def measure(strikes: int, longest_s: float, seed: int, parent: Path, say: Say) -> dict[str, Any]:
    """Everything, as JSON has it."""
    with tempfile.TemporaryDirectory(prefix="faults-", dir=parent) as folder:
        options = ChaosOptions(out=Path(folder) / "run", peers=PEERS, seed=seed, kinds=KINDS)
        planned = draw(seed, peers=PEERS, kinds=KINDS, count=strikes, longest_s=longest_s)
        say(f"{PEERS} peers, {strikes} kills and freezes by seed {seed}, at most two peers at once")
        with (Path(folder) / "said.txt").open("w") as said:
            course, verdict = run_chaos(options, planned, Console(file=said), Mode.PLAIN)
    if course.stopped:
        raise RunnelError("stopped before all strikes were carried out: there are no figures")
    say(f"{'at s':>6} {'':<36} {'for s':>6} {'pause s':>8} {'deadlines':>10}")
    for pause in verdict.pauses:
        strike = pause.blow.strike
        told = (
            "    nobody was left alone"
            if pause.seconds is None
            else f"{pause.seconds:>8.1f} {pause.deadlines:>10.2f}"
        )
        what = f"peer {strike.peer} {WORDS[strike.kind]}"
        say(f"{strike.at_s:>6.1f} {what:<36} {strike.lasts_s:>6.1f} {told}")
    for row in verdict.rows:
        say(f"{row.check}: {row.seen} (wanted: {row.wanted}) {'' if row.held else 'NO'}".rstrip())
    for problem in verdict.problems:
        say(problem)
    facts = verdict.as_json()
    del facts["event"]
    return {"benchmark": "faults", "peers": PEERS, "seed": seed, **facts}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("faults", "Kills and freezes of real peers, and what they cost.")
    parser.add_argument("--strikes", type=int, default=0, help="how many kills and freezes")
    parser.add_argument("--seed", type=int, default=4, help="of what is done to whom and when")
    options = parser.parse_args(arguments)
    strikes = options.strikes or (QUICK_STRIKES if options.quick else STRIKES)

    def run(say: Say) -> dict[str, Any]:
        longest_s = QUICK_LONGEST_S if options.quick else LONGEST_S
        parent = Path(tempfile.gettempdir())
        figures = measure(strikes, longest_s, options.seed, parent, say)
        return {"quick": options.quick, **figures}

    return report(run, json_only=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
