"""What a chaos run showed: did all that was promised hold, from journals, logs and a survivor's disk.

Pure but for `judge`, which reads them.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runnel.dht.identity import Identity
from runnel.errors import RunnelError
from runnel.node.events import Branched, RoundDecided
from runnel.node.journal import read_events
from runnel.node.wording import count_text
from runnel.tools.chaos_ledger import Cell, read_cells
from runnel.tools.chaos_plan import ENDS_PROCESS, WORDS

if TYPE_CHECKING:
    from runnel.node.events import Event
    from runnel.tools.chaos_swarm import Blow, Course
    from runnel.tools.peer_processes import PeerProcess

MAX_DEADLINES = 2.0
"""What a strike may cost the others while a majority lives, in deadlines without a decided round."""

MAX_GAP = 0.02
"""How far off a cell may be, in parts of its largest share: sums of fp32 values round."""

_BACK_S = 8.0
"""Who came back less than this before is busy catching up and tells of rounds late."""
_BROKEN = "Traceback (most recent call last)"


@dataclass(frozen=True, slots=True)
class Pause:
    """The costliest time between two decided rounds after a strike, for those who were left alone.

    Attributes:
        blow: the strike.
        seconds: between the two; None if nobody was left alone all the while.
        usual_s: the median over the whole run.
        deadline_s: of those who waited, at the time.
    """

    blow: Blow
    seconds: float | None
    usual_s: float
    deadline_s: float

    @property
    def deadlines(self) -> float:
        """What the strike cost, in deadlines; 0 if nobody can tell."""
        return cost(self.seconds or 0.0, self.usual_s, self.deadline_s)


def cost(seconds: float, usual_s: float, deadline_s: float) -> float:
    """What a time between two rounds is beyond the usual, in deadlines."""
    extra_s = max(0.0, seconds - usual_s)
    return extra_s / deadline_s if deadline_s else 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the verdict."""

    check: str
    seen: str
    wanted: str
    held: bool


@dataclass(kw_only=True, slots=True)
class Verdict:
    """All that a chaos run tells at its end.

    Attributes:
        rounds: followed by two peers or more.
        diverged: those among them after which two peers held different bits.
        cells: each peer's account; empty if it could not be read.
        restarted: how often each peer's process was started again.
        pauses: what each strike cost.
        returns: seconds from each strike's end until the peer's next part in a round, None for never.
        branches: closed for want of a majority, though one lived.
        problems: what should not have happened, one sentence each.
    """

    rounds: int
    diverged: list[int]
    cells: list[Cell]
    restarted: Mapping[int, int]
    pauses: list[Pause]
    returns: list[tuple[Blow, float | None]]
    branches: int
    problems: list[str] = field(default_factory=list)

    @property
    def unbalanced(self) -> list[Cell]:
        """Cells that something is missing from, or too much in.

        With each start again a peer's first share also holds what it had handed over before and no
        record had taken: as much as a large share more than its tokens say.
        """
        return [
            cell
            for cell in self.cells
            if cell.missing > MAX_GAP
            or -cell.missing > MAX_GAP + self.restarted.get(cell.slot, 0) * cell.largest_share
        ]

    @property
    def deadlines(self) -> float:
        """What the costliest strike cost."""
        return max((pause.deadlines for pause in self.pauses), default=0.0)

    @property
    def rows(self) -> list[Row]:
        """The table."""
        lost = [blow for blow, took_s in self.returns if took_s is None]
        slowest_s = max((took_s for _, took_s in self.returns if took_s is not None), default=0.0)
        gap = max((abs(c.missing) for c in self.cells if c.slot not in self.restarted), default=0.0)
        back = f"{len(self.returns) - len(lost)} of {count_text(len(self.returns), 'strike')}"
        return [
            Row(
                "equal bits after every round",
                f"{count_text(self.rounds, 'round')} compared, {len(self.diverged)} differ",
                "none differs",
                bool(self.rounds) and not self.diverged,
            ),
            Row(
                "nothing lost, nothing twice",
                f"{count_text(len(self.cells), 'account')}, {len(self.unbalanced)} off;"
                f" largest gap {gap:.1e} shares",
                "all balance",
                bool(self.cells) and not self.unbalanced,
            ),
            Row(
                "the others go on",
                f"costliest strike {self.deadlines:.2f} deadlines{self._costliest()}",
                f"at most {MAX_DEADLINES:g}",
                self.deadlines <= MAX_DEADLINES,
            ),
            Row(
                "who was struck takes part again",
                f"{back}, slowest after {slowest_s:.1f} s",
                "all",
                not lost,
            ),
            Row(
                "a living majority never branches",
                count_text(self.branches, "branch"),
                "none",
                not self.branches,
            ),
            Row(
                "no crash, no traceback",
                count_text(len(self.problems), "problem"),
                "none",
                not self.problems,
            ),
        ]

    @property
    def held(self) -> bool:
        """Whether everything did."""
        return all(row.held for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """One JSON object."""
        judged = [pause.deadlines for pause in self.pauses if pause.seconds is not None]
        return {
            "event": "ChaosEnded",
            "ok": self.held,
            "strikes": len(self.pauses),
            "judged": len(judged),
            "rounds": self.rounds,
            "diverged": len(self.diverged),
            "lost_contributions": len(self.unbalanced) if self.cells else None,
            "deadlines_per_kill": round(statistics.mean(judged), 3) if judged else None,
            "worst_deadlines_per_kill": round(self.deadlines, 3),
            "not_back": sum(took_s is None for _, took_s in self.returns),
            "slowest_return_s": max((t for _, t in self.returns if t is not None), default=None),
            "branches": self.branches,
            "problems": self.problems,
        }

    def _costliest(self) -> str:
        if not self.pauses:
            return ""
        pause = max(self.pauses, key=lambda pause: pause.deadlines)
        kind, peer = pause.blow.strike.kind, pause.blow.strike.peer
        return (
            f" (peer {peer} {WORDS[kind]}: {pause.seconds or 0:.1f} s without a round, usually"
            f" {pause.usual_s:.1f} s)"
        )


def judge(peers: Mapping[int, PeerProcess], course: Course) -> Verdict:
    """The verdict; no peer runs any more."""
    events = {
        index: [event for path in _journals(peer) for event in read_events(path)]
        for index, peer in peers.items()
    }
    rounds, diverged = compared(events)
    restarted = Counter(b.strike.peer for b in course.blows if b.strike.kind in ENDS_PROCESS)
    problems = list(course.problems)
    for peer in peers.values():
        if _BROKEN in peer.log_path.read_text(encoding="utf-8", errors="replace"):
            problems.append(f"{peer.fate.name} wrote a traceback: see {peer.log_path}")
        if peer.fate.forced:
            problems.append(f"{peer.fate.name} did not leave when asked")
        elif peer.fate.exit_code and not course.problems:
            problems.append(
                f"{peer.fate.name} ended with code {peer.fate.exit_code}: {peer.last_words()}"
            )
    return Verdict(
        rounds=rounds,
        diverged=diverged,
        cells=_cells(peers, problems),
        restarted=restarted,
        pauses=pauses(events, course),
        returns=returns(events, course),
        branches=sum(isinstance(e, Branched) for told in events.values() for e in told),
        problems=problems,
    )


def compared(events: Mapping[int, Sequence[Event]]) -> tuple[int, list[int]]:
    """Rounds that two peers or more followed, and those after which their bits differ.

    A round that was given up counts with what took its place.
    """
    outcomes: dict[int, dict[int, str]] = {}
    for index, told in events.items():
        for event in told:
            if isinstance(event, RoundDecided):
                outcomes.setdefault(event.round, {})[index] = event.kind + event.state_root
    both = {number: found for number, found in outcomes.items() if len(found) > 1}
    return len(both), sorted(number for number, found in both.items() if len({*found.values()}) > 1)


def pauses(events: Mapping[int, Sequence[Event]], course: Course) -> list[Pause]:
    """What each strike cost those who were left alone: by pauses that end before the next one.

    After the last one, all that follow count until the peers are asked to leave.
    """
    found, blows = [], course.blows
    usual_s = _usual(events)
    for blow, after in itertools.zip_longest(blows, blows[1:]):
        until_s = after.struck_unix_s if after else course.ended_unix_s
        struck = {
            other.strike.peer
            for other in blows
            if other.struck_unix_s <= until_s
            and (other.back_unix_s is None or other.back_unix_s >= blow.struck_unix_s - _BACK_S)
        }
        alone = {index: told for index, told in events.items() if index not in struck}
        firsts = _first_told(alone)
        waits = [
            (event.unix_s - earlier.unix_s, event.deadline_s)
            for earlier, event in itertools.pairwise(firsts)
            if blow.struck_unix_s < event.unix_s <= until_s
        ]
        seconds, deadline_s = max(
            waits, key=lambda wait: cost(wait[0], usual_s, wait[1]), default=(None, 0.0)
        )
        found.append(Pause(blow, seconds, usual_s, deadline_s))
    return found


def returns(
    events: Mapping[int, Sequence[Event]], course: Course
) -> list[tuple[Blow, float | None]]:
    """How long each struck peer took to have a part in a round again."""
    names = {index: name for name, index in course.ids.items()}
    parts: dict[str, list[float]] = {}
    for event in _first_told(events):
        for name in event.contributors:
            parts.setdefault(name, []).append(event.unix_s)
    found: list[tuple[Blow, float | None]] = []
    for blow in course.blows:
        back_s = blow.back_unix_s
        times = parts.get(names.get(blow.strike.peer, ""), ())
        later = [when for when in times if back_s is not None and when > back_s]
        found.append((blow, min(later) - back_s if later and back_s is not None else None))
    return found


def _first_told(events: Mapping[int, Sequence[Event]]) -> list[RoundDecided]:
    """Each round that ended with a record, as the first of the peers told of it; by time."""
    first: dict[int, RoundDecided] = {}
    for told in events.values():
        for event in told:
            if isinstance(event, RoundDecided) and event.kind == "record":
                known = first.get(event.round)
                if known is None or event.unix_s < known.unix_s:
                    first[event.round] = event
    return sorted(first.values(), key=lambda event: event.unix_s)


def _usual(events: Mapping[int, Sequence[Event]]) -> float:
    times = [event.unix_s for event in _first_told(events)]
    return statistics.median(b - a for a, b in itertools.pairwise(times)) if len(times) > 1 else 0.0


def _journals(peer: PeerProcess) -> list[Any]:
    return sorted(peer.home.glob("runs/*/journal.jsonl"))


def _cells(peers: Mapping[int, PeerProcess], problems: list[str]) -> list[Cell]:
    """The accounts by the first peer's disk; what goes wrong becomes a problem."""
    try:
        slots = {
            Identity.load(peer.home / "identity.key").peer_id: index
            for index, peer in peers.items()
        }
        folder = next(iter(sorted(peers[0].home.glob("runs/*"))), peers[0].home)
        return read_cells(folder, slots)
    except RunnelError as error:
        problems.append(f"the accounts cannot be read: {error}")
        return []
