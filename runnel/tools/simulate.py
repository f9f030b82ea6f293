"""A simulated swarm: the real code of up to 64 peers on one loop in virtual time, with faults as data.

``python -m runnel.tools.simulate --peers 8 --minutes 10 --seed 7 --churn 6 --out sim`` ends with a page on
what happened and whether everything held. Everything of a peer is real but what it stands on: the
network is in memory (latency, bandwidth, loss), its folder where the system keeps files in memory, its
trainer learns by rule, and peers' signatures are as long as real ones and not secret. Equal options give
equal traces. What a round costs grows with the square of the peers, as each votes to each; what passes between
rounds grows with their number.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runnel.clock import SystemClock
from runnel.dht.memory import MemoryNetwork
from runnel.errors import RunnelError
from runnel.node.atomic import write_atomically
from runnel.node.journal import checked_line
from runnel.node.manifest import make_spec, parse_overrides
from runnel.tools.chaos_ledger import SETTINGS, Cell, read_cells
from runnel.tools.cli_errors import exit_code_of
from runnel.tools.sim_faults import Faults, draw_faults, read_faults
from runnel.tools.sim_options import SimOptions, parse_options
from runnel.tools.sim_peer import Ground, home_of, temporary_folder
from runnel.tools.sim_runtime import SimLoop
from runnel.tools.sim_summary import Summary, summarize
from runnel.tools.sim_watch import Span
from runnel.tools.sim_waterfall import Window, waterfall, window_around
from runnel.tools.sim_world import Course, World

VALUES = 4 * 2 * 4096
"""Of the model: two slices in each of four fragments."""

PICTURE_ROUNDS = 6

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation left: its faults, the spans of its peers, the summary."""

    faults: Faults
    spans: Sequence[Span]
    summary: Summary


def main(argv: Sequence[str] | None = None) -> int:
    """Runs with the options `argv` (default: this process's) and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return exit_code_of(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    options = parse_options(arguments)
    if options is None:
        return 0
    outcome = simulate(options, _nothing if options.as_json else _say)
    summary = outcome.summary
    if options.out is not None:
        _leave(options.out, options, outcome)
    if options.as_json:
        print(json.dumps({"seed": options.seed, "peers": options.peers, **summary.as_json()}))
    else:
        for line in summary.lines():
            print(line)
        end = "EVERYTHING HELD" if summary.held else "SOMETHING DID NOT HOLD"
        print(f"{end}; {options.minutes:g} simulated minutes in {summary.real_s:.0f} s")
    return 0 if summary.held else RunnelError.exit_code


def simulate(options: SimOptions, say: Say) -> Outcome:
    """Runs a simulation from its beginning to its end.

    Raises:
        ConfigError, InputFileError: the file of faults is none.
        RunnelError: it could not begin.
    """
    faults, clock = _faults_of(options), SystemClock()
    began_s, lasts_s = clock.monotonic_s(), options.minutes * 60
    spec = make_spec(
        parse_overrides(["run.name=simulation", "model.kind=custom", *SETTINGS]), source="simulate"
    )
    with temporary_folder() as folder:
        with asyncio.Runner(loop_factory=SimLoop) as runner:
            ground = Ground(
                loop=runner.get_loop(),  # type: ignore[arg-type]  # the factory's
                network=MemoryNetwork(options.seed),
                folder=Path(folder),
                seed=options.seed,
                cells=options.peers,
                values=VALUES,
                step_s=options.step_s,
            )
            world = World(ground, spec, faults, loss=options.loss)

            def tell(seen: World) -> None:
                real_s = clock.monotonic_s() - began_s
                say(f"minute {seen.now / 60:.1f}: {seen.line()}; {real_s:.0f} s")

            course = runner.run(world.run(lasts_s, tell))
        cells = _cells(ground, world, course)
    real_s = clock.monotonic_s() - began_s
    spans = world.watcher.spans
    return Outcome(faults, spans, summarize(course, spans, cells, real_s=real_s))


def _faults_of(options: SimOptions) -> Faults:
    lasts_s = options.minutes * 60
    faults = draw_faults(options.seed, options.weather, peers=options.peers, lasts_s=lasts_s)
    if options.faults is not None:
        faults.all += read_faults(options.faults).all
    faults.check(options.peers)
    return faults


def _cells(ground: Ground, world: World, course: Course) -> list[Cell]:
    """Every peer's account, by what is on the disk of one that was there at the end."""
    slots = {peer: index for index, peer in enumerate(world.ids)}
    for index in course.heads:
        runs = home_of(ground.folder, index).home / "runs"
        try:
            return read_cells(next(runs.iterdir()), slots)
        except (RunnelError, StopIteration) as error:
            course.problems.append(f"the accounts of peer {index} cannot be read: {error}")
    return []


def _leave(out: Path, options: SimOptions, outcome: Outcome) -> None:
    """Writes what is left of a simulation."""
    course, spans = outcome.summary.course, outcome.spans
    title = f"{options.peers} peers, seed {options.seed}"
    worst = outcome.summary.pauses[0].round if outcome.summary.pauses else 0
    near = window_around(course, worst, rounds=PICTURE_ROUNDS)
    pictures = {
        "waterfall.svg": waterfall(f"{title}: around round {worst}", course, spans, near),
        "waterfall-all.svg": waterfall(
            f"{title}: all rounds", course, spans, Window(0.0, course.settled_s)
        ),
    }
    files = {
        **pictures,
        "faults.toml": outcome.faults.to_toml(),
        "summary.json": json.dumps(outcome.summary.as_json(), indent=1) + "\n",
        "summary.txt": "\n".join(outcome.summary.lines()) + "\n",
    }
    for index in range(options.peers):
        events = (event for peer, event in course.events if peer == index)
        files[f"peer-{index:02d}.jsonl"] = _text(checked_line(event) for event in events)
    for name, text in files.items():
        write_atomically(out / name, text.encode())


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _say(line: str) -> None:
    print(line, flush=True)


def _nothing(line: str) -> None:
    del line


if __name__ == "__main__":
    sys.exit(main())
