"""Who fetches which blob next: the work queue behind a download, without any I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runnel.types import PeerId


class BlobBoard:
    """Items 0 to `count` - 1, each given to one donor at a time, or to two when the first is slow.

    Donors that finish sooner come back sooner and so get more. When nothing is left to start, an
    item that one other donor has held for `hedge_after_s` is given out a second time: a slow
    donor delays the end by that much and no more.
    """

    def __init__(self, count: int, *, hedge_after_s: float) -> None:
        self._hedge_after_s = hedge_after_s
        self._waiting: dict[int, None] = dict.fromkeys(range(count))
        self._held: dict[int, dict[PeerId, float]] = {}  # item -> donor -> since when
        self._lacking: dict[int, set[PeerId]] = {}

    @property
    def finished(self) -> bool:
        """Whether every item is complete."""
        return not self._waiting and not self._held

    @property
    def open_items(self) -> tuple[int, ...]:
        """Items that are not complete, in order."""
        return tuple(sorted((*self._waiting, *self._held)))

    def assign(self, donor: PeerId, now: float) -> int | None:
        """An item for `donor` to fetch now, or None if there is none at this time."""
        item = next((i for i in self._waiting if not self._lacks(i, donor)), None)
        if item is not None:
            del self._waiting[item]
            self._held[item] = {donor: now}
            return item
        late = [(since, i) for since, i in self._to_hedge(donor) if since <= now]
        if late:
            item = min(late)[1]
            self._held[item][donor] = now
            return item
        return None

    def next_hedge_s(self, donor: PeerId) -> float | None:
        """When `assign` would give `donor` something if nothing else changed, or None."""
        return min((when for when, _ in self._to_hedge(donor)), default=None)

    def complete(self, item: int) -> bool:
        """Notes that an item is here; false if it already was."""
        was_open = item in self._held or item in self._waiting
        self._held.pop(item, None)
        self._waiting.pop(item, None)
        self._lacking.pop(item, None)
        return was_open

    def give_back(self, item: int, donor: PeerId) -> None:
        """Notes that `donor` failed to bring an item; it waits again unless another one holds it."""
        holders = self._held.get(item, {})
        if holders.pop(donor, None) is not None and not holders:
            del self._held[item]
            self._waiting[item] = None

    def holds(self, item: int, donor: PeerId) -> bool:
        """Whether `donor` is to bring an item."""
        return donor in self._held.get(item, {})

    def lacks(self, item: int, donor: PeerId) -> None:
        """Notes that `donor` does not have an item; it will not be asked for it again."""
        if item in self._held or item in self._waiting:
            self._lacking.setdefault(item, set()).add(donor)
        self.give_back(item, donor)

    def has_use_for(self, donor: PeerId) -> bool:
        """Whether there is an open item that `donor` is not known to lack."""
        return any(
            not self._lacks(item, donor) for items in (self._waiting, self._held) for item in items
        )

    def _lacks(self, item: int, donor: PeerId) -> bool:
        return donor in self._lacking.get(item, ())

    def _to_hedge(self, donor: PeerId) -> list[tuple[float, int]]:
        return [
            (min(holders.values()) + self._hedge_after_s, item)
            for item, holders in self._held.items()
            if len(holders) == 1 and donor not in holders and not self._lacks(item, donor)
        ]
