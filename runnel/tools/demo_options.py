"""What a demo is asked to do, checked, and the run that follows from it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import localtime, strftime
from typing import TYPE_CHECKING, Any, NoReturn

from runnel.errors import ConfigError
from runnel.node.manifest_sections import MAX_INT
from runnel.node.manifest_text import make_spec

if TYPE_CHECKING:
    from runnel.node.manifest_spec import RunSpec

MAX_PEERS = 16
MIN_MINUTES, MAX_MINUTES = 0.5, 24 * 60.0
TEXT_NAME = "text.txt"
"""The copy of ``--text`` in the demo's folder, so that its run.toml works there again."""

MODELS: Mapping[str, Mapping[str, int]] = {
    "tiny": {"layers": 2, "heads": 4, "width": 128, "context": 128},
    "small": {"layers": 4, "heads": 4, "width": 192, "context": 128},
}
_KIND = "gpt:"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """The options of the command, checked.

    Attributes:
        out: folder for all that the demo leaves; must not exist or be empty.
        peers: processes that take part over the whole demo, the late one included.
        minutes: from the launch to the run's end, start-up included.
        model: a name in `MODELS`, or ``gpt:layers=..,width=..``.
        seed: of the parameters, the text's order and the sample.
        text: a file to train on; None for the sources of Python's standard library.
        faults: whether a peer is killed and another joins late.
        as_json: whether events and the outcome are printed as lines of JSON, and nothing else.

    Raises:
        ConfigError: a value out of range, or a folder that holds something.
    """

    out: Path
    peers: int = 4
    minutes: float = 2.5
    model: str = "tiny"
    seed: int = 0
    text: Path | None = None
    faults: bool = True
    as_json: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        least = 3 if self.faults else 2
        if not least <= self.peers <= MAX_PEERS:
            raise ConfigError(
                f"--peers is {self.peers}, expected {least} to {MAX_PEERS}"
                + (
                    " because one is killed, one joins late and one sees both:"
                    " give more, or --no-faults"
                    if self.faults
                    else ": a swarm takes two, and this machine carries no more"
                )
            )
        if not MIN_MINUTES <= self.minutes <= MAX_MINUTES:  # also refuses NaN
            raise ConfigError(
                f"--minutes is {self.minutes:g}, expected {MIN_MINUTES:g} to {MAX_MINUTES:g}:"
                " the peers need some of it to start"
            )
        check_seed(self.seed)
        check_out(self.out)


def parse_options(arguments: Sequence[str], now_unix_s: float) -> DemoOptions | None:
    """The options of a command line; None if it asked for help, which is printed then.

    Raises:
        ConfigError: an option that does not exist, or a value that is of another type or out of range.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.help:
        parser.print_help()
        return None
    out = given.out or Path(strftime("runnel-demo-%Y%m%d-%H%M%S", localtime(now_unix_s)))
    return DemoOptions(
        out=out.expanduser().absolute(),
        peers=given.peers,
        minutes=given.minutes,
        model=given.model,
        seed=given.seed,
        text=given.text,
        faults=not given.no_faults,
        as_json=given.json,
    )


def run_spec(options: DemoOptions) -> RunSpec:
    """The run of the demo: settings that learn visibly in minutes, on processors that peers share.

    Raises:
        ConfigError: the model is unknown or impossible.
    """
    tables: dict[str, dict[str, Any]] = {
        "run": {"name": "demo", "description": "peers on one machine", "seed": options.seed},
        "model": parse_model(options.model),
        "data": {"text": TEXT_NAME if options.text else "stdlib", "batch_size": 8},
        "inner": {"lr": 4e-3, "warmup_share": 0.05},
        "outer": {"every_steps": 32, "fragments": 4, "overlap_steps": 2},
        "rounds": {"deadline_ceiling_s": 10.0, "stall_s": 15.0},
        "end": {"minutes": float(options.minutes)},
    }
    return make_spec(tables, source="runnel demo")


def parse_model(text: str) -> dict[str, Any]:
    """The ``[model]`` table of a name in `MODELS` or of ``gpt:layers=3,width=160``.

    Raises:
        ConfigError: neither of them.
    """
    if text in MODELS:
        return dict(MODELS[text])
    known = MODELS["tiny"]
    names = ", ".join(MODELS)
    if not text.startswith(_KIND):
        raise ConfigError(
            f"--model is {text!r}, expected one of {names}, or gpt:layers=3,width=160: correct it"
        )
    table: dict[str, Any] = dict(known)
    for part in text.removeprefix(_KIND).split(","):
        name, _, value = part.partition("=")
        if name not in known or not value.isdecimal():
            raise ConfigError(
                f"--model has {part!r}, expected {', '.join(known)} with a whole number each, such"
                " as gpt:layers=3,width=160: correct it"
            )
        table[name] = int(value)
    return table


def check_seed(seed: int) -> None:
    """Raises ConfigError for a number that a manifest cannot hold."""
    if not 0 <= seed <= MAX_INT:
        raise ConfigError(f"--seed is {seed}, expected 0 to {MAX_INT}: give another number")


def check_out(out: Path) -> None:
    """Raises ConfigError for a folder that holds something, or a file in its place."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} exists already, expected a new or an empty folder: choose another --out"
        )


class OptionParser(argparse.ArgumentParser):
    """Says what is wrong with an option by a ConfigError."""

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser.error`."""
        raise ConfigError(f"{message}: `{self.prog} --help` shows the options")


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="runnel demo",
        description="Train with a swarm of peers on this machine; one is killed, one joins late.",
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--peers", type=int, default=4, metavar="N", help="processes that take part (4)")
    add("--minutes", type=float, default=2.5, metavar="M", help="until the run's end (2.5)")
    add("--model", default="tiny", help=f"{', '.join(MODELS)}, or gpt:layers=3,width=160 (tiny)")
    add("--seed", type=int, default=0, metavar="S", help="of parameters, text and sample (0)")
    add("--text", type=Path, metavar="FILE", help="text to train on (Python's own sources)")
    add("--out", type=Path, metavar="FOLDER", help="new folder for all results")
    add("--no-faults", action="store_true", help="nobody is killed, nobody joins late")
    add("--json", action="store_true", help="print events and the outcome as lines of JSON")
    add("-h", "--help", action="store_true", help="show this and exit")
    return parser
