"""What a demo showed: figures from the peers' journals, and whether all held what was promised."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runnel.node.events import MemberRemoved, PeerReady, RoundDecided, RoundLate, StateFetched
from runnel.node.wording import count_text, size_text
from runnel.tools.peer_history import data_parallel_bytes
from runnel.tools.report_words import same_bits

if TYPE_CHECKING:
    from runnel.node.events import Event
    from runnel.tools.history import SwarmHistory
    from runnel.tools.peer_processes import Fate

_USUAL_ROUNDS = 20
_AFTER_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class KillCost:
    """What the others paid for a death, until half a minute after it was out of the view.

    Attributes:
        peer: who died.
        aborted: rounds given up; their work went into the next ones.
        branches: rounds closed by a branch, because no quorum was left.
        late: contributions of others that missed a round.
        removed_after_s: until it was out of the view; None if that did not happen.
        longest_wait_s: the longest time between two rounds.
        usual_wait_s: the median before it.
    """

    peer: str
    aborted: int
    branches: int
    late: int
    removed_after_s: float | None
    longest_wait_s: float
    usual_wait_s: float

    def sentence(self) -> str:
        """For people."""
        gone = (
            "it was still a member at the end"
            if self.removed_after_s is None
            else f"the others had removed it after {self.removed_after_s:.1f} s"
        )
        branched = f", {count_text(self.branches, 'branch')}" if self.branches else ""
        return (
            f"Killing {self.peer} cost {count_text(self.aborted, 'aborted round')}{branched} and"
            f" {count_text(self.late, 'late contribution')} of the others; the longest wait for a round"
            f" was {self.longest_wait_s:.1f} s instead of the usual {self.usual_wait_s:.1f} s, and {gone}."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CatchUp:
    """How a peer that came late caught up; seconds since its process was started, None for never.

    `own_s` is the part that its peers had to do with: from asking for the state to being ready.
    """

    peer: str
    ready_s: float | None
    own_s: float | None
    fetched_bytes: int
    donors: int
    first_round: int | None
    first_round_s: float | None

    def sentence(self) -> str:
        """For people."""
        if self.ready_s is None or self.own_s is None:
            return f"{self.peer} joined late and did not catch up."
        text = (
            f"{self.peer} joined late and was up to date {self.ready_s:.1f} s after its process"
            f" started, of which joining and catching up took {self.own_s:.1f} s:"
            f" {size_text(self.fetched_bytes)} of state from {count_text(self.donors, 'peer')}"
        )
        if self.first_round is not None and self.first_round_s is not None:
            text += f"; its first contribution is in round {self.first_round}, {self.first_round_s:.1f} s after its start"
        return f"{text}."


@dataclass(kw_only=True, slots=True)
class Outcome:
    """All that the demo tells at its end; `problems` is empty if everything held."""

    history: SwarmHistory
    parameters: int
    peers: int
    sent: Mapping[str, Mapping[str, int]]
    cost: KillCost | None = None
    catch_up: CatchUp | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def data_parallel_bytes(self) -> float:
        """What each peer of data parallel would have sent for the same steps."""
        return data_parallel_bytes(self.parameters, self.peers, self.history.step)

    def notes(self) -> list[str]:
        """Sentences that the journals' own summary does not have."""
        told = [self.cost, self.catch_up]
        return [part.sentence() for part in told if part is not None]

    def bytes_lines(self) -> list[str]:
        """A line for each peer: what it sent, by purpose."""
        lines = []
        for name, purposes in sorted(self.sent.items()):
            parts = sorted(purposes.items(), key=lambda item: -item[1])
            told = ", ".join(f"{size_text(size)} {purpose}" for purpose, size in parts)
            lines.append(f"{name} sent {size_text(sum(purposes.values()))}: {told or 'nothing'}")
        lines.append(f"data parallel: {size_text(self.data_parallel_bytes)} from each peer")
        return lines

    def as_json(self) -> dict[str, Any]:
        """One JSON object."""
        history, losses = self.history, self.history.mean_loss()
        kinds = [past.kind for past in history.rounds.values()]
        held_out = max(history.evaluations, key=lambda e: (e.round, e.unix_s), default=None)
        most = max((sum(purposes.values()) for purposes in self.sent.values()), default=0)
        return {
            "event": "DemoEnded",
            "ok": not self.problems,
            "problems": self.problems,
            "parameters": self.parameters,
            "steps": history.step,
            "rounds": kinds.count("record"),
            "aborted": kinds.count("abort"),
            "branches": kinds.count("branch"),
            "state_roots": {name: root for name, (_, root) in history.final_roots.items()},
            "train_loss": losses[-1][1] if losses else None,
            "held_out_loss": held_out.loss if held_out else None,
            "sent_by_purpose": {name: dict(purposes) for name, purposes in self.sent.items()},
            "data_parallel_bytes": self.data_parallel_bytes,
            "bytes_ratio": self.data_parallel_bytes / most if most else None,
            "killed": _fields(self.cost),
            "joined_late": _fields(self.catch_up),
        }


def find_problems(history: SwarmHistory, fates: Sequence[Fate]) -> list[str]:
    """What was promised and did not hold: the same bits everywhere, and that everybody got to the end."""
    problems = []
    finals = history.final_roots
    torn = not all(past.agreed for past in history.rounds.values())
    if torn or len({root for _, root in finals.values()}) > 1:
        problems.append(same_bits(history))
    elif len({number for number, _ in finals.values()}) > 1:
        told = ", ".join(
            f"{name} at round {number}" for name, (number, _) in sorted(finals.items())
        )
        problems.append(f"The replicas that got to the end do not agree where it is: {told}.")
    if not any(past.kind == "record" for past in history.rounds.values()):
        problems.append("no round was decided")
    for fate in fates:
        reached = fate.name in history.final_roots
        if fate.killed_unix_s is None and not reached:
            problems.append(f"{fate.name} did not reach the run's end")
    return problems


def kill_cost(history: SwarmHistory, events: Mapping[str, Sequence[Event]], fate: Fate) -> KillCost:
    """What the death of `fate` cost; `events` by peer, all of them."""
    died_s = fate.killed_unix_s or 0.0
    victim = history.peers[fate.name].peer if fate.name in history.peers else ""
    others = [event for name, told in events.items() if name != fate.name for event in told]
    present = [
        event
        for name, told in events.items()
        if name != fate.name and _was_ready(told, died_s)
        for event in told
    ]
    gone_s = min(
        (
            event.unix_s
            for event in others
            if isinstance(event, MemberRemoved) and event.peer == victim and event.unix_s > died_s
        ),
        default=None,
    )
    until_s = (died_s if gone_s is None else gone_s) + _AFTER_S
    times = sorted(past.decided_s for past in history.rounds.values())
    waits = [(later, later - sooner) for sooner, later in itertools.pairwise(times)]
    before = [wait for later, wait in waits if later <= died_s][-_USUAL_ROUNDS:]
    after = [wait for later, wait in waits if died_s < later <= until_s]
    kinds = [past.kind for past in history.rounds.values() if died_s < past.decided_s <= until_s]
    return KillCost(
        peer=fate.name,
        aborted=kinds.count("abort"),
        branches=kinds.count("branch"),
        late=sum(isinstance(e, RoundLate) and died_s < e.unix_s <= until_s for e in present),
        removed_after_s=None if gone_s is None else gone_s - died_s,
        longest_wait_s=max(after, default=0.0),
        usual_wait_s=statistics.median(before) if before else 0.0,
    )


def catch_up(history: SwarmHistory, events: Sequence[Event], fate: Fate) -> CatchUp:
    """How the peer of `fate` caught up; `events` are its own."""
    ready = next((event for event in events if isinstance(event, PeerReady)), None)
    fetched = next((event for event in events if isinstance(event, StateFetched)), None)
    me = history.peers[fate.name].peer if fate.name in history.peers else ""
    first = next(
        (
            event
            for event in events
            if isinstance(event, RoundDecided)
            and event.kind == "record"
            and me in event.contributors
        ),
        None,
    )
    return CatchUp(
        peer=fate.name,
        ready_s=None if ready is None else ready.unix_s - fate.started_unix_s,
        own_s=None if ready is None else ready.seconds,
        fetched_bytes=0 if fetched is None else fetched.size_bytes,
        donors=0 if fetched is None else len(fetched.donors),
        first_round=None if first is None else first.round,
        first_round_s=None if first is None else first.unix_s - fate.started_unix_s,
    )


def _was_ready(events: Sequence[Event], unix_s: float) -> bool:
    """Whether a peer trained by then: one that comes later is late for other reasons."""
    return any(isinstance(event, PeerReady) and event.unix_s <= unix_s for event in events)


def _fields(part: KillCost | CatchUp | None) -> dict[str, Any] | None:
    if part is None:
        return None
    return {name: getattr(part, name) for name in part.__slots__}
