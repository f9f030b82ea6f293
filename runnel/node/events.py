"""What happened, as facts: one frozen class per kind of event, its JSON line and its diary line.

The journal keeps all of them, screens and reports are made of them, and the INFO log says the
diary line of those that have one. Peers are named by `types.short`, digests by hex. An event says
nothing about text layout, colours or log levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runnel.node.event import Event
from runnel.node.refusals import (
    ContributionRefused,
    Equivocated,
    MessageRefused,
    ScalarRefuted,
)
from runnel.node.round_events import (
    Branched,
    CaughtUp,
    ContributionWithheld,
    MergeApplied,
    ResidualCut,
    RoundCommitted,
    RoundDecided,
    RoundLate,
    SetDecided,
    WindowStarted,
)
from runnel.node.wording import count_text, size_text

__all__ = [
    "KINDS",
    "Branched",
    "CaughtUp",
    "Checkpointed",
    "ContributionRefused",
    "ContributionWithheld",
    "Equivocated",
    "Evaluated",
    "Event",
    "InnerProgress",
    "MemberJoined",
    "MemberLeft",
    "MemberRemoved",
    "MergeApplied",
    "MessageRefused",
    "PeerReached",
    "PeerReady",
    "PeerStarted",
    "PeerStopped",
    "PeerWarned",
    "ResidualCut",
    "RoundCommitted",
    "RoundDecided",
    "RoundLate",
    "RunEnded",
    "ScalarRefuted",
    "SetDecided",
    "StateFetched",
    "TrafficCounted",
    "UnknownEvent",
    "WindowStarted",
    "diary",
]

_DONORS_NAMED = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerStarted(Event):
    """The node is up: its identity, the run (its id or name) and where it listens."""

    peer: str
    run: str
    addresses: tuple[str, ...] = ()

    def diary(self) -> str | None:
        """Addresses are counted, not shown: logs get pasted into public places."""
        return f"peer {self.peer} started in run {self.run}, {count_text(len(self.addresses), 'address')}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerReady(Event):
    """This peer holds the newest state and begins to train; `round` is the next one to be decided."""

    round: int
    members: int
    seconds: float

    def diary(self) -> str | None:
        """See `Event.diary`."""
        members = count_text(self.members, "member")
        return f"ready at round {self.round} with {members}, after {self.seconds:.1f} s"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberJoined(Event):
    """A decided view names a peer that the one before did not."""

    peer: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"peer {self.peer} joined"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberLeft(Event):
    """A member said goodbye, and the view goes on without it."""

    peer: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"peer {self.peer} left"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberRemoved(Event):
    """A member was taken out of the view by decision."""

    peer: str
    reason: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"peer {self.peer} removed: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerReached(Event):
    """How a member is reached has changed: "directly", "through" another peer, or "in no way"."""

    peer: str
    way: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"peer {self.peer} is reached {self.way}"


@dataclass(frozen=True, kw_only=True, slots=True)
class InnerProgress(Event):
    """Where the trainer is: inner steps and tokens so far, mean loss of the newest steps.

    Since the event before, `exchange_s` seconds went into handing over and merging, and `waited_s` into
    waiting for others. `forwards_per_s` are forward passes, where steps are made of them. Since the
    start `checked` scalars of others were computed again, which took `checking_share` of all forward
    passes, and `refuted` of them were other ones.
    """

    step: int
    round: int
    loss: float
    tokens: int
    tokens_per_s: float
    lr: float
    exchange_s: float = 0.0
    waited_s: float = 0.0
    forwards_per_s: float = 0.0
    checked: int = 0
    refuted: int = 0
    checking_share: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated(Event):
    """Loss of the outer parameters after `round` on held-out tokens, in nats per token."""

    round: int
    loss: float
    tokens: int

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"after round {self.round}: loss {self.loss:.4f} on {self.tokens:,} held-out tokens"


@dataclass(frozen=True, kw_only=True, slots=True)
class StateFetched(Event):
    """The run's state came from other peers, `donors`, and its hashes are right.

    `kept_bytes` of it were here from a download that was cut off; `liars` sent something else and
    were not asked again. With `log_rounds` it was rebuilt from so many rounds of the log, whose bytes count.
    """

    round: int
    size_bytes: int
    seconds: float
    donors: tuple[str, ...]
    kept_bytes: int = 0
    liars: tuple[str, ...] = ()
    bytes_by_donor: Mapping[str, int] = field(default_factory=dict)
    log_rounds: int = 0

    def diary(self) -> str | None:
        """See `Event.diary`."""
        amount = f"{size_text(self.size_bytes)} from {count_text(len(self.donors), 'peer')}"
        given = _largest_of(self.bytes_by_donor)
        kept = f", {size_text(self.kept_bytes)} were here" if self.kept_bytes else ""
        told = f"; wrong bytes came from {', '.join(self.liars)}" if self.liars else ""
        if self.log_rounds:
            brought = f"{amount}{given}" if self.donors else "all of it was here"
            return (
                f"rebuilt the state of round {self.round} from the log of"
                f" {count_text(self.log_rounds, 'round')}: {brought}; in {self.seconds:.1f} s{told}"
            )
        if not self.size_bytes:
            return "the run's first state was here: nothing had to be fetched"
        return (
            f"got the state of round {self.round}: {amount}{given} in {self.seconds:.1f} s{kept},"
            f" hashes match{told}"
        )


def _largest_of(bytes_by_donor: Mapping[str, int]) -> str:
    """Who gave most of a state, for people; empty if nobody is known."""
    largest = sorted(bytes_by_donor.items(), key=lambda item: (-item[1], item[0]))
    given = [f"{peer} {size_text(size)}" for peer, size in largest[:_DONORS_NAMED]]
    more = ["..."] if len(largest) > _DONORS_NAMED else []
    return f" ({', '.join(given + more)})" if given else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpointed(Event):
    """A checkpoint is on disk, complete."""

    round: int
    path: str
    digest: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"checkpoint of round {self.round}: {self.path} ({self.digest[:8]})"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficCounted(Event):
    """Bytes by purpose since the peer started, framing included."""

    sent: Mapping[str, int] = field(default_factory=dict)
    received: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerWarned(Event):
    """Something a person should look at, in one line that says what to do."""

    text: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"warning: {self.text}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnded(Event):
    """The manifest's end is reached: the last round and the hash of the state all replicas hold."""

    round: int
    reason: str
    state_root: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"the run ended at round {self.round} ({self.reason}); state {self.state_root[:8]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerStopped(Event):
    """The last event of a peer that stopped in order."""

    reason: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"stopped: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnknownEvent(Event):
    """A line of a newer version, or one whose fields are not ours; kept as it came."""

    kind: str
    line: str


KINDS: Mapping[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        PeerStarted,
        PeerReady,
        MemberJoined,
        MemberLeft,
        MemberRemoved,
        PeerReached,
        RoundCommitted,
        SetDecided,
        RoundDecided,
        CaughtUp,
        RoundLate,
        ResidualCut,
        ContributionRefused,
        MessageRefused,
        Equivocated,
        ScalarRefuted,
        InnerProgress,
        Evaluated,
        StateFetched,
        WindowStarted,
        MergeApplied,
        ContributionWithheld,
        Branched,
        Checkpointed,
        TrafficCounted,
        PeerWarned,
        RunEnded,
        PeerStopped,
    )
}
"""Every kind of event by the name it has in JSON."""


def diary(event: Event) -> str | None:
    """The one line for a person, or None for facts that only machines want."""
    return event.diary()
