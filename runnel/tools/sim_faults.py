"""What goes wrong in a simulation, as data: made in code, read from a TOML file, or drawn from a seed.

``faults.at(round=3, peer=2, do=Crash(after_bytes=10_000))`` strikes peer 2 when round 3 is its next
one; ``faults.at(second=90, do=Partition(peers=(0, 1), lasts_s=45))`` needs no peer.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any, Self

from runnel.errors import ConfigError, InputFileError

MAX_FILE_BYTES = 1 << 20
MAX_FAULTS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Crash:
    """The process dies, once it has sent so many bytes more; its disk stays as it is."""

    after_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Restart:
    """A peer that crashed or left starts again from its disk; nothing if it runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Freeze:
    """The process stops for a while and goes on, as by SIGSTOP and SIGCONT."""

    lasts_s: float = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Slow:
    """The peer's link has a part of its bandwidth for a while."""

    factor: float = 10.0
    lasts_s: float = math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Lossy:
    """So many of the peer's writes are lost and sent again, for a while."""

    loss: float = 0.1
    lasts_s: float = math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """Nothing passes between `peers` and the others for a while."""

    peers: tuple[int, ...] = ()
    lasts_s: float = 45.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Leave:
    """The peer says goodbye and stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Join:
    """A peer that is not there yet comes with an invite; nothing if it runs."""


Deed = Crash | Restart | Freeze | Slow | Lossy | Partition | Leave | Join

KINDS: Mapping[str, type[Deed]] = {
    kind.__name__.lower(): kind
    for kind in (Crash, Restart, Freeze, Slow, Lossy, Partition, Leave, Join)
}
"""What can be done, by the word for it in a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One deed: to whom (-1: to the network) and when, by a second or by a round of that peer's."""

    do: Deed
    peer: int = -1
    second: float | None = None
    round: int | None = None


@dataclass(slots=True)
class Faults:
    """A list of faults; equal lists make equal simulations."""

    all: list[Fault] = field(default_factory=list)

    def at(
        self, *, do: Deed, peer: int = -1, second: float | None = None, round: int | None = None
    ) -> Self:
        """Adds one, and gives the list back.

        Raises:
            ConfigError: it says no time or two, or no peer where one is needed.
        """
        if (second is None) == (round is None):
            raise ConfigError(f"a fault needs either second or round: {do}")
        if (peer < 0) != isinstance(do, Partition):
            raise ConfigError(f"a fault of one peer needs its number, a partition none: {do}")
        self.all.append(Fault(do=do, peer=peer, second=second, round=round))
        return self

    def check(self, peers: int) -> None:
        """Refuses peers that do not take part.

        Raises:
            ConfigError: a number out of range.
        """
        for fault in self.all:
            struck = fault.do.peers if isinstance(fault.do, Partition) else (fault.peer,)
            wrong = next((peer for peer in struck if not 0 <= peer < peers), None)
            if wrong is not None:
                raise ConfigError(
                    f"a fault names peer {wrong}, expected 0 to {peers - 1}: correct it or raise"
                    " --peers"
                )

    def to_toml(self) -> str:
        """A file that `read_faults` reads as this list."""
        return "\n".join(_table_of(fault) for fault in self.all)


def read_faults(path: Path) -> Faults:
    """The faults of a TOML file: tables ``[[fault]]`` with ``do``, ``second`` or ``round``, ``peer``.

    Raises:
        InputFileError: the file cannot be read.
        ConfigError: not TOML, or a fault that is none; one line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputFileError(f"{path} cannot be read ({reason}): name a file of faults") from None
    try:
        return _parsed(data)
    except (ConfigError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path.name}: {error}") from None


def _parsed(data: bytes) -> Faults:
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"longer than {MAX_FILE_BYTES} bytes, expected a file of faults")
    content = tomllib.loads(data.decode())
    unknown = [key for key in content if key != "fault"]
    tables = content.get("fault", [])
    if unknown or not isinstance(tables, list) or not tables:
        seen = f"{unknown[0]!r}" if unknown else "no fault"
        raise ConfigError(f"{seen}, expected tables [[fault]]: write one for each fault")
    if len(tables) > MAX_FAULTS:
        raise ConfigError(f"{len(tables)} faults, expected at most {MAX_FAULTS}")
    faults = Faults()
    for number, table in enumerate(tables, 1):
        try:
            _add(faults, table)
        except ConfigError as error:
            raise ConfigError(f"fault {number}: {error}") from None
    return faults


def _add(faults: Faults, table: object) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{table!r} is no table, expected [[fault]]")
    given = dict(table)
    word = given.pop("do", None)
    kind = KINDS.get(word) if isinstance(word, str) else None
    if kind is None:
        raise ConfigError(f"do is {word!r}, expected one of {', '.join(KINDS)}")
    peer = _whole(given.pop("peer", -1), "peer", least=-1)
    second = _seconds(given.pop("second"), "second") if "second" in given else None
    round_ = _whole(given.pop("round"), "round") if "round" in given else None
    known = {one.name: one for one in fields(kind)}
    values = {name: _value(known, name, value, word) for name, value in given.items()}
    faults.at(do=kind(**values), peer=peer, second=second, round=round_)


def _value(known: Mapping[str, Field[Any]], name: str, value: object, word: object) -> Any:
    if name not in known:
        expected = ", ".join(known) or "no more than do, peer and a time"
        raise ConfigError(f"{name} is unknown for {word}, expected {expected}")
    if name == "peers":
        if not isinstance(value, list) or not value:
            raise ConfigError(f"peers is {value!r}, expected a list of peers")
        return tuple(_whole(one, "peers") for one in value)
    if name == "after_bytes":
        return _whole(value, name)
    number = _seconds(value, name)
    if name == "factor" and number < 1:
        raise ConfigError(f"factor is {number:g}, expected at least 1")
    if name == "loss" and number > 1:
        raise ConfigError(f"loss is {number:g}, expected 0 to 1")
    return number


def _whole(value: object, name: str, *, least: int = 0) -> int:
    if type(value) is not int or value < least:
        raise ConfigError(f"{name} is {value!r}, expected a whole number from 0 on")
    return value


def _seconds(value: object, name: str) -> float:
    if type(value) not in {int, float} or not value >= 0:  # type: ignore[operator]  # also refuses NaN
        raise ConfigError(f"{name} is {value!r}, expected a number from 0 on")
    return float(value)  # type: ignore[arg-type]  # one of the two


def _table_of(fault: Fault) -> str:
    word = next(word for word, kind in KINDS.items() if isinstance(fault.do, kind))
    lines = ["[[fault]]", f'do = "{word}"']
    if fault.peer >= 0:
        lines.append(f"peer = {fault.peer}")
    when = ("second", fault.second) if fault.round is None else ("round", fault.round)
    lines.append(f"{when[0]} = {when[1]}")
    usual = {one.name: one.default for one in fields(fault.do) if one.default is not MISSING}
    for name, value in asdict(fault.do).items():
        if value != usual.get(name):
            lines.append(f"{name} = {list(value) if isinstance(value, tuple) else value}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Weather:
    """How much goes wrong in a drawn simulation.

    Attributes:
        churn: how often a peer crashes or leaves, and comes back, per hour.
        freeze: how often a peer freezes, per hour.
        slow: share of peers whose link has a tenth of the others' bandwidth.
        partition: how many partitions into two parts.
    """

    churn: float = 0.0
    freeze: float = 0.0
    slow: float = 0.0
    partition: int = 0


_QUIET_S = 30.0
_AWAY_S = (10.0, 90.0)
_FROZEN_S = (2.0, 25.0)
_APART_S = (15.0, 75.0)


def draw_faults(seed: int, weather: Weather, *, peers: int, lasts_s: float) -> Faults:
    """Faults drawn from a seed, in the order of their times; the same ones for the same arguments.

    The first and the last half minute are quiet, and by then all are back.
    """
    rng, found = Random(f"faults {seed}"), list[Fault]()
    for peer in sorted(rng.sample(range(peers), round(weather.slow * peers))):
        found.append(Fault(do=Slow(), peer=peer, second=0.0))
    end_s = lasts_s - _QUIET_S
    for peer in range(peers):
        found += _of_peer(rng, weather, peer, end_s)
    for _ in range(weather.partition):
        group = tuple(sorted(rng.sample(range(peers), rng.randint(1, max(1, peers // 2)))))
        apart_s = round(min(rng.uniform(*_APART_S), end_s / 2), 1)
        second = round(rng.uniform(min(_QUIET_S, end_s / 4), max(end_s / 4, end_s - apart_s)), 1)
        found.append(Fault(do=Partition(peers=group, lasts_s=apart_s), second=second))
    return Faults(sorted(found, key=lambda fault: (fault.second, fault.peer)))


def _of_peer(rng: Random, weather: Weather, peer: int, end_s: float) -> list[Fault]:
    """What happens to one peer, one thing after the other."""
    rate, now_s, found = weather.churn + weather.freeze, _QUIET_S, list[Fault]()
    while rate > 0:
        now_s += rng.expovariate(rate / 3600)
        frozen = rng.random() < weather.freeze / rate
        away_s = rng.uniform(*(_FROZEN_S if frozen else _AWAY_S))
        if now_s + away_s > end_s:
            break
        begins, ends = round(now_s, 1), round(now_s + away_s, 1)
        if frozen:
            found.append(
                Fault(do=Freeze(lasts_s=round(ends - begins, 1)), peer=peer, second=begins)
            )
        elif rng.random() < 0.5:
            do = Crash(after_bytes=rng.choice((0, 0, 1_000, 20_000)))
            found.append(Fault(do=do, peer=peer, second=begins))
            found.append(Fault(do=Restart(), peer=peer, second=ends))
        else:
            found.append(Fault(do=Leave(), peer=peer, second=begins))
            found.append(Fault(do=Join(), peer=peer, second=ends))
        now_s += away_s + _QUIET_S
    return found
