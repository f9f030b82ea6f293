"""A peer that is told a long path: its protocol, and its log and blobs on a real disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runnel.dht.identity import NullSigner
from runnel.node.actions import Action, Adopt, Store
from runnel.node.chain import Chain
from runnel.node.durable import DurableLog
from runnel.node.outcomes import abort_record
from runnel.node.protocol import RoundProtocol
from runnel.node.records import Record
from runnel.node.shelving import write_block
from runnel.node.storage_keys import HEAD, restore
from runnel.types import Digest
from tests.support.members import PEERS, certificate
from tests.support.states import GENESIS, ME, OTHER, settings_of, told

BLOCK, KEPT = 16, 40
_TOLD_AT_ONCE = 50


class Follower:
    """What a driver does for it, and nothing else: blobs, then the keys that name them."""

    def __init__(self, folder: Path, *, block: int = BLOCK, kept: int = KEPT) -> None:
        self.log = DurableLog(folder)
        if HEAD not in self.log.load():
            self.log.write({HEAD: GENESIS.hash})
        saved = restore(
            self.log.load(), GENESIS, open_rounds=2, read=self.log.read_blob, block=block
        )
        self.protocol = RoundProtocol(NullSigner(ME), settings_of(kept), saved, now=0.0)

    @property
    def chain(self) -> Chain:
        return self.protocol.state.chain

    def carry(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Adopt):
                for block in action.blocks:
                    write_block(self.log, block)
                self.log.write(action.updates)
                for block in action.blocks:
                    self.chain.archive.written(block)
            elif isinstance(action, Store):
                self.log.write(action.updates)

    def hear(self, records: Sequence[Record], *, attempt: int = 0) -> None:
        """Is told records by another member, some at a time."""
        for start in range(0, len(records), _TOLD_AT_ONCE):
            part = records[start : start + _TOLD_AT_ONCE]
            proofs = [certificate(record, PEERS[:2], attempt=attempt) for record in part]
            self.carry(self.protocol.receive(OTHER, told(*part, proofs=proofs), 1.0))

    def close(self) -> None:
        self.log.close()


def aborts(parent: Record, count: int) -> list[Record]:
    """So many rounds that came to nothing after `parent`."""
    records: list[Record] = []
    for _ in range(count):
        records.append(abort_record(records[-1] if records else parent))
    return records


def names_of(chain: Chain) -> list[Digest]:
    """All names of a chain's path, each of the record itself, which says what it follows."""
    records = list(chain.walk())
    assert [record.parent for record in records[1:]] == [record.hash for record in records[:-1]]
    return [record.hash for record in records]
