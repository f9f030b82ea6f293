"""What the members of one decision said, by attempt: for each of them a bounded part of it. Pure.

A member says one thing in each step of each attempt, so that what is kept of it is bounded by attempts. An
honest one is in an attempt for a tenth of a second at least, as somebody of the quorum that ends it waits
so long for its proposer; and while a quorum lives a round is decided or given up within minutes. So its
newest attempts are all that can matter to others, and there are only so many attempts.
"""

from __future__ import annotations

from runnel.types import Digest, PeerId
from runnel.verification.votes import Ballots, Electorate, Proposal, Step, Vote

KEPT_VOTES = 32
"""Votes of one member that are kept, those of its 16 newest attempts and of the current one.

What was said in older attempts is not needed: who locked a value proposes it again, and who knows of a
decision has its certificate.
"""
KEPT_PROPOSALS = 8
"""Proposals of one member that are kept: those of its newest turns."""
MAX_ATTEMPT = 1 << 16
"""Nobody honest comes so far: that takes two hours in one decision, and those who are in it branch long before."""


class Poll:
    """The books of one decision. `current` is the attempt that this member is in."""

    def __init__(self, electorate: Electorate) -> None:
        self._electorate = electorate
        self._proposals: dict[int, Proposal] = {}
        self._ballots: dict[tuple[int, Step], Ballots] = {}
        self._places: dict[PeerId, set[tuple[int, Step]]] = {}
        self._reached: dict[PeerId, int] = {}

    def put(self, proposal: Proposal, current: int) -> bool:
        """Takes in a proposal; whether it is kept. The first one of an attempt counts."""
        member, attempt = self._electorate.proposer(proposal.attempt), proposal.attempt
        if proposal.proposer != member or attempt in self._proposals:
            return False
        self._proposals[attempt] = proposal
        turns = [turn for turn, known in self._proposals.items() if known.proposer == member]
        if len(turns) > KEPT_PROPOSALS:
            del self._proposals[min(turn for turn in turns if turn != current)]
        self._note(member, attempt)
        return attempt in self._proposals

    def cast(self, vote: Vote, current: int) -> bool:
        """Takes in a vote; whether it is kept. The first one of a voter and step counts."""
        voter, place = vote.voter, (vote.attempt, vote.step)
        places = self._places.setdefault(voter, set())
        if place in places or voter not in self._electorate.members:
            return False
        places.add(place)
        self._ballots.setdefault(place, Ballots()).add(vote)
        if len(places) > KEPT_VOTES:
            self._forget(voter, min(known for known in places if known[0] != current))
        self._note(voter, vote.attempt)
        return place in places

    def proposal(self, attempt: int) -> Proposal | None:
        """What was proposed in an attempt."""
        return self._proposals.get(attempt)

    def vote_of(self, member: PeerId, attempt: int, step: Step) -> Vote | None:
        """How a member voted in a step."""
        ballots = self._ballots.get((attempt, step))
        return ballots.votes.get(member) if ballots else None

    def ballots(self, attempt: int, step: Step) -> Ballots:
        """All votes of a step."""
        return self._ballots.get((attempt, step)) or Ballots()

    def winners(self, step: Step) -> list[tuple[int, Digest, tuple[Vote, ...]]]:
        """Attempts in which a value has a quorum in `step`, with the value and its votes."""
        found = []
        for (attempt, place), ballots in self._ballots.items():
            value = ballots.winner(self._electorate.quorum) if place is step else None
            if value:
                found.append((attempt, value, ballots.supporters(value)))
        return found

    def reached_by(self, members: int) -> int:
        """The attempt that so many members have reached, as they said; -1 for none."""
        reached = sorted(self._reached.values(), reverse=True)
        return reached[members - 1] if len(reached) >= members else -1

    def _note(self, member: PeerId, attempt: int) -> None:
        self._reached[member] = max(attempt, self._reached.get(member, -1))

    def _forget(self, voter: PeerId, place: tuple[int, Step]) -> None:
        self._places[voter].discard(place)
        ballots = self._ballots[place]
        ballots.remove(voter)
        if not ballots.votes:
            del self._ballots[place]
