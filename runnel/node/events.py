"""What happened, as facts: one frozen class per kind of event, its JSON line and its diary line.

The journal keeps all of them, screens and reports are made of them, and the INFO log says the
diary line of those that have one. Peers are named by `types.short`, digests by hex. An event says
nothing about text layout, colours or log levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runnel.node.wording import count_text, size_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A fact with its time, in seconds since 1970 on this machine's clock."""

    unix_s: float

    def diary(self) -> str | None:
        """The line a person reads, or None for facts that only machines want."""
        return None


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
class RoundCommitted(Event):
    """This peer has committed to what it contributes: inner steps and tokens behind it, payload bytes."""

    round: int
    fragment: int
    tokens: int
    steps: int
    payload_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SetDecided(Event):
    """It is decided whose commitments count; `seconds` since the round opened here."""

    round: int
    contributors: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundDecided(Event):
    """The outcome of a round is decided: `kind` is "record", "abort" or "branch".

    `waited_for` is the peer whose part came last, or "". Norms are of this round's fragment:
    error feedback that stays here, and the change of the outer parameters. `deadline_s` is how long
    this peer then waited for a part that does not come, as it follows from recent arrivals. `missed`
    if it was decided while this peer was away.
    """

    round: int
    kind: str
    fragment: int
    contributors: tuple[str, ...]
    members: int
    seconds: float
    waited_for: str = ""
    sent_bytes: int = 0
    state_root: str = ""
    residual_norm: float = 0.0
    mean_norm: float = 0.0
    deadline_s: float = 0.0
    missed: bool = False

    def diary(self) -> str | None:
        """The one line per round; what was missed is told of by `CaughtUp`."""
        if self.missed:
            return None
        up = f"{size_text(self.sent_bytes)} up"
        if self.kind == "record":
            share = f"{len(self.contributors)} of {count_text(self.members, 'peer')}"
            return f"round {self.round} done: {share}, {up}, {self.seconds:.1f} s"
        waited = f", waited for {self.waited_for}" if self.waited_for else ""
        if self.kind == "abort":
            done = "aborted, its work goes into the next ones"
            return f"round {self.round} {done}: {up}, {self.seconds:.1f} s{waited}"
        return f"round {self.round} closed by {self.kind}: {self.seconds:.1f} s{waited}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CaughtUp(Event):
    """This peer has followed what was decided while it was away: rounds `first` to `last`.

    `records`, `aborts` and `branches` among them; `included` of the records hold its own work;
    `given_up` rounds of its own were taken back on the way, as the others went on without them.
    """

    first: int
    last: int
    records: int
    aborts: int
    branches: int
    included: int
    given_up: int
    seconds: float

    def diary(self) -> str | None:
        """See `Event.diary`."""
        told = [count_text(self.records, "record")]
        told += [count_text(self.aborts, "abort")] if self.aborts else []
        told += [count_text(self.branches, "branch")] if self.branches else []
        line = f"caught up with rounds {self.first} to {self.last} in {self.seconds:.1f} s"
        line += f": {', '.join(told)}; own work is in {self.included}"
        if self.given_up:
            line += f"; {count_text(self.given_up, 'round')} of another branch given up"
        return line


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundLate(Event):
    """A round went by without this peer's contribution; its work is carried into the next one."""

    round: int
    reason: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"late for round {self.round}: {self.reason}; the work goes into the next one"


@dataclass(frozen=True, kw_only=True, slots=True)
class ContributionRefused(Event):
    """A check turned down what a peer contributed."""

    round: int
    peer: str
    check: str
    reason: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"round {self.round}: peer {self.peer} refused by {self.check}: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class MessageRefused(Event):
    """Messages of a peer were dropped; `count` of this reason since the event before."""

    peer: str
    reason: str
    count: int

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"refused {count_text(self.count, 'message')} of peer {self.peer}: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class InnerProgress(Event):
    """Where the trainer is: inner steps so far, mean loss and tokens since the event before."""

    step: int
    round: int
    loss: float
    tokens: int
    tokens_per_s: float
    lr: float


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
    """The run's state came from other peers and its hashes are right."""

    round: int
    size_bytes: int
    seconds: float
    donors: tuple[str, ...]

    def diary(self) -> str | None:
        """See `Event.diary`."""
        amount = f"{size_text(self.size_bytes)} from {count_text(len(self.donors), 'peer')}"
        return (
            f"got the state of round {self.round}: {amount} in {self.seconds:.1f} s, hashes match"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeApplied(Event):
    """The trainer's parameters took up a decided round; `included`: this peer's part is in it."""

    round: int
    fragment: int
    included: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ContributionWithheld(Event):
    """This peer did not offer its own work for a round: a NaN in the loss or gradients, for instance."""

    round: int
    reason: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"round {self.round}: own contribution withheld: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Branched(Event):
    """A quorum was out of reach for the stall time, and those who reach each other go on."""

    round: int
    members: tuple[str, ...]

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"round {self.round}: no quorum in reach, going on with {', '.join(self.members)}"


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
        RoundCommitted,
        SetDecided,
        RoundDecided,
        CaughtUp,
        RoundLate,
        ContributionRefused,
        MessageRefused,
        InnerProgress,
        Evaluated,
        StateFetched,
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
