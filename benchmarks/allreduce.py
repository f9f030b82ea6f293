"""All-reduce over four real peers, against hivemind's averaging with 8 bits in the same run.

Each peer is a process of its own with a daemon of its own; everything goes through the machine's
loopback. The two take turns, round by round, on the same vectors.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

from benchmarks.allreduce_vectors import make_vectors
from benchmarks.processes import Children
from benchmarks.report_line import Say, benchmark_parser, report
from runnel.clock import SystemClock

PEERS = 4
NUMEL = 2**24
QUICK_NUMEL = 2**22
MAIN_CODEC = "int8"
CODECS: Mapping[str, int] = {"int8": 5, "int4": 3, "e3m0": 3}
"""Timed rounds by codec (the same one for contributions and results)."""
QUICK_CODECS: Mapping[str, int] = {"int8": 3, "int4": 1, "e3m0": 1}
HIVEMIND = "hivemind UNIFORM_8BIT"

_MEMORY = Path("/dev/shm")
_START_S = 0.1
_SETTLE_S = 0.5


@dataclass(slots=True)
class Series:
    """The timed rounds of one kind.

    Attributes:
        wall_s: from the moment all begin until the last one has the result.
        cpu_s: of all processes, daemons and forked ones included, until half a second after the end.
        relative_error: distance from the true mean over its length, the largest among the peers.
        identical: whether all peers held the same bits.
    """

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    relative_error: list[float] = field(default_factory=list)
    identical: list[bool] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Medians, as JSON has them."""
        return {
            "rounds": len(self.wall_s),
            "wall_s": round(statistics.median(self.wall_s), 3),
            "cpu_s": round(statistics.median(self.cpu_s), 3),
            "relative_error": float(f"{statistics.median(self.relative_error):.4g}"),
            "identical_bits": all(self.identical),
        }


def run_round(peers: Children, series: Series | None) -> None:
    """One all-reduce of one side; None for a round that does not count."""
    peers.ask_all({"do": "prepare"})
    cpu_s = peers.cpu_s()
    at_s = SystemClock().monotonic_s() + _START_S
    answers = peers.ask_all({"do": "run", "at_s": at_s})
    sleep(_SETTLE_S)
    cpu_s = peers.cpu_s() - cpu_s
    checks = peers.ask_all({"do": "check"})
    if series is not None:
        series.wall_s.append(
            max(answer["ended_s"] for answer in answers)
            - min(answer["began_s"] for answer in answers)
        )
        series.cpu_s.append(cpu_s)
        series.relative_error.append(max(check["relative_error"] for check in checks))
        series.identical.append(len({check["bits"] for check in checks}) == 1)


def compare(
    numel: int, codecs: Mapping[str, int], folder: Path, say: Say
) -> tuple[dict[str, Series], dict[str, Series]]:
    """Rounds of both sides in turn, one series for each codec of ours."""
    ours: dict[str, Series] = {}
    theirs: dict[str, Series] = {}
    arguments = [[str(index), str(folder)] for index in range(PEERS)]
    with (
        _children("hivemind", arguments, folder) as rival,
        _children("runnel", arguments, folder) as peers,
    ):
        first = rival.ask(0, {"do": "open", "numel": numel, "invite": [], "members": PEERS})
        for place in range(1, PEERS):
            rival.ask(
                place,
                {"do": "open", "numel": numel, "invite": first["invite"], "members": PEERS},
            )
        run_round(rival, None)
        for codec, rounds in codecs.items():
            ours[codec], theirs[codec] = Series(), Series()
            _found(peers, codec, numel)
            run_round(peers, None)
            for _ in range(rounds):
                run_round(rival, theirs[codec])
                run_round(peers, ours[codec])
            peers.ask_all({"do": "close"})
            say(_line(HIVEMIND, theirs[codec], theirs[codec]))
            say(_line(f"runnel {codec}", ours[codec], theirs[codec]))
        rival.ask_all({"do": "close"})
    return ours, theirs


def measure(numel: int, codecs: Mapping[str, int], parent: Path, say: Say) -> dict[str, Any]:
    """Everything, as JSON has it."""
    size_mib = numel * 4 / 2**20
    say(f"{numel} values of fp32 ({size_mib:g} MiB) over {PEERS} peers, medians")
    say(
        f"{'':<22} {'wall s':>8} {'CPU s':>8} {'error':>10} {'faster':>8} {'less CPU':>9} {'equal bits':>11}"
    )
    with tempfile.TemporaryDirectory(prefix="allreduce-", dir=parent) as name:
        folder = Path(name)
        make_vectors(folder, numel=numel, peers=PEERS, seed=0)
        ours, theirs = compare(numel, codecs, folder, say)
    rows = {codec: _compared(ours[codec], theirs[codec]) for codec in codecs}
    main_row = rows[MAIN_CODEC]
    return {
        "benchmark": "allreduce",
        "peers": PEERS,
        "values": numel,
        "mebibytes": size_mib,
        "folder": str(parent),
        **{
            key: main_row[key]
            for key in ("speedup_over_hivemind", "cpu_ratio_over_hivemind", "error_ratio")
        },
        "identical_bits": all(row["identical_bits"] for row in rows.values()),
        "codecs": rows,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("allreduce", "All-reduce over four peers, against hivemind.")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument(
        "--folder",
        type=Path,
        default=_MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir()),
        help="where our peers keep what must survive them; in memory by default, as four peers"
        " that share one disk would measure that disk",
    )
    parser.add_argument("--rounds", type=int, default=0, help="timed rounds of each codec")
    options = parser.parse_args(arguments)
    rounds = QUICK_CODECS if options.quick else CODECS
    codecs = {MAIN_CODEC: rounds[MAIN_CODEC], **{name: rounds[name] for name in options.codecs}}
    if options.rounds:
        codecs = dict.fromkeys(codecs, options.rounds)
    numel = QUICK_NUMEL if options.quick else NUMEL

    def run(say: Say) -> dict[str, Any]:
        return {"quick": options.quick, **measure(numel, codecs, options.folder, say)}

    return report(run, json_only=options.json)


def _children(side: str, arguments: Sequence[Sequence[str]], folder: Path) -> Children:
    rows = [[side, *row] for row in arguments]
    return Children("benchmarks.allreduce_peer", rows, folder / f"{side}.log")


def _found(peers: Children, codec: str, numel: int) -> None:
    """A run of all four."""
    command = {"do": "open", "codec": codec, "numel": numel}
    invite = peers.ask(0, {**command, "invite": ""})["invite"]
    for place in range(1, len(peers)):
        peers.ask(place, {**command, "invite": invite})
    peers.ask_all({"do": "warm_up", "members": len(peers)})


def _compared(ours: Series, theirs: Series) -> dict[str, Any]:
    mine, rival = ours.summary(), theirs.summary()
    return {
        **mine,
        "speedup_over_hivemind": round(rival["wall_s"] / mine["wall_s"], 3),
        "cpu_ratio_over_hivemind": round(rival["cpu_s"] / mine["cpu_s"], 3),
        "error_ratio": round(mine["relative_error"] / rival["relative_error"], 4),
        "hivemind": rival,
    }


def _line(name: str, series: Series, rival: Series) -> str:
    row = _compared(series, rival)
    return (
        f"{name:<22} {row['wall_s']:>8.2f} {row['cpu_s']:>8.2f} {row['relative_error']:>10.2e}"
        f" {row['speedup_over_hivemind']:>7.2f}x {row['cpu_ratio_over_hivemind']:>8.2f}x"
        f" {row['identical_bits']!s:>11}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
