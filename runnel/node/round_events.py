"""What happens to rounds: events of contributions, decisions, merges and branches."""

from __future__ import annotations

from dataclasses import dataclass

from runnel.node.event import Event
from runnel.node.wording import count_text, size_text


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundCommitted(Event):
    """This peer has committed to what it contributes: inner steps and tokens behind it, payload bytes.

    Of its `slices` as many as are `withheld` are not sent this time; `paced` if that is another part of
    them than before. `uplink_mbit` is what its link was seen to carry, or may, 0 if that is not known.
    """

    round: int
    fragment: int
    tokens: int
    steps: int
    payload_bytes: int
    slices: int = 0
    withheld: int = 0
    uplink_mbit: float = 0.0
    paced: bool = False

    def diary(self) -> str | None:
        """Said where it changes."""
        if not self.paced:
            return None
        if not self.withheld:
            return "this link carries whole shares"
        sent = f"{self.slices - self.withheld} of {count_text(self.slices, 'slice')}"
        return f"this link carries {self.uplink_mbit:.1f} Mbit/s: {sent} of each share sent in turn"


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
    this peer then waited for a part that does not come, as it follows from recent arrivals. Of `slices`
    as many as are `included` hold this peer's share. `missed` if it was decided while this peer was away.
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
    slices: int = 0
    included: int = 0
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
class ContributionWithheld(Event):
    """This peer did not offer its own work for a round: a NaN in the loss or gradients, for instance."""

    round: int
    reason: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"round {self.round}: own contribution withheld: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidualCut(Event):
    """The run's `outer.residual_cap` took something out of what this peer owes: its norm is `cut`, and it is lost.

    `again` if the record before that held this peer's share cut something, too.
    """

    round: int
    fragment: int
    cut: float
    again: bool = False

    def diary(self) -> str | None:
        """Said where it begins."""
        if self.again:
            return None
        return (
            f"round {self.round}: what encoding lost exceeds outer.residual_cap, norm {self.cut:.3g} of it is"
            " dropped; so it goes on until it fits (raise the cap or send more bits)"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeApplied(Event):
    """The trainer's parameters took up a decided round; `included`: this peer's part is in it.

    `step` is how many inner steps the trainer had taken; -1 where rounds are steps.
    """

    round: int
    fragment: int
    included: bool
    step: int = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowStarted(Event):
    """A fragment's local values became the outer ones less this peer's share of a round, as it was encoded.

    `step` is how many inner steps the trainer had taken.
    """

    round: int
    fragment: int
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Branched(Event):
    """A quorum was out of reach for the stall time, and those who reach each other go on."""

    round: int
    members: tuple[str, ...]

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return f"round {self.round}: no quorum in reach, going on with {', '.join(self.members)}"
