"""Moves old records of a whole chain from the log to the archive: after a restart, and for who comes new."""

from __future__ import annotations

from collections.abc import Iterator

from runnel.node.archive import Block, block_key
from runnel.node.chain import Chain, Folded
from runnel.node.durable import DurableLog
from runnel.node.protocol_state import ProtocolState
from runnel.node.storage_keys import Updates, folded_updates, record_updates


def write_block(log: DurableLog, block: Block) -> None:
    """Puts a block on the disk; a key has to name it then. Blocking.

    Raises:
        StorageError: the disk refused.
    """
    log.write_blob(block.blob, [block.content()])


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
    for _ in _fold(log, chain, keep):
        pass
    rows = chain.archive.names.rows
    updates: Updates = {block_key(number): names for number, names in enumerate(rows)}
    for index in range(len(chain.archive), len(chain.path)):
        updates |= record_updates(*chain.pair_at(chain.path, index))
    return updates


def shelve_told(log: DurableLog, state: ProtocolState) -> None:
    """Archives what a newcomer has been told by now, so that it never holds a whole long chain. Blocking.

    The path that is wanted is followed for that. It is parted from like any other if a better one is
    told of, and no key says yet that this peer has followed anything.

    Raises:
        StorageError: the disk refused.
    """
    chain, kept = state.chain, state.settings.kept_records
    if len(state.target) >= len(chain.archive) + kept + chain.archive.block:
        chain.follow(state.target)
        for _ in _fold(log, chain, kept):
            pass


def _fold(log: DurableLog, chain: Chain, keep: int) -> Iterator[Folded]:
    """One block after the other, each on the disk; no key names it yet."""
    while folded := chain.fold(keep):
        write_block(log, folded.block)
        chain.archive.written(folded.block)
        yield folded
