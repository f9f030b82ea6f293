"""What a simulation is asked to do, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runnel.errors import ConfigError
from runnel.node.manifest_sections import MAX_MEMBERS
from runnel.tools.demo_options import OptionParser, check_out, check_seed
from runnel.tools.sim_faults import Weather

MIN_PEERS = 2
MAX_MINUTES = 24 * 60.0
MAX_RATE = 1_000.0
MIN_STEP_S, MAX_STEP_S = 0.05, 3_600.0
MAX_PARTITIONS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class SimOptions:
    """The options of the command, checked.

    Attributes:
        peers: how many found the run together.
        minutes: of the simulation.
        seed: of links, arrivals, trainers and drawn faults.
        step_s: seconds that an inner step takes; a round comes every ten of them.
        weather: what is drawn to go wrong.
        loss: share of all writes that are lost and sent again.
        faults: a file of faults beside the drawn ones.
        out: new folder for the pictures, the summary, the faults and the events; None for none.
        as_json: whether the summary is printed as a line of JSON, and nothing else.

    Raises:
        ConfigError: a value out of range, or a folder that holds something.
    """

    peers: int = 8
    minutes: float = 5.0
    seed: int = 0
    step_s: float = 2.0
    weather: Weather = field(default_factory=Weather)
    loss: float = 0.0
    faults: Path | None = None
    out: Path | None = None
    as_json: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        if not MIN_PEERS <= self.peers <= MAX_MEMBERS:
            raise ConfigError(f"--peers is {self.peers}, expected {MIN_PEERS} to {MAX_MEMBERS}")
        if not 0 < self.minutes <= MAX_MINUTES:  # also refuses NaN
            raise ConfigError(
                f"--minutes is {self.minutes:g}, expected more than 0 and at most {MAX_MINUTES:g}"
            )
        if not MIN_STEP_S <= self.step_s <= MAX_STEP_S:
            raise ConfigError(
                f"--step is {self.step_s:g}, expected {MIN_STEP_S:g} to {MAX_STEP_S:g} seconds"
            )
        for name in ("churn", "freeze"):
            rate = getattr(self.weather, name)
            if not 0 <= rate <= MAX_RATE:
                raise ConfigError(
                    f"--{name} is {rate:g}, expected 0 to {MAX_RATE:g} per peer and hour"
                )
        for name, share in (("slow", self.weather.slow), ("loss", self.loss)):
            if not 0 <= share <= 1:
                raise ConfigError(f"--{name} is {share:g}, expected a share from 0 to 1")
        if not 0 <= self.weather.partition <= MAX_PARTITIONS:
            raise ConfigError(
                f"--partition is {self.weather.partition}, expected 0 to {MAX_PARTITIONS}"
            )
        check_seed(self.seed)
        if self.out is not None:
            check_out(self.out)


def parse_options(arguments: Sequence[str]) -> SimOptions | None:
    """The options of a command line; None if it asked for help, which is printed then.

    Raises:
        ConfigError: an option that does not exist, or a value that is of another type or out of range.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.help:
        parser.print_help()
        return None
    return SimOptions(
        peers=given.peers,
        minutes=given.minutes,
        seed=given.seed,
        step_s=given.step,
        weather=Weather(
            churn=given.churn, freeze=given.freeze, slow=given.slow, partition=given.partition
        ),
        loss=given.loss,
        faults=given.faults.expanduser() if given.faults else None,
        out=given.out.expanduser().absolute() if given.out else None,
        as_json=given.json,
    )


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m runnel.tools.simulate",
        description="Run the real code of many peers in virtual time, with faults, and say what held.",
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--peers", type=int, default=8, metavar="N", help="how many take part (8)")
    add("--minutes", type=float, default=5.0, metavar="M", help="of the simulation (5)")
    add("--seed", type=int, default=0, metavar="S", help="of all that is drawn (0)")
    add("--step", type=float, default=2.0, metavar="S", help="seconds of an inner step (2)")
    add(
        "--churn",
        type=float,
        default=0.0,
        metavar="R",
        help="crashes and leaves, per peer and hour",
    )
    add("--freeze", type=float, default=0.0, metavar="R", help="freezes, per peer and hour")
    add("--loss", type=float, default=0.0, metavar="P", help="share of writes that are lost")
    add(
        "--slow",
        type=float,
        default=0.0,
        metavar="P",
        help="share of links with a tenth of the rate",
    )
    add("--partition", type=int, default=0, metavar="N", help="how many partitions into two parts")
    add("--faults", type=Path, metavar="FILE", help="faults as tables [[fault]] of a TOML file")
    add("--out", type=Path, metavar="FOLDER", help="new folder for pictures, summary and events")
    add("--json", action="store_true", help="print the summary as a line of JSON")
    add("-h", "--help", action="store_true", help="show this and exit")
    return parser
