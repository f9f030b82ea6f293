"""What this peer lets others ask of it: how many messages, and how many bad ones. Pure.

Honest peers of one version send nothing that is refused. So each refused message lowers its sender's
standing, which comes back with time; below a limit nothing of the sender is read for a while. Who sends
faster than anybody needs to is read more slowly: the sender's own link then holds it back.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from runnel.dht.rates import Buckets, Rate
from runnel.types import PeerId

MEMBER_RATE = Rate(per_s=1000, burst=4000)
"""Messages of a member: a round of a large swarm takes a hundred from each."""
STRANGER_RATE = Rate(per_s=50, burst=200)
"""Messages of anybody else."""
BAD_RATE = Rate(per_s=0.2, burst=20)
"""Refused messages of a peer before nothing of it is read."""
SHUT_OUT_S = 30.0
"""For how long nothing is read then."""
REPORT_S = 10.0
"""How often refusals are told of, per sender and reason."""
_MAX_PEERS = 1024
_MAX_REASONS = 64


class Standing:
    """The books of it. Times are the caller's `now`."""

    def __init__(self, is_member: Callable[[PeerId], bool]) -> None:
        self._is_member = is_member
        self._messages = Buckets(MEMBER_RATE)
        self._bad = Buckets(BAD_RATE)
        self._shut_out: OrderedDict[PeerId, float] = OrderedDict()
        self._untold: Counter[tuple[PeerId, str]] = Counter()
        self._told_at = float("-inf")

    def received(self, peer: PeerId, messages: int, now: float) -> float:
        """Counts messages of `peer`; how long to wait before more of them are read, in seconds."""
        rate = MEMBER_RATE if self._is_member(peer) else STRANGER_RATE
        return self._messages.spend(peer, messages, now, rate=rate)

    def refused(self, peer: PeerId, reason: str, now: float) -> None:
        """Counts a message that was refused."""
        key = (peer, reason)
        if key in self._untold or len(self._untold) < _MAX_REASONS:
            self._untold[key] += 1
        if self._bad.spend(peer, 1, now) > 0:
            if not self.is_shut_out(peer, now) and len(self._untold) < _MAX_REASONS:
                self._untold[peer, "shut-out"] += 1
            self._shut_out[peer] = now + SHUT_OUT_S
            self._shut_out.move_to_end(peer)
            if len(self._shut_out) > _MAX_PEERS:
                self._shut_out.popitem(last=False)

    def is_shut_out(self, peer: PeerId, now: float) -> bool:
        """Whether nothing of `peer` is read for now."""
        until = self._shut_out.get(peer)
        if until is not None and until <= now:
            del self._shut_out[peer]
        return peer in self._shut_out

    def reports(self, now: float) -> list[tuple[PeerId, str, int]]:
        """Whose messages were refused since the last report, why, and how many; every `REPORT_S`."""
        if not self._untold or now - self._told_at < REPORT_S:
            return []
        self._told_at = now
        found = [(peer, reason, count) for (peer, reason), count in sorted(self._untold.items())]
        self._untold.clear()
        return found
