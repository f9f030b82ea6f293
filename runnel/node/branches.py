"""Branches: how those who still reach each other go on when a round's quorum is gone. Pure.

After the stall time the lowest reachable member calls a branch that lists all it reaches; when all
of them sign, the branch takes the next number, carries the highest locked record among its signers,
and fixes the view of the rounds that follow. A signer votes no more on the interrupted outcome. The
signatures are the branch's certificate, so that nobody else can speak for those it lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from runnel.dht.wire import pack
from runnel.hashing import digest
from runnel.node.certificates import Certificate
from runnel.node.membership import MAX_STRANGERS, greeting_s
from runnel.node.records import Record, RecordKind
from runnel.types import Digest, PeerId
from runnel.verification.votes import Instance, Lock, Step, Vote

REACH_S = 3.5
"""A peer counts as reachable for so long after its last hello; longer where they are rarer."""
RANK_S = 4.0
"""How much longer each next lowest member waits before it calls a branch itself."""
PATIENCE_S = 5.0
"""How long a signature binds before a peer may sign for another caller."""
BEHIND_STALLS = 3
"""Stall times beyond the first in which a peer that hears the others go on branches not, nor follows a branch of few."""
_EARLY_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Signature:
    """One peer's agreement to a branch, and the record it had locked."""

    vote: Vote
    ticket: bytes
    lock: Lock | None
    locked: Record | None


@dataclass(slots=True)
class Forming:
    """A branch this peer called and the signatures it has."""

    nonce: bytes
    parent: Digest
    group: tuple[PeerId, ...]
    signed: dict[PeerId, Signature] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether everybody of the group signed."""
        return set(self.signed) == set(self.group)

    def highest_lock(self) -> tuple[Lock, Record] | None:
        """The lock of the highest attempt among the signers, with its record."""
        locks = [(s.lock, s.locked) for s in self.signed.values() if s.lock and s.locked]
        return max(locks, key=lambda pair: pair[0].attempt) if locks else None

    def certificate(self, view: tuple[PeerId, ...]) -> Certificate:
        """The signatures; `view` are the members, who need no ticket."""
        order = sorted(self.signed)
        tickets = tuple(b"" if peer in view else self.signed[peer].ticket for peer in order)
        return Certificate(0, tuple(self.signed[peer].vote for peer in order), tickets)


class Brancher:
    """What this peer heard of others' heads, what it signed, and the branch it is forming."""

    def __init__(self, me: PeerId, *, stall_s: float) -> None:
        self.forming: Forming | None = None
        self._me, self._stall_s = me, stall_s
        self._heads: dict[PeerId, tuple[float, Digest]] = {}
        self._signed_at, self._signed_for = float("-inf"), me

    def hello(self, peer: PeerId, head: Digest, now: float) -> None:
        """Notes a peer's head."""
        self._heads[peer] = (now, head)

    def trim(self, members: Collection[PeerId]) -> None:
        """Forgets those who are no `members` and were heard longest ago, beyond `MAX_STRANGERS`."""
        strangers = [peer for peer in self._heads if peer not in members]
        for peer in sorted(strangers, key=self._heads.__getitem__)[:-MAX_STRANGERS]:
            del self._heads[peer]

    def head_of(self, peer: PeerId) -> Digest | None:
        """The head that `peer` named last."""
        return self._heads.get(peer, (0.0, None))[1]

    def elsewhere(
        self, members: Collection[PeerId], follows: Callable[[Digest], bool], now: float
    ) -> int:
        """How many of the `members` were heard just now, at heads that are not ours."""
        since = now - REACH_S * greeting_s(len(members))
        heads = (self._heads.get(peer) for peer in members)
        return sum(
            known is not None and known[0] > since and not follows(known[1]) for known in heads
        )

    def heard(self, members: Collection[PeerId], now: float) -> set[PeerId]:
        """Which of the `members` were heard just now, wherever they stand."""
        since = now - REACH_S * greeting_s(len(members))
        return {peer for peer in members if self._heads.get(peer, (-math.inf, None))[0] > since}

    def reach(self, head: Record, now: float, *, orphaned: bool) -> tuple[PeerId, ...]:
        """Who stands at our head and was heard just now; members only, unless orphaned."""
        since = now - REACH_S * greeting_s(len(head.view))
        near = {
            peer
            for peer, (at, name) in self._heads.items()
            if at > since and name == head.hash and (peer in head.view or orphaned)
        }
        return tuple(sorted(near | {self._me}))

    def orphaned(self, head: Record, since: float, now: float) -> bool:
        """Whether nobody of the newest view was heard for three stall times, we not being one of it."""
        wait_s = 3 * self._stall_s
        silent = not any(
            peer in head.view and now - at < wait_s for peer, (at, _) in self._heads.items()
        )
        return head.number >= 0 and self._me not in head.view and now - since > wait_s and silent

    def call(
        self, head: Record, stalled_since: float, now: float, *, orphaned: bool
    ) -> Forming | None:
        """A branch to call now, or None. `stalled_since` is when the chain moved last."""
        if self._me not in head.view and not orphaned:
            return None
        group = self.reach(head, now, orphaned=orphaned)
        patience_s = RANK_S * group.index(self._me)
        if (
            now - stalled_since - self._stall_s < patience_s
            or now - self._signed_at < PATIENCE_S + patience_s
        ):
            return None
        nonce = digest(self._me, head.hash, repr(now).encode())[:16]
        self.forming = Forming(nonce, head.hash, group)
        return self.forming

    def may_sign(
        self,
        caller: PeerId,
        group: tuple[PeerId, ...],
        head: Record,
        stalled_since: float,
        now: float,
    ) -> bool:
        """Whether to sign `caller`'s branch from our head. A lower caller overrides a higher one."""
        orphaned = self.orphaned(head, stalled_since, now)
        bound = (
            now - self._signed_at < PATIENCE_S and caller != self._me and caller >= self._signed_for
        )
        return (
            self._me in group
            and caller in group
            and now - stalled_since >= self._stall_s * _EARLY_SHARE
            and not bound
            and set(group) <= set(self.reach(head, now, orphaned=orphaned))
        )

    def sign(self, caller: PeerId, now: float) -> None:
        """Notes that we signed for `caller`."""
        self._signed_at, self._signed_for = now, caller


def branch_vote(head: Record, nonce: bytes, group: tuple[PeerId, ...], signer: PeerId) -> Vote:
    """What `signer` signs to go on from `head` with `group`; still without its signature."""
    value = digest(b"branch", pack([nonce, list(group)]))
    return Vote(Instance("branch", head.number + 1, head.hash), 0, Step.PRECOMMIT, value, signer)


def branch_problem(
    head: Record,
    branch: Record,
    certificate: Certificate,
    *,
    verify: Callable[[Vote], bool],
    admits: Callable[[PeerId, bytes], bool],
) -> str:
    """Why a branch called from `head` is not what those it lists have signed, or nothing."""
    if len(certificate.tickets) != len(certificate.votes):
        return "a branch without a ticket for each signature"
    signers = tuple(vote.voter for vote in certificate.votes)
    if signers != branch.view or not signers:
        return "a branch that lists others than have signed it"
    for vote, ticket in zip(certificate.votes, certificate.tickets, strict=True):
        expected = branch_vote(head, branch.nonce, branch.view, vote.voter)
        if replace(vote, signature=b"") != expected or not verify(vote):
            return "a branch with a signature for something else"
        if vote.voter not in head.view and not admits(vote.voter, ticket):
            return "a branch by a peer that is no member and has no ticket"
    return ""


def branch_record(
    parent: Record, nonce: bytes, group: tuple[PeerId, ...], voters: tuple[PeerId, ...]
) -> Record:
    """The record of a branch on `parent`; `voters` are those of the interrupted round."""
    return Record(
        number=parent.number + 1,
        parent=parent.hash,
        kind=RecordKind.BRANCH,
        shares=(),
        slices=(),
        state_root=Digest(b""),
        view=group,
        unproven=(),
        tokens=parent.tokens,
        progress=parent.progress,
        finished=parent.finished,
        listed=len(set(group) & set(voters)),
        nonce=nonce,
    )
