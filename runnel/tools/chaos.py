"""A chaos run: a real swarm on this machine whose peers are killed, frozen and cut off by a seed.

``python -m runnel.tools.chaos --peers 6 --minutes 10 --seed 7`` ends with a table of what was promised
and what was seen. Peers are processes with keys, folders and network daemons of their own; what runs
in them is an author's program whose every step can be accounted for (`runnel.tools.chaos_peer`).
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runnel.clock import Clock, SystemClock
from runnel.errors import EXIT_INTERRUPTED, RunnelError
from runnel.node.atomic import write_atomically
from runnel.tools.chaos_ledger import SETTINGS
from runnel.tools.chaos_options import ChaosOptions, parse_options
from runnel.tools.chaos_plan import Strike, draw
from runnel.tools.chaos_swarm import Conductor, Course
from runnel.tools.chaos_verdict import Verdict, judge
from runnel.tools.cli_errors import exit_code_of
from runnel.tools.cli_signals import stop_on_signals
from runnel.tools.demo_swarm import launch
from runnel.tools.live import LiveFacts, Mode, open_view
from runnel.tools.peer_processes import PeerProcesses

PROGRAM = (sys.executable, "-m", "runnel.tools.chaos_peer")
RUN_SETTINGS = (
    *SETTINGS,
    "outer.every_steps=48",
    "outer.fragments=3",
    "rounds.deadline_ceiling_s=6",
    "rounds.stall_s=30",
    "rounds.snapshot_every=16",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs with the options `argv` (default: this process's) and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return exit_code_of(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    options = parse_options(arguments, SystemClock().unix_s())
    if options is None:
        return 0
    console = Console()
    lasts_s = options.minutes * 60
    strikes = draw(options.seed, peers=options.peers, kinds=options.kinds, lasts_s=lasts_s)
    mode = Mode.JSON if options.as_json else Mode.AUTO
    course, verdict = run_chaos(options, strikes, console, mode, lasts_s=lasts_s)
    return _tell(options, course, verdict, console)


def run_chaos(
    options: ChaosOptions,
    strikes: Sequence[Strike],
    console: Console,
    mode: Mode,
    *,
    lasts_s: float = float("inf"),
    clock: Clock | None = None,
) -> tuple[Course, Verdict]:
    """Starts a swarm, strikes it, ends it; what happened and what held.

    Strikes that have to wait until more than `lasts_s` after the beginning are left out.

    Raises:
        RunnelError: it could not begin.
    """
    clock, stop = clock or SystemClock(), threading.Event()
    options.out.mkdir(parents=True, exist_ok=True)
    settings = options.out / "settings.txt"
    write_atomically(settings, "\n".join(RUN_SETTINGS).encode())
    peers = PeerProcesses(options.out, program=PROGRAM, clock=clock)
    with stop_on_signals(stop, before_exit=peers.kill_all), peers:
        launched = launch(peers, settings, stop, clock)
        if launched is None:
            raise RunnelError("stopped before the run began")
        for index in range(1, options.peers):
            peers.join(index, launched.invite)
        facts = LiveFacts(run_name="chaos", parameters=launched.parameters, peers=options.peers)
        with open_view(console, facts, mode) as view:
            conductor = Conductor(peers, strikes, clock, lasts_s=lasts_s)
            course = conductor.run(view, stop)
    return course, judge(peers.all, course)


def _tell(options: ChaosOptions, course: Course, verdict: Verdict, console: Console) -> int:
    facts = {**verdict.as_json(), "seed": options.seed, "out": str(options.out)}
    write_atomically(options.out / "verdict.json", f"{json.dumps(facts, indent=1)}\n".encode())
    if options.as_json:
        console.print(json.dumps(facts), markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(_table(verdict))
        for problem in verdict.problems:
            console.print(f"- {problem}", markup=False, highlight=False, soft_wrap=True)
        end = "EVERYTHING HELD" if verdict.held else "SOMETHING DID NOT HOLD"
        again = f"seed {options.seed}, {len(course.blows)} strikes; logs and homes: {options.out}"
        console.print(f"{end}; {again}", markup=False, highlight=False, soft_wrap=True)
    if course.stopped:
        return EXIT_INTERRUPTED
    return 0 if verdict.held else RunnelError.exit_code


def _table(verdict: Verdict) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
    for name in ("promise", "seen", "wanted", "held"):
        table.add_column(name)
    for row in verdict.rows:
        held = Text("yes", style="green") if row.held else Text("NO", style="bold red")
        table.add_row(Text(row.check), Text(row.seen), Text(row.wanted), held)
    return table


if __name__ == "__main__":
    sys.exit(main())
