"""What one peer saw the others sign lately, so that it notices when one of them says two things. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping

from runnel.node.commitments import Commitment
from runnel.node.evidence import (
    Evidence,
    SignedProposal,
    Statement,
    author_of,
    excludes,
    without_proof,
)
from runnel.types import Digest
from runnel.verification.votes import Vote

MAX_PER_PEER = 8
"""Pieces of evidence that are kept against one peer: more say nothing new."""
MAX_KEPT = 128
"""Pieces of evidence that are kept in all."""
_MAX_SEEN = 8192
"""Statements that are remembered: those of the largest view in all open rounds, in several attempts."""
_MAX_VERIFIED = 4096
"""Votes whose signatures need not be checked once more: they come again in repetitions and certificates."""


class Witness:
    """What this peer saw others sign lately: the first statement of each in each place, and conflicts."""

    def __init__(self, kept: Mapping[Digest, Evidence]) -> None:
        """`kept` is the evidence on disk; what `notes` finds is to be added to it."""
        self._kept = kept
        self._seen: OrderedDict[Hashable, Statement] = OrderedDict()
        self._verified: OrderedDict[Vote, None] = OrderedDict()

    def notes(self, statement: Statement) -> Evidence | None:
        """Takes note of a statement whose signature was checked; evidence if it excludes an earlier one."""
        if isinstance(statement, Vote) and statement.instance.kind == "branch":
            return None
        place = (author_of(statement), _key(statement))
        known = self._seen.get(place)
        if known is None:
            self._seen[place] = without_proof(statement)
            while len(self._seen) > _MAX_SEEN:
                self._seen.popitem(last=False)
            return None
        return Evidence.of(known, statement) if excludes(known, statement) else None

    def has_verified(self, vote: Vote) -> bool:
        """Whether this vote's signature was checked lately, and was good."""
        return vote in self._verified

    def verified(self, vote: Vote) -> None:
        """Takes note of a vote whose signature is good."""
        self._verified[vote] = None
        if len(self._verified) > _MAX_VERIFIED:
            self._verified.popitem(last=False)

    def is_news(self, evidence: Evidence) -> bool:
        """Whether to keep it: nothing against this peer in this place is kept, and there is room."""
        kept = self._kept.values()
        against = Counter(other.peer for other in kept)[evidence.peer]
        known = any((e.peer, e.place) == (evidence.peer, evidence.place) for e in kept)
        return not known and against < MAX_PER_PEER and len(self._kept) < MAX_KEPT


def _key(statement: Statement) -> Hashable:
    """The same as `place_of`, without making text of it: this is called for every vote."""
    match statement:
        case Vote(instance=instance, attempt=attempt, step=step):
            return (instance, attempt, step)
        case SignedProposal(proposal=proposal):
            return (proposal.instance, proposal.attempt)
        case Commitment(round=number, base=base):
            return (number, base)
