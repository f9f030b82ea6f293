"""Pinned states: what newcomers download, and what may be deleted because nobody needs it any more."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

from runnel.dht.blob_shelf import BlobShelf
from runnel.node.archive import block_blob
from runnel.node.chain import Chain
from runnel.node.durable import DurableLog
from runnel.node.keeper import Keeper
from runnel.node.keepsakes import (
    contribution_name,
    loss_name,
    read_drift_value,
    result_name,
    round_key,
)
from runnel.node.pins import pins
from runnel.node.saved_states import StateKey, state_name, steps_of
from runnel.node.storage_keys import Updates
from runnel.types import Digest

_WORD_BYTES = 4


class Pinning:
    """Keeps the states of the two newest pinned records on the shelf, and all results since the older.

    Blocking; runs on the disk thread. `keep_rounds` is how many rounds before that stay, so that
    records of a branch can be given up. Results that no record of the path names (of branches given
    up, of proposals that lost) stay as long. A result is known by its content: rounds in which nothing
    was learned share one, which stays until the last of them is old.
    """

    def __init__(
        self, log: DurableLog, vault: Keeper, shelf: BlobShelf, *, every: int, keep_rounds: int
    ) -> None:
        self._log, self._vault, self._shelf = log, vault, shelf
        self._every, self._keep_rounds = every, keep_rounds
        self._shown: dict[str, Digest] = {}
        self._unneeded: set[str] = set()
        self._strays: dict[Digest, int] = {}
        self._aged = 1
        self._newest: tuple[int, ...] = ()

    @property
    def every(self) -> int:
        """Rounds between two pins."""
        return self._every

    @property
    def shown(self) -> int:
        """States of fragments that are ready for newcomers; any thread."""
        return len(self._shown)

    def is_due(self, chain: Chain, path: Sequence[Digest]) -> bool:
        """Whether the pins of `path` are others than the last time; from one thread."""
        before, self._newest = self._newest, pins(chain, path, self._every)
        return self._newest != before

    def renew(
        self, chain: Chain, path: Sequence[Digest], in_use: Collection[Digest] = frozenset()
    ) -> None:
        """Shows the pinned states of `path` and deletes what is neither pinned, current nor recent.

        Args:
            chain: that the path is of.
            path: from its beginning.
            in_use: results that rounds not decided yet may need; they stay.
        """
        newest = pins(chain, path, self._every)
        kept, wanted = self._log.blob_names(), dict[str, int]()
        for pin in newest:
            state = self._state_after(chain, path, pin)
            if set(state) <= kept:  # a newcomer has no state from before it joined
                wanted |= state
        for name in set(self._shown) - set(wanted):
            self._shelf.drop(self._shown.pop(name), self._log.blob_path(name))
        for name in sorted(set(wanted) - set(self._shown)):
            self._shown[name] = self._shelf.add_file(self._log.blob_path(name), 0, wanted[name])
        self._expire(chain, path, min(newest) - self._keep_rounds, in_use)
        self._sweep(_named(self._log.load()) | set(wanted) | self._recent(chain, path, kept))

    def _sweep(self, needed: set[str]) -> None:
        """Deletes what was not needed the last time either.

        A blob is written before the key that names it, in another thread: what is new may look
        unneeded for a moment.
        """
        unneeded = self._log.blob_names() - needed
        self._log.delete_blobs(sorted(unneeded & self._unneeded))
        self._unneeded = unneeded

    def _recent(self, chain: Chain, path: Sequence[Digest], kept: set[str]) -> set[str]:
        """States that are wanted if a branch gives up the newest records, or that lead to those."""
        fragments, oldest = self._vault.fragments, len(path) - 2 - self._keep_rounds
        wanted: set[str] = set()
        for fragment in range(fragments):
            steps = steps_of(chain, path, fragment, fragments)
            for number in itertools.chain((step.record.number for step in steps), (-1,)):
                name = state_name(fragment, number)
                wanted.add(name)
                if name in kept and number <= oldest:
                    break
        return wanted

    def _state_after(self, chain: Chain, path: Sequence[Digest], number: int) -> dict[str, int]:
        """Blobs of all fragments' states after record `number` of `path`, and their sizes in bytes."""
        sizes, newest = self._vault.store.shared_sizes, dict[int, int]()
        for index in range(number + 1, 0, -1):
            record = chain.at(path, index)
            if record.slices:
                newest.setdefault(record.number % len(sizes), record.number)
            if len(newest) == len(sizes):
                break
        return {
            state_name(f, newest.get(f, -1)): sum(words) * _WORD_BYTES
            for f, words in enumerate(sizes)
        }

    def _expire(
        self, chain: Chain, path: Sequence[Digest], oldest: int, in_use: Collection[Digest]
    ) -> None:
        """Forgets results and contributions of rounds up to number `oldest`, and results of no round."""
        results, edge = self._vault.results, max(1, oldest + 2)
        resting = results.at_rest() - self._roots(chain, path, edge, len(path)) - set(in_use)
        # what is left over from long before a restart goes as what no record names
        since = max(self._aged, edge - self._every - self._keep_rounds)
        gone = resting & self._roots(chain, path, since, edge)
        self._aged = edge
        gone |= self._strays_among(resting - gone, len(path) - 2, chain.open_rounds)
        updates: Updates = {f"result/{root.hex()}": None for root in gone}
        for root in gone:
            results.forget(root)
        for round_ in self._vault.contributions.rounds():
            if round_.number <= oldest:
                self._vault.contributions.forget(round_)
                updates[f"kept/{round_.number}/{round_.base.hex()}"] = None
        if updates:
            self._log.write(updates)

    def _roots(self, chain: Chain, path: Sequence[Digest], start: int, stop: int) -> set[Digest]:
        """Results that records at these places of a path name."""
        records = (chain.at(path, index) for index in range(start, stop))
        return {piece.root for record in records for piece in record.slices}

    def _strays_among(self, found: set[Digest], number: int, open_rounds: int) -> set[Digest]:
        """Those that no record on the path named for as long as its records can be given up.

        What an open round holds is in memory, or becomes a record's long before.
        """
        self._strays = {root: self._strays.get(root, number) for root in found}
        patience = self._keep_rounds + open_rounds
        return {root for root, since in self._strays.items() if number > since + patience}


def _named(stored: Mapping[str, bytes]) -> set[str]:
    """The blobs that durable keys name."""
    needed: set[str] = set()
    for key, value in stored.items():
        kind, _, rest = key.partition("/")
        if kind == "result":
            root = Digest(bytes.fromhex(rest))
            needed |= {result_name(root), loss_name(root)}
        elif kind == "kept":
            needed.add(contribution_name(round_key(rest)))
        elif kind == "archive":
            needed.add(block_blob(int(rest), value))
        elif kind == "drift":
            needed.add(contribution_name(read_drift_value(value)[0]))
        elif kind == "state":
            saved = StateKey.decode(int(rest), value)
            needed |= {state_name(int(rest), saved.base), saved.residual}
    return needed
