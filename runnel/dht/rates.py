"""Rates by buckets of tokens: how often each peer may ask for something, how much may be sent. Pure."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runnel.types import PeerId

_MAX_PEERS = 1024


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second in the long run, and so many at once after a pause."""

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        if self.per_s <= 0 or self.burst < 1:
            raise ValueError(f"a rate that lets nothing through: {self}")


class Bucket:
    """One bucket that is never in debt: `burst` at most, filled again with `per_s`."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._full_at = -math.inf

    def due(self, amount: float, now: float) -> float:
        """When `amount`, at most the burst, is there: `now` or later."""
        return max(now, self._full_at + (amount - self._burst) / self._per_s)

    def take(self, amount: float, now: float) -> None:
        """Takes out what is `due`."""
        self._full_at = max(now, self._full_at) + amount / self._per_s


class Buckets:
    """One bucket for each peer; those of peers not seen for long are forgotten, and full again.

    Args:
        rate: of each bucket, unless `spend` is told another one.
    """

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._left: OrderedDict[PeerId, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Peers that are remembered."""
        return len(self._left)

    def spend(self, peer: PeerId, amount: float, now: float, *, rate: Rate | None = None) -> float:
        """Takes `amount` tokens out, into debt if need be; the seconds until the debt is paid, or 0."""
        rate = rate or self._rate
        tokens, at = self._left.pop(peer, (rate.burst, now))
        tokens = min(rate.burst, tokens + max(0.0, now - at) * rate.per_s) - amount
        self._left[peer] = (tokens, now)
        if len(self._left) > _MAX_PEERS:
            self._left.popitem(last=False)
        return max(0.0, -tokens / rate.per_s)

    def take(self, peer: PeerId, now: float) -> bool:
        """Takes one token out if there is one; whether there was."""
        tokens, at = self._left.get(peer, (self._rate.burst, now))
        tokens = min(self._rate.burst, tokens + max(0.0, now - at) * self._rate.per_s)
        if tokens < 1:
            return False
        self.spend(peer, 1, now)
        return True
