"""Moves old records of a whole chain from the log to the archive: after a restart, and for who comes new."""

from __future__ import annotations

from collections.abc import Iterator

from runnel.node.chain import Chain, Folded
from runnel.node.durable import DurableLog
from runnel.node.storage_keys import Updates, folded_updates, record_updates


def shelve(log: DurableLog, chain: Chain, keep: int) -> None:
    """Archives what a folder has in its log alone: one from before there was an archive. Blocking.

    Raises:
        StorageError: the disk refused; what is archived by then stays so.
    """
    for folded in _fold(log, chain, keep):
        log.write(folded_updates(folded))


def shelved_updates(log: DurableLog, chain: Chain, keep: int) -> Updates:
    """Archives all but the newest records of a chain of which the log has none; what to write. Blocking.

    Raises:
        StorageError: the disk refused.
    """
    updates: Updates = {folded.block.key: folded.block.names for folded in _fold(log, chain, keep)}
    for index in range(len(chain.archive), len(chain.path)):
        updates |= record_updates(*chain.pair_at(chain.path, index))
    return updates


def _fold(log: DurableLog, chain: Chain, keep: int) -> Iterator[Folded]:
    """One block after the other, each on the disk; no key names it yet."""
    while folded := chain.fold(keep):
        log.write_blob(folded.block.blob, [folded.block.content])
        chain.archive.written(folded.block)
        yield folded
