"""The main job: a real swarm on this machine, with a death and a late start, and a report of it.

Every peer is an operating system's process with its own key, folder and network daemon; what runs
in them is `runnel launch` and `runnel join`, as anybody would type them.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from runnel.clock import Clock, SystemClock
from runnel.errors import EXIT_INTERRUPTED, RunnelError
from runnel.tools.cli_errors import exit_code_of
from runnel.tools.cli_signals import stop_on_signals
from runnel.tools.demo_folder import (
    collect_journals,
    judge,
    prepare,
    take_checkpoint,
    tidy,
    write_report,
)
from runnel.tools.demo_options import DemoOptions, parse_options
from runnel.tools.demo_outcome import Outcome
from runnel.tools.demo_plan import DemoPlan
from runnel.tools.demo_swarm import Conductor, Course, launch
from runnel.tools.live import LiveFacts, Mode, open_view
from runnel.tools.peer_processes import PROGRAM, PeerProcesses

if TYPE_CHECKING:
    from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo with the options `argv` (default: this process's) and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return exit_code_of(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    options = parse_options(arguments, SystemClock().unix_s())
    return 0 if options is None else Demo(options, Console()).run()


class Demo:
    """One demo from its options to its exit code.

    Args:
        options: what to do.
        console: where to show it.
        program: what stands for the `runnel` command.
        clock: for times.
    """

    def __init__(
        self,
        options: DemoOptions,
        console: Console,
        *,
        program: Sequence[str] = PROGRAM,
        clock: Clock | None = None,
    ) -> None:
        self._options, self._console = options, console
        self._program, self._clock = program, clock or SystemClock()
        self._plan = DemoPlan(options.peers, options.minutes * 60, faults=options.faults)
        self._parameters = 0

    def run(self) -> int:
        """0 if everything held; `EXIT_INTERRUPTED` after Ctrl-C; 1 otherwise.

        Raises:
            RunnelError: it could not begin.
        """
        began_s = self._clock.monotonic_s()
        run_file = prepare(self._options)
        self._say(f"starting {self._options.peers} peers; all of it goes to {self._options.out}")
        peers = PeerProcesses(self._options.out, program=self._program, clock=self._clock)
        course = self._conduct(peers, run_file)
        if course is None:
            self._say("stopped before the run began")
            return EXIT_INTERRUPTED
        journals = collect_journals(peers.all, self._options.out)
        if not journals:
            raise RunnelError(f"no peer wrote a journal: see {self._options.out / 'logs'}")
        outcome = judge(peers.all, journals, parameters=self._parameters, late=self._plan.latecomer)
        if course.stopped:  # then it is no news that nobody got to the end
            outcome.problems.clear()
        outcome.problems += course.problems
        sample = ""
        if not course.stopped:
            sample = take_checkpoint(outcome, peers.all[0].home, self._options)
        sentences = write_report(outcome, journals, self._options, sample)
        if not outcome.problems:
            tidy(peers.all)
        self._tell(outcome, sentences, sample)
        self._say(f"took {self._clock.monotonic_s() - began_s:.0f} s in all")
        if course.stopped:
            return EXIT_INTERRUPTED
        return RunnelError.exit_code if outcome.problems else 0

    def _conduct(self, peers: PeerProcesses, run_file: Path) -> Course | None:
        """Until no peer runs any more; None if it was stopped before there was a run."""
        stop = threading.Event()
        with stop_on_signals(stop, before_exit=peers.kill_all), peers:
            launched = launch(peers, run_file, stop, self._clock)
            if launched is None:
                return None
            self._parameters = launched.parameters
            facts = LiveFacts(
                run_name="demo", parameters=launched.parameters, peers=self._options.peers
            )
            mode = Mode.JSON if self._options.as_json else Mode.AUTO
            with open_view(self._console, facts, mode) as view:
                lasts_s = self._options.minutes * 60
                return Conductor(peers, self._plan, launched.invite, lasts_s, self._clock).run(
                    view, stop
                )

    def _tell(self, outcome: Outcome, sentences: Sequence[str], sample: str) -> None:
        if self._options.as_json:
            line = json.dumps({**outcome.as_json(), "out": str(self._options.out)})
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        out = self._options.out
        self._say("", "What happened:", *(f"- {sentence}" for sentence in sentences))
        self._say("", "Bytes:", *(f"- {line}" for line in outcome.bytes_lines()))
        if sample:
            self._say("", "What the model writes now:", *_indented(sample))
        self._say("", f"report: {out / 'report.html'}", f"everything: {out}")
        if outcome.problems:
            problems = (f"- {problem}" for problem in outcome.problems)
            self._say("", "THIS DEMO FAILED:", *problems)

    def _say(self, *lines: str) -> None:
        if not self._options.as_json:
            for line in lines:
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _indented(text: str, lines: int = 12) -> list[str]:
    return [f"    {line}" for line in text.splitlines()[:lines]]


if __name__ == "__main__":
    sys.exit(main())
