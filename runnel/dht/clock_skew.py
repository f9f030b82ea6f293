"""How far our clock is from those of others: the median of what peers said the time was."""

from __future__ import annotations

import logging
import statistics
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runnel.types import PeerId

_log = logging.getLogger(__name__)

WARNING_S = 3.0
_MAX_PEERS = 64


class ClockSkew:
    """Differences of clocks by peer; one liar among three honest peers does not move the median far.

    Args:
        limit_s: no difference counts for more than this.
    """

    def __init__(self, *, limit_s: float) -> None:
        self._limit_s = limit_s
        self._by_peer: OrderedDict[PeerId, float] = OrderedDict()

    @property
    def seconds(self) -> float:
        """By how much our clock is behind those of the peers met."""
        return statistics.median(self._by_peer.values()) if self._by_peer else 0.0

    def note(self, peer: PeerId, theirs_s: float, *, asked_s: float, answered_s: float) -> None:
        """Notes that `peer` said it was `theirs_s` between our `asked_s` and `answered_s`.

        All are seconds since 1970. Warns if our clock is off by more than `WARNING_S`.
        """
        skew_s = theirs_s - (asked_s + answered_s) / 2
        if not abs(skew_s) <= self._limit_s:  # NaN and infinities too
            skew_s = self._limit_s if skew_s > 0 else -self._limit_s
        self._by_peer[peer] = skew_s
        self._by_peer.move_to_end(peer)
        if len(self._by_peer) > _MAX_PEERS:
            self._by_peer.popitem(last=False)
        if abs(self.seconds) > WARNING_S:
            _log.warning(
                "this machine's clock is %.0f s %s those of its peers; set it by the network's time",
                abs(self.seconds),
                "behind" if self.seconds > 0 else "ahead of",
            )
