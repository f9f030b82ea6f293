"""Who is heard, who wants in, who wants out, and what the next view is. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from runnel.hashing import digest
from runnel.node.records import MAX_MEMBERS, Commitment, JoinRequest, Record
from runnel.types import PeerId

ABSENT_ROUNDS = 5
"""Rounds of silence before a member is listed as unheard."""
ABSENT_S = 8.0
"""Greetings missed before a member is listed as unheard; seconds in a small swarm."""
PROBATION_ROUNDS = 16
"""Rounds in which a newcomer may contribute nothing before it is listed as unheard."""
PROBATION_S = 60.0
"""Seconds for which a newcomer may contribute nothing before it is listed as unheard."""
WISH_S = 6.0
"""How long a wish to join or leave holds unless it is repeated."""
MAX_STRANGERS = 256
"""How many peers are remembered that are no members."""
JOIN_LAG = 16
"""How many records behind a candidate may be."""
_OFTEN = 8
"""A member is greeted by this many others each second, at most."""


def greeting_s(members: int) -> float:
    """How often a member of so many greets the others, in seconds: one of many says it more rarely.

    How long a greeting counts grows alike, and so does whatever follows from silence.
    """
    return max(1.0, members / _OFTEN)


class Membership:
    """What this peer saw of the others, for its next commitment. Times are the caller's `now`."""

    def __init__(self, me: PeerId, *, now: float, number: int) -> None:
        self.leaving = False
        self._me = me
        self._born, self._born_number = now, number
        self._heard: dict[PeerId, tuple[float, int]] = {}
        self._overdue: dict[PeerId, None] = {}
        self._reached: dict[PeerId, int] = {}
        self._wishes: dict[PeerId, tuple[float, bytes]] = {}
        self._goodbyes: dict[PeerId, float] = {}
        self._left: dict[PeerId, None] = {}
        self._waiting: dict[PeerId, tuple[float, int]] = {}

    def hear(self, peer: PeerId, now: float, number: int) -> None:
        """Notes that anything came from `peer` while our chain stood at `number`."""
        self._heard[peer] = (now, number)
        self._overdue.pop(peer, None)

    def trim(self, members: Collection[PeerId]) -> None:
        """Forgets those who are no `members` and were heard longest ago, beyond `MAX_STRANGERS`."""
        strangers = [peer for peer in self._heard if peer not in members]
        for peer in sorted(strangers, key=self._heard.__getitem__)[:-MAX_STRANGERS]:
            del self._heard[peer]
            for known in (self._wishes, self._goodbyes, self._reached):
                known.pop(peer, None)

    def missed(self, peer: PeerId, since: float, now: float, *, among: int = 1) -> None:
        """Notes that `peer`, one of so many members, let a deadline pass that began at `since`.

        Without a word in its second half, that is, though it would have greeted; or else it is only slow.
        """
        heard = self._heard.get(peer, (float("-inf"), 0))[0]
        rarely_s = greeting_s(among) - greeting_s(1)
        if peer != self._me and heard <= min((since + now) / 2, now - rarely_s):
            self._overdue[peer] = None
            while len(self._overdue) > 2 * MAX_MEMBERS:
                del self._overdue[next(iter(self._overdue))]

    def is_overdue(self, peer: PeerId) -> bool:
        """Whether `peer` let a deadline pass without a word and was not heard since: nobody waits for it again."""
        return peer in self._overdue

    def stands_at(self, peer: PeerId, number: int) -> None:
        """Notes up to which record `peer` says to have come; older greetings may arrive later."""
        self._reached[peer] = max(number, self._reached.get(peer, number))

    def reached(self, peer: PeerId, default: int) -> int:
        """Up to which record `peer` has come, as it said; `default` if it said nothing."""
        return self._reached.get(peer, default)

    def heard_within(self, peer: PeerId, seconds: float, now: float) -> bool:
        """Whether `peer` was heard lately."""
        return now - self._heard.get(peer, (float("-inf"), 0))[0] < seconds

    def wish(self, peer: PeerId, ticket: bytes, now: float) -> None:
        """Notes that `peer` asks to join and is fit to; an earlier goodbye is over."""
        self._goodbyes.pop(peer, None)
        self._left.pop(peer, None)
        self._wishes[peer] = (now, ticket)

    def goodbye(self, peer: PeerId, now: float) -> None:
        """Notes that `peer` is leaving; that it wanted in a moment ago no longer counts."""
        self._wishes.pop(peer, None)
        self._goodbyes[peer] = now

    def hear_of_leavers(self, leavers: Iterable[PeerId], view: Collection[PeerId]) -> None:
        """Notes members that a commitment names as leaving; one that says so itself need not be heard here."""
        self._left |= dict.fromkeys(peer for peer in leavers if peer in view)
        while len(self._left) > 2 * MAX_MEMBERS:
            del self._left[next(iter(self._left))]

    def said_goodbye(self, peer: PeerId) -> bool:
        """Whether `peer` said that it leaves, to this peer or in a commitment."""
        return peer in self._goodbyes or peer in self._left

    def joins(self, view: Sequence[PeerId], now: float) -> tuple[JoinRequest, ...]:
        """Candidates to name in a commitment."""
        fresh = [
            JoinRequest(peer, ticket)
            for peer, (asked, ticket) in sorted(self._wishes.items())
            if now - asked < WISH_S and peer not in view
        ]
        return tuple(fresh[: MAX_MEMBERS // 4])

    def leaves(self, view: Sequence[PeerId], now: float) -> tuple[PeerId, ...]:
        """Leavers to name in a commitment, this peer among them if it is leaving."""
        said = {peer for peer, at in self._goodbyes.items() if now - at < WISH_S}
        said |= {self._me} if self.leaving else set()
        return tuple(peer for peer in sorted(said) if peer in view)

    def unheard(
        self, view: Sequence[PeerId], unproven: Collection[PeerId], now: float, number: int
    ) -> tuple[PeerId, ...]:
        """Members that were silent for both too many rounds and too many seconds.

        Newcomers count as silent, too, if they contribute nothing for much longer: while one is on
        probation nobody else is let in.
        """
        start, absent_s = (self._born, self._born_number), ABSENT_S * greeting_s(len(view))
        silent = []
        self._waiting = {peer: self._waiting.get(peer, (now, number)) for peer in unproven}
        for peer in view:
            at, then = self._heard.get(peer, start)
            since, since_number = self._waiting.get(peer, (now, number))
            absent = number - then > ABSENT_ROUNDS and now - at > absent_s
            idle = number - since_number > PROBATION_ROUNDS and now - since > PROBATION_S
            if peer != self._me and (absent or idle):
                silent.append(peer)
        return tuple(silent)


def next_members(
    parent: Record, commitments: Iterable[Commitment], *, limit: int = MAX_MEMBERS
) -> tuple[tuple[PeerId, ...], tuple[PeerId, ...]]:
    """The view after a decided set, and which of it have not yet proved themselves.

    Removed: who left, and who most of the set lists as unheard and did not commit. Added: who any
    of the set names as joining. Newcomers contribute at once and vote after their first decided
    contribution, so that dead joiners never raise the quorum. They are let in while nobody else is
    on probation, at most a third of the view at a time, in an order that the parent's hash draws.
    """
    seen = tuple(commitments)
    present = {commitment.peer for commitment in seen}
    old = set(parent.view)
    gone = {peer for commitment in seen for peer in commitment.leaves}
    silent = {
        peer
        for peer in old - present
        if 2 * sum(peer in commitment.unheard for commitment in seen) > len(seen)
    }
    kept = old - gone - silent
    unproven = (set(parent.unproven) - present) & kept
    wishing = {join.peer for commitment in seen for join in commitment.joins} - old - gone
    candidates = sorted(wishing, key=lambda peer: digest(parent.hash, peer))
    room = max(0, min(max(1, len(old) // 3), limit - len(kept)))
    admitted = [] if unproven else candidates[:room]
    view = tuple(sorted(kept | set(admitted)))
    waiting = tuple(sorted(unproven | set(admitted)))
    if not view:
        return parent.view, parent.unproven
    if set(view) <= set(waiting):  # nobody left who may vote: those who remain vote
        return view, ()
    return view, waiting
