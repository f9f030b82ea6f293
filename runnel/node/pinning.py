"""Pinned states: what newcomers download, and what may be deleted because nobody needs it any more."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from runnel.dht.blob_shelf import BlobShelf
from runnel.node.chain import Chain
from runnel.node.durable import DurableLog
from runnel.node.joining import pins
from runnel.node.vault import Vault, state_name
from runnel.types import Digest

logger = logging.getLogger(__name__)

_VALUE_BYTES = 4


class Pinning:
    """Keeps the states of the two newest pinned records on the shelf. Blocking; runs on the disk thread."""

    def __init__(self, log: DurableLog, vault: Vault, shelf: BlobShelf, *, every: int) -> None:
        self._log, self._vault, self._shelf, self._every = log, vault, shelf, every
        self._shown: dict[str, Digest] = {}

    def renew(self, chain: Chain, path: Sequence[Digest]) -> None:
        """Shows the pinned states of `path` and deletes what is neither pinned, current nor recent."""
        newest = pins(path, self._every)
        kept, wanted = self._log.blob_names(), dict[str, int]()
        for pin in newest:
            state = self._state_after(chain, pin)
            if set(state) <= kept:  # a newcomer has no state from before it joined
                wanted |= state
        for name in set(self._shown) - set(wanted):
            self._shelf.drop(self._shown.pop(name))
        for name in sorted(set(wanted) - set(self._shown)):
            self._shown[name] = self._shelf.add_file(self._log.blob_path(name), 0, wanted[name])
        stored = self._log.load()
        updates, needed = self._vault.expire(stored, chain, newest)
        if updates:
            self._log.write(updates)
        self._log.delete_blobs(keep=needed | set(wanted))

    def _state_after(self, chain: Chain, pin: int) -> dict[str, int]:
        """Blobs of all fragments' states after record `pin`, and their sizes in bytes."""
        state: dict[str, int] = {}
        for fragment, size in enumerate(self._vault.store.sizes):
            record = chain.last_update(fragment, self._vault.fragments, upto=pin)
            state[state_name(fragment, record.number if record else -1)] = 2 * size * _VALUE_BYTES
        return state
