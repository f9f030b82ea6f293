"""What a chaos run is asked to do, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import localtime, strftime

from runnel.errors import ConfigError
from runnel.tools.chaos_ledger import CELLS
from runnel.tools.chaos_plan import Kind
from runnel.tools.demo_options import OptionParser, check_out, check_seed

MIN_PEERS = 3
MAX_MINUTES = 24 * 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChaosOptions:
    """The options of the command, checked.

    Attributes:
        out: folder for all that the run leaves; must not exist or be empty.
        peers: processes that take part.
        minutes: how long peers are struck, from the moment when all take part.
        seed: of the strikes.
        kinds: what is done to peers.
        as_json: whether events and the verdict are printed as lines of JSON, and nothing else.

    Raises:
        ConfigError: a value out of range, or a folder that holds something.
    """

    out: Path
    peers: int = 6
    minutes: float = 10.0
    seed: int = 0
    kinds: tuple[Kind, ...] = tuple(Kind)
    as_json: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        if not MIN_PEERS <= self.peers <= CELLS:
            raise ConfigError(
                f"--peers is {self.peers}, expected {MIN_PEERS} to {CELLS}: a majority of them is"
                " left alone while others are struck"
            )
        if not 0 < self.minutes <= MAX_MINUTES:  # also refuses NaN
            raise ConfigError(
                f"--minutes is {self.minutes:g}, expected more than 0 and at most {MAX_MINUTES:g}"
            )
        check_seed(self.seed)
        check_out(self.out)


def parse_options(arguments: Sequence[str], now_unix_s: float) -> ChaosOptions | None:
    """The options of a command line; None if it asked for help, which is printed then.

    Raises:
        ConfigError: an option that does not exist, or a value that is of another type or out of range.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.help:
        parser.print_help()
        return None
    out = given.out or Path(strftime("runnel-chaos-%Y%m%d-%H%M%S", localtime(now_unix_s)))
    return ChaosOptions(
        out=out.expanduser().absolute(),
        peers=given.peers,
        minutes=given.minutes,
        seed=given.seed,
        kinds=parse_kinds(given.kinds),
        as_json=given.json,
    )


def parse_kinds(text: str) -> tuple[Kind, ...]:
    """The kinds that ``kill,freeze`` names.

    Raises:
        ConfigError: one that does not exist, or none.
    """
    try:
        return tuple(dict.fromkeys(Kind(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(
            f"--kinds is {text!r}, expected some of {', '.join(Kind)}, with commas between"
        ) from None


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m runnel.tools.chaos",
        description="Strike the peers of a real swarm on this machine by a seed, and say what held.",
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--peers", type=int, default=6, metavar="N", help="processes that take part (6)")
    add("--minutes", type=float, default=10.0, metavar="M", help="how long they are struck (10)")
    add("--seed", type=int, default=0, metavar="S", help="of what is done to whom and when (0)")
    add("--kinds", default=",".join(Kind), metavar="A,B", help=f"of {', '.join(Kind)} (all)")
    add("--out", type=Path, metavar="FOLDER", help="new folder for homes, logs and the verdict")
    add("--json", action="store_true", help="print events and the verdict as lines of JSON")
    add("-h", "--help", action="store_true", help="show this and exit")
    return parser
