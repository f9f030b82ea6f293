"""One page on a simulation: rounds, faults, agreement, accounts, bytes, and the worst pauses with their reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from runnel.node.wording import count_text, size_text
from runnel.tools import sim_faults as do
from runnel.tools.chaos_ledger import Cell
from runnel.tools.sim_watch import Phase, Span
from runnel.tools.sim_waterfall import decided_at
from runnel.tools.sim_world import Course, Struck

MAX_GAP = 0.01
"""How far off an account may be, in parts of a usual share: sums of fp32 values round."""

_PAUSES = 5
_SHORT_S = 1.0


@dataclass(frozen=True, slots=True)
class Pause:
    """A round that took longer than usual: by how much, in which phase, waiting for whom, and what was amiss."""

    round: int
    kind: str
    seconds: float
    extra_s: float
    phase: str
    waited_for: tuple[int, ...]
    faults: tuple[str, ...]

    def line(self) -> str:
        """For people."""
        who = f" for {_names(self.waited_for)}" if self.waited_for else ""
        why = f"; {', '.join(self.faults)}" if self.faults else ""
        took = f"round {self.round} ({self.kind}) took {self.seconds:.1f} s"
        return f"{took}, {self.extra_s:.1f} s more than usual: most in {self.phase}{who}{why}"


@dataclass(frozen=True, slots=True)
class Summary:
    """What is told at the end.

    Attributes:
        kinds: decided rounds by kind.
        round_s: from one decision to the next, the median.
        cells: every peer's account; empty if it could not be read.
    """

    course: Course
    kinds: Mapping[str, int]
    round_s: float
    pauses: Sequence[Pause]
    cells: Sequence[Cell]
    real_s: float

    @property
    def unbalanced(self) -> list[Cell]:
        """Accounts that something is missing from, or too much in."""
        return [cell for cell in self.cells if abs(cell.missing) > MAX_GAP]

    @property
    def held(self) -> bool:
        """Whether all agree, no account is off and nothing failed."""
        sound = bool(self.cells) and not self.unbalanced
        return self.course.agree and sound and not self.course.problems

    def lines(self) -> list[str]:
        """For people."""
        course, kinds = self.course, self.kinds
        total = sum(course.sent.values())
        told = ", ".join(count_text(kinds.get(kind, 0), kind) for kind in _KINDS)
        alone = len({(number, peer) for _, peer, number in course.branches})
        told += f"; {count_text(alone, 'step')} of single peers onto branches" if alone else ""
        bytes_ = ", ".join(f"{p} {size_text(n)}" for p, n in sorted(course.sent.items()))
        share = course.sent.get("control", 0) / total if total else 0.0
        number = next(iter(course.heads.values()))[0] if course.heads else -1
        same = (
            f"all {len(course.heads)} peers that were there at the end hold round {number} and the"
            f" same bits, {course.settled_s - course.lasted_s:.0f} s after training stopped"
            if course.agree
            else f"{len(set(course.heads.values()))} different states among {len(course.heads)} peers"
        )
        gap = max((abs(cell.missing) for cell in self.cells), default=0.0)
        accounts = (
            f"{len(self.cells)} read, {len(self.unbalanced)} off; largest gap {gap:.1e} shares"
        )
        lines = [
            f"rounds     {sum(kinds.values())}: {told}; {self.round_s:.1f} s each (median)",
            f"faults     {_told(course.struck)}",
            f"agreement  {same}",
            f"accounts   {accounts}",
            f"bytes      {size_text(total)} sent by all: {bytes_}; control is {share:.1%} here",
            f"trace      {course.trace[:16]}",
        ]
        lines += [f"pause      {pause.line()}" for pause in self.pauses]
        return lines + [f"problem    {problem}" for problem in course.problems]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        course = self.course
        return {
            "rounds": dict(self.kinds),
            "round_s": self.round_s,
            "faults": dict(_counted(course.struck)),
            "peers_at_end": len(course.heads),
            "agree": course.agree,
            "accounts": len(self.cells),
            "accounts_off": len(self.unbalanced),
            "sent_bytes": dict(sorted(course.sent.items())),
            "trace": course.trace,
            "pauses": [pause.line() for pause in self.pauses],
            "problems": course.problems,
            "held": self.held,
            "simulated_s": course.settled_s,
            "real_s": round(self.real_s, 1),
        }


_KINDS = ("record", "abort", "branch")


def summarize(
    course: Course, spans: Sequence[Span], cells: Sequence[Cell], *, real_s: float
) -> Summary:
    """What the course of a simulation says."""
    decided = decided_at(course)
    times = sorted((when, number, kind) for number, (when, kind) in decided.items())
    gaps = [after[0] - before[0] for before, after in pairwise(times)]
    usual = median(gaps) if gaps else 0.0
    worst = sorted(range(len(gaps)), key=lambda i: -gaps[i])[:_PAUSES]
    pauses = [
        _pause(course, spans, times[i + 1], begun_s=times[i][0], usual_s=usual)
        for i in worst
        if gaps[i] - usual > max(_SHORT_S, 0.25 * usual)
    ]
    return Summary(
        course, Counter(kind for _, kind in decided.values()), usual, pauses, cells, real_s
    )


def _pause(
    course: Course,
    spans: Sequence[Span],
    decided: tuple[float, int, str],
    *,
    begun_s: float,
    usual_s: float,
) -> Pause:
    ended_s, number, kind = decided
    seconds: Counter[Phase] = Counter()
    waits: dict[Phase, Counter[int]] = {}
    for span in spans:
        within = min(span.end_s, ended_s) - max(span.start_s, begun_s)
        if span.round != number or within <= 0:
            continue
        seconds[span.phase] += int(1000 * within)
        waits.setdefault(span.phase, Counter()).update(dict.fromkeys(span.waited_for, 1))
    phase = max(seconds, key=lambda one: seconds[one], default=Phase.TRAIN)
    most = waits.get(phase, Counter()).most_common(4)
    often = [peer for peer, count in most if 2 * count > most[0][1]]
    amiss = tuple(
        f"{_word(struck)} at {struck.start_s:.0f} s"
        for struck in course.struck
        if struck.start_s <= ended_s
        and struck.end_s >= begun_s - usual_s
        and struck.end_s < float("inf")
    )
    took = ended_s - begun_s
    return Pause(number, kind, took, took - usual_s, phase.value, tuple(sorted(often)), amiss[:4])


def _word(struck: Struck) -> str:
    deed = struck.fault.do
    word = type(deed).__name__.lower()
    if isinstance(deed, do.Partition):
        return f"partition of {_names(deed.peers)} from the others"
    return f"{word} of {struck.fault.peer:02d}"


def _counted(struck: Sequence[Struck]) -> Counter[str]:
    return Counter(type(one.fault.do).__name__.lower() for one in struck)


def _told(struck: Sequence[Struck]) -> str:
    counts = _counted(struck)
    return ", ".join(f"{counts[word]} {word}" for word in sorted(counts)) or "none"


def _names(peers: Sequence[int]) -> str:
    few = " ".join(f"{peer:02d}" for peer in peers[:8])
    return few if len(peers) <= 8 else f"{few} and {len(peers) - 8} more"
