"""Events about what other peers sent that was turned down, or that says two things at once."""

from __future__ import annotations

from dataclasses import dataclass

from runnel.node.event import Event
from runnel.node.wording import count_text


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
class Equivocated(Event):
    """A peer signed two things where it may sign one; both are kept as evidence of this digest.

    `what` says what it was two of, `place` where: the kind of statement, decision, attempt and step.
    """

    peer: str
    round: int
    what: str
    place: str
    evidence: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        kept = f"evidence {self.evidence[:8]}"
        return f"round {self.round}: peer {self.peer} signed {self.what}: both are kept as {kept}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalarRefuted(Event):
    """A scalar that a peer contributed is not the one that this peer computed for it.

    `scalar` is its place in the contribution; `published` and `recomputed` are in units of codes, which
    may lie `tolerance` and a half apart; the signed commitment is kept as `evidence`. One peer's word:
    other hardware, another version or the finder itself may be at fault.
    """

    round: int
    peer: str
    scalar: int
    published: int
    recomputed: float
    tolerance: float
    reason: str
    evidence: str

    def diary(self) -> str | None:
        """See `Event.diary`."""
        return (
            f"round {self.round}: scalar {self.scalar} of peer {self.peer} is refuted: {self.reason};"
            f" kept as evidence {self.evidence[:8]}"
        )
