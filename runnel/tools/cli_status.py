"""What the runs on this machine say of themselves in their ``status.json`` and journal."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import localtime, strftime
from typing import Any

from runnel.errors import ConfigError, InputFileError
from runnel.node.link_rate import rate_text
from runnel.node.wording import size_text

STATUS_NAME = "status.json"
JOURNAL_NAME = "journal.jsonl"
MAX_STATUS_BYTES = 2**20
_MAX_DEPTH = 5
_SILENT_S = 60.0
_EXPECTED = "the name of a run, or a folder of what launch or join leave"
_HEADS = (
    "run",
    "peer",
    "state",
    "round",
    "peers",
    "loss",
    "tokens",
    "sent",
    "received",
    "shares",
    "updated",
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A peer's folder and what it last said of itself.

    Attributes:
        folder: of the run's state on this machine.
        status: its status.json; empty if that cannot be read.
        problem: why not, or "".
    """

    folder: Path
    status: Mapping[str, Any]
    problem: str = ""

    def is_called(self, name: str) -> bool:
        """Whether `name` is the run's name, the beginning of its id or the folder's name."""
        run_id = str(self.status.get("run_id", ""))
        names = (str(self.status.get("run", "")), self.folder.name)
        return name in names or (len(name) >= 4 and run_id.startswith(name))

    @property
    def updated_unix_s(self) -> float:
        """When the peer last wrote it; 0 if unknown."""
        return _number(self.status.get("updated_unix_s")) or 0.0


def find_runs(home: Path, name: str = "", *, expected: str = _EXPECTED) -> list[RunFolder]:
    """All runs below `home`, or those called `name` (also the path of a folder), newest first.

    Raises:
        InputFileError: there is none; of a path without one, what was `expected` there.
    """
    root = Path(name) if name and Path(name).is_dir() else home
    found = [_read(path) for path in _status_files(root)]
    known = sorted({str(run.status.get("run", run.folder.name)) for run in found})
    if root is home and name:
        found = [run for run in found if run.is_called(name)]
    if not found:
        if name and Path(name).exists():
            kind = "folder without a run" if root is not home else "file"
            raise InputFileError(f"{name} is a {kind}, expected {expected}")
        if known:
            raise InputFileError(
                f"no run {name!r} under {home}, expected one of {', '.join(known)}: name one of them"
            )
        raise InputFileError(
            f"no run under {root}, expected what launch or join leave there: name its folder with"
            " --home"
        )
    return sorted(found, key=lambda run: (-run.updated_unix_s, str(run.folder)))


def find_run(home: Path, name: str = "", *, expected: str = _EXPECTED) -> RunFolder:
    """The one run below `home` (called `name`); of several peers of one run the newest.

    Raises:
        InputFileError: there is none, see `find_runs`.
        ConfigError: there are several runs to choose from.
    """
    found = find_runs(home, name, expected=expected)
    ids = {str(run.status.get("run_id", run.folder)) for run in found}
    if len(ids) > 1:
        names = ", ".join(sorted({run.folder.name for run in found}))
        raise ConfigError(f"{len(ids)} runs under {home}, expected one: name one of {names}")
    return found[0]


def status_lines(runs: Sequence[RunFolder], now_unix_s: float) -> list[str]:
    """A table for people: a heading and a line for each peer."""
    rows = [_HEADS, *(_cells(run, now_unix_s) for run in runs if not run.problem)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    problems = [f"{run.folder}: {run.problem}" for run in runs if run.problem]
    return (lines if len(rows) > 1 else []) + problems


def reach_lines(run: RunFolder) -> list[str]:
    """How the peer reaches the members, and whether they can reach it; none if it says nothing of it."""
    reach = run.status.get("reach")
    ways = reach.get("ways") if isinstance(reach, dict) else None
    if not isinstance(reach, dict) or not isinstance(ways, dict):
        return []
    direct = sum(way == "directly" for way in ways.values())
    others = [_on_one_line(*one) for one in sorted(ways.items()) if one[1] != "directly"]
    lines = [f"reaches {', '.join([f'{direct} directly', *others])}"] if ways else []
    found = reach.get("helpers")
    helpers = found if isinstance(found, list) else []
    if reach.get("outside") in ("none", "some"):
        who = "nobody" if reach["outside"] == "none" else "not everybody"
        through = f", but through {' or '.join(map(_on_one_line, helpers))}" if helpers else ""
        lines.append(f"{who} can open connections to this peer{through}")
    carried = _number(reach.get("carried_bytes"))
    return [*lines, f"carried {_size(carried)} for others"] if carried else lines


def _on_one_line(*words: object) -> str:
    return " ".join(" ".join(map(str, words)).split())


def cap_lines(run: RunFolder) -> list[str]:
    """What the peer was told to send at most, if it was."""
    cap = _number(run.status.get("max_upload_mbit"))
    return [f"sends at most {rate_text(cap * 1e6)}, as it was told to"] if cap else []


def check_lines(run: RunFolder) -> list[str]:
    """How many of the others' scalars the peer has computed again, at what cost, and whose were others."""
    found = run.status.get("spot_checks")
    checks = found if isinstance(found, dict) else {}
    scalars, refuted = _number(checks.get("scalars")), checks.get("refuted")
    share = _number(checks.get("share_of_forwards")) or 0.0
    lines = []
    if scalars:
        lines.append(
            f"computed {scalars:,.0f} scalars of others again, {100 * share:.1f} % of its forward passes"
        )
    if isinstance(refuted, dict) and refuted:
        told = ", ".join(f"{_count(n)} of {peer}" for peer, n in sorted(refuted.items()))
        lines.append(f"found other scalars than were published: {told} (evidence in {run.folder})")
    return lines


def json_lines(runs: Sequence[RunFolder], now_unix_s: float) -> list[str]:
    """One JSON object for each peer: its status.json and whether it is silent, or the folder and the problem."""
    return [
        json.dumps(
            {"folder": str(run.folder), "problem": run.problem}
            if run.problem
            else {**run.status, "silent": _is_silent(run, now_unix_s)}
        )
        for run in runs
    ]


def diary_lines(run: RunFolder, count: int = 5) -> list[str]:
    """The last `count` lines of the run's diary, from its journal; none if there is no journal."""
    from runnel.node.journal import read_events

    recent: deque[str] = deque(maxlen=count)
    try:
        for event in read_events(run.folder / JOURNAL_NAME):
            if text := event.diary():
                recent.append(f"{strftime('%H:%M:%S', localtime(event.unix_s))} {text}")
    except FileNotFoundError:
        return []
    return list(recent)


def _status_files(root: Path) -> Iterator[Path]:
    """Below `root`, not below a folder that has one itself: blobs there are many."""
    for folder, names, files in os.walk(root):
        path = Path(folder)
        if STATUS_NAME in files:
            yield path / STATUS_NAME
        if STATUS_NAME in files or len(path.relative_to(root).parts) >= _MAX_DEPTH:
            names.clear()
        else:
            names[:] = sorted(name for name in names if not name.startswith("."))


def _read(path: Path) -> RunFolder:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_STATUS_BYTES + 1)
        status = json.loads(text)
    except OSError as error:
        return RunFolder(path.parent, {}, f"{STATUS_NAME}: {(error.strerror or '').lower()}")
    except (ValueError, RecursionError):
        return RunFolder(path.parent, {}, f"{STATUS_NAME} is damaged: the peer writes a new one")
    if not isinstance(status, dict):
        return RunFolder(path.parent, {}, f"{STATUS_NAME} is damaged: the peer writes a new one")
    return RunFolder(path.parent, status)


def _is_silent(run: RunFolder, now_unix_s: float) -> bool:
    """Whether a peer that has not said that it stopped has written nothing for a minute."""
    goes_on = run.status.get("state", "training") == "training"
    return goes_on and now_unix_s - run.updated_unix_s > _SILENT_S


def _cells(run: RunFolder, now_unix_s: float) -> tuple[str, ...]:
    status = run.status
    loss, age_s = _number(status.get("loss")), max(0.0, now_unix_s - run.updated_unix_s)
    members, state = status.get("members"), str(status.get("state", "?"))
    if _is_silent(run, now_unix_s):
        state = f"silent ({state})"
    return (
        str(status.get("run", run.folder.name)),
        str(status.get("peer", "?"))[:8],
        state,
        _count(status.get("round")),
        str(len(members)) if isinstance(members, list) else _count(members),
        "-" if loss is None else f"{loss:.4f}",
        _count(status.get("tokens")),
        _size(status.get("sent_bytes")),
        _size(status.get("received_bytes")),
        _shares(status),
        f"{_age(age_s)} ago" if run.updated_unix_s else "-",
    )


def _shares(status: Mapping[str, Any]) -> str:
    """How much of its shares of rounds the peer sends: all, or as many slices as its link carries."""
    slices, sent = _number(status.get("slices")), _number(status.get("sent_slices"))
    if not slices or sent is None:
        return "-"
    if sent >= slices:
        return "whole"
    rate = _number(status.get("uplink_mbit"))
    return f"{sent:.0f}/{slices:.0f}" + (f" at {rate:.1f} Mbit/s" if rate else "")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Any) -> str:
    number = _number(value)
    return "-" if number is None else f"{number:,.0f}"


def _size(value: Any) -> str:
    number = _number(value)
    return "-" if number is None else size_text(number)


def _age(seconds: float) -> str:
    for unit_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"
