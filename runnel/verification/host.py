"""What an agreement asks of its surroundings."""

from __future__ import annotations

from typing import Protocol

from runnel.types import Digest, PeerId
from runnel.verification.votes import Instance, Proposal


class AgreementHost(Protocol):
    """What an agreement asks of its surroundings; answers must not change the machine."""

    def propose(self, instance: Instance, attempt: int, now: float) -> Digest | None:
        """A value to propose, or None while there is nothing to propose."""
        ...

    def acceptable(self, proposal: Proposal, now: float) -> bool:
        """Whether the proposed value may be prevoted."""
        ...

    def holds(self, instance: Instance, value: Digest) -> bool:
        """Whether everything that `value` names is durably here."""
        ...

    def is_silent(self, peer: PeerId, now: float) -> bool:
        """Whether `peer` has not been heard for so long that nobody waits for its proposal."""
        ...

    def overdue(self, peer: PeerId, since: float, now: float) -> None:
        """Takes note that `peer`, whose turn began at `since`, proposed nothing in time."""
        ...

    def halted(self, instance: Instance) -> bool:
        """Whether this peer promised to vote no more here (it signed a branch)."""
        ...
