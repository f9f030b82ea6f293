"""What this node holds for others in the directory, bounded: hivemind keeps whatever it is handed until it expires."""

from __future__ import annotations

import heapq
import logging
from typing import TYPE_CHECKING, Any

from runnel.dht.hivemind.side_effects import undone

_log = logging.getLogger(__name__)

with undone(_log):
    from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue

if TYPE_CHECKING:
    from hivemind.dht.routing import DHTID

MAX_KEYS = 10_000
"""Keys held for others; beyond them those that expire first are dropped."""

MAX_AUTHORS = 256
"""Records under one key, one for each author: several times what a run has members."""

MAX_RECORDS = 16_384
"""Records under all keys, of at most `records.MAX_STORED_BYTES` each."""

_RECOUNT = 256
_SLACK = 64


class BoundedStorage(DHTLocalStorage):  # type: ignore[misc] # untyped library
    """hivemind's storage that refuses a new author where there is no more room; those it holds may renew."""

    def __init__(self, *, max_authors: int = MAX_AUTHORS, max_records: int = MAX_RECORDS) -> None:
        super().__init__(maxsize=MAX_KEYS)
        self._max_authors, self._max_records = max_authors, max_records
        self._num_records = 0
        self._until_recount = 0

    def store_subkey(self, key: DHTID, subkey: Any, value: bytes, expiration_time: float) -> bool:
        """As in hivemind, but false, and without effect, where there is no room."""
        held = self._held(key)
        is_new = subkey not in held.data if held is not None else True
        full = held is not None and len(held.data) >= self._max_authors
        if is_new and (full or not self._has_room()):
            return False
        stored: bool = super().store_subkey(key, subkey, value, expiration_time)
        self._num_records += stored and is_new
        for storage in (self, self._held(key)):
            _forget_replaced(storage)
        return stored

    def _held(self, key: DHTID) -> Any:
        found = self.get(key)
        is_dictionary = found is not None and isinstance(found.value, DictionaryDHTValue)
        return found.value if found is not None and is_dictionary else None

    def _has_room(self) -> bool:
        """Whether one more record may come; what has expired is noticed now and then."""
        if self._num_records < self._max_records:
            return True
        if self._until_recount:
            self._until_recount -= 1
            return False
        self._until_recount = _RECOUNT
        self._remove_outdated()
        held = (value for value, _ in self.data.values())
        self._num_records = sum(len(v) if isinstance(v, DictionaryDHTValue) else 1 for v in held)
        return self._num_records < self._max_records


def _forget_replaced(storage: Any) -> None:
    """Drops what the heap remembers of records that were renewed since: one entry for each renewal, otherwise."""
    if storage is not None and len(storage.expiration_heap) > 2 * len(storage.data) + _SLACK:
        storage.expiration_heap = list(storage.key_to_heap.values())
        heapq.heapify(storage.expiration_heap)
