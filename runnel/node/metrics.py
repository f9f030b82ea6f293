"""What a running peer tells monitoring about itself: the table of metrics, and their present values.

No library and no network here: `metrics_endpoint` serves what this collects.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runnel.node.events import (
    ContributionRefused,
    ContributionWithheld,
    Equivocated,
    Event,
    InnerProgress,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MergeApplied,
    MessageRefused,
    PeerWarned,
    RoundDecided,
    RoundLate,
    ScalarRefuted,
    StateFetched,
)

Labels = tuple[str, ...]
"""Values of a metric's labels, in the order of their names."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: `kind` is "counter" or "gauge"; a counter's name ends with ``_total``."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("runnel_info", "gauge", "always 1", ("version", "run", "run_id", "peer")),
        Metric("runnel_round", "gauge", "newest decided round; -1 before the first"),
        Metric("runnel_progress_ratio", "gauge", "share of the run that is done, 0 to 1"),
        Metric("runnel_run_tokens", "gauge", "tokens that the whole run has trained on"),
        Metric("runnel_members", "gauge", "members of the newest view"),
        Metric("runnel_is_member", "gauge", "1 if this peer is one of them"),
        Metric("runnel_heard_peers", "gauge", "peers of the run heard in the last ten seconds"),
        Metric(
            "runnel_overdue_peers", "gauge", "members that nobody waits for until they are heard"
        ),
        Metric("runnel_rounds_total", "counter", "decided rounds since the start", ("outcome",)),
        Metric("runnel_own_rounds_total", "counter", "records that this peer's work is in"),
        Metric("runnel_late_rounds_total", "counter", "rounds that went by without this peer"),
        Metric("runnel_withheld_total", "counter", "own contributions withheld, NaN for instance"),
        Metric("runnel_round_seconds", "gauge", "from the round before to the newest one"),
        Metric("runnel_deadline_seconds", "gauge", "how long others are waited for", ("for",)),
        Metric("runnel_refusals_total", "counter", "refused by this peer", ("what", "reason")),
        Metric("runnel_equivocations_total", "counter", "members found to have signed two things"),
        Metric(
            "runnel_refuted_scalars_total", "counter", "scalars of others that came out otherwise"
        ),
        Metric("runnel_view_changes_total", "counter", "changes of the view", ("change",)),
        Metric("runnel_bytes_total", "counter", "framing included", ("purpose", "direction")),
        Metric("runnel_steps_total", "counter", "inner steps of this peer"),
        Metric("runnel_tokens_total", "counter", "tokens that this peer has trained on"),
        Metric("runnel_tokens_per_second", "gauge", "of this peer, lately"),
        Metric("runnel_loss", "gauge", "mean training loss of the newest steps"),
        Metric("runnel_validation_loss", "gauge", "loss on the held-out text"),
        Metric(
            "runnel_trainer_seconds_total",
            "counter",
            "time of the training loop in peer.step, waiting for others and all else",
            ("in",),
        ),
        Metric("runnel_state_fetches_total", "counter", "states fetched from other peers"),
        Metric("runnel_pinned_round", "gauge", "newest pinned round; -1 for the first state"),
        Metric("runnel_pinned_states", "gauge", "pinned states, by fragment, ready for newcomers"),
        Metric("runnel_home_bytes", "gauge", "size of the files in the home folder"),
        Metric("runnel_warnings_total", "counter", "warnings that a person should look at"),
    )
}
"""All metrics, in the order of docs/metrics.md."""

_CHANGES: Mapping[type[Event], str] = {
    MemberJoined: "joined",
    MemberLeft: "left",
    MemberRemoved: "removed",
}
_COUNTED: Mapping[type[Event], str] = {
    RoundLate: "runnel_late_rounds_total",
    ContributionWithheld: "runnel_withheld_total",
    Equivocated: "runnel_equivocations_total",
    ScalarRefuted: "runnel_refuted_scalars_total",
    StateFetched: "runnel_state_fetches_total",
    PeerWarned: "runnel_warnings_total",
}
_OF_STATUS: Mapping[str, str] = {
    "runnel_round": "round",
    "runnel_progress_ratio": "progress",
    "runnel_run_tokens": "tokens",
    "runnel_loss": "loss",
    "runnel_validation_loss": "validation_loss",
    "runnel_tokens_per_second": "tokens_per_s",
}


class Figures:
    """Present values of all metrics; fed and read from any thread. Bounded: labels are ours, never strangers'."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, Labels], float] = {}
        self._status: Callable[[], Mapping[str, Any]] | None = None

    def attach(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """From now on `status` tells what `runnel status --json` shows; called at each reading."""
        self._status = status

    def put(self, name: str, value: float, labels: Labels = ()) -> None:
        """The present value of a gauge."""
        with self._lock:
            self._values[name, labels] = value

    def take(self, event: Event) -> None:
        """Counts what an event says."""
        with self._lock:
            self._count(event)

    def read(self) -> Iterator[tuple[Metric, Labels, float]]:
        """Every value there is by now, metric by metric in the order of `METRICS`."""
        status = dict(self._status()) if self._status else {}
        with self._lock:
            values = dict(self._values)
        values |= _of_status(status)
        for name, metric in METRICS.items():
            for (of, labels), value in sorted(values.items()):
                if of == name:
                    yield metric, labels, float(value)

    def _add(self, name: str, amount: float, labels: Labels = ()) -> None:
        self._values[name, labels] = self._values.get((name, labels), 0) + amount

    def _count(self, event: Event) -> None:
        match event:
            case RoundDecided():
                self._add("runnel_rounds_total", 1, (event.kind,))
                self._values["runnel_round_seconds", ()] = event.seconds
            case MergeApplied(included=True):
                self._add("runnel_own_rounds_total", 1)
            case MessageRefused():
                self._add("runnel_refusals_total", event.count, ("message", event.reason))
            case ContributionRefused():
                self._add("runnel_refusals_total", 1, ("contribution", event.check))
            case MemberJoined() | MemberLeft() | MemberRemoved():
                self._add("runnel_view_changes_total", 1, (_CHANGES[type(event)],))
            case InnerProgress():
                self._values["runnel_steps_total", ()] = event.step
                self._values["runnel_tokens_total", ()] = event.tokens
                self._add("runnel_trainer_seconds_total", event.waited_s, ("waiting",))
                self._add("runnel_trainer_seconds_total", event.exchange_s, ("exchange",))
            case _ if type(event) in _COUNTED:
                self._add(_COUNTED[type(event)], 1)


def _of_status(status: Mapping[str, Any]) -> dict[tuple[str, Labels], float]:
    """What a peer's status says, as values of metrics; nothing for what it does not know yet."""
    if not status:
        return {}
    values: dict[tuple[str, Labels], float] = {
        (name, ()): float(status[key])
        for name, key in _OF_STATUS.items()
        if status.get(key) is not None
    }
    members = status["members"]
    values["runnel_members", ()] = len(members)
    values["runnel_is_member", ()] = status["peer"] in members
    info = ("version", "run", "run_id", "peer")
    values["runnel_info", tuple(str(status[key]) for key in info)] = 1
    for direction in ("sent", "received"):
        for purpose, amount in status[f"{direction}_by_purpose"].items():
            values["runnel_bytes_total", (purpose, direction)] = amount
    return values
