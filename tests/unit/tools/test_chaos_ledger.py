"""The account of what peers learned: it balances, and it notices a share lost or taken twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.node.records import Record, RecordKind, Share, SliceResult
from runnel.tools.chaos_ledger import CELLS, UNIT, Place, balance
from tests.support.members import PEERS, following_record, genesis, name

PLACE = Place(fragment=1, fragments=3, offset=5, size=4096 * 2)
SLOTS = {PEERS[0]: 0, PEERS[1]: 1, PEERS[2]: 2}
TOKENS = st.lists(st.integers(0, 50), min_size=3, max_size=3)


def record(parent: Record, tokens: Sequence[int]) -> Record:
    """A round with the shares of those who have tokens; its first slice holds the ledger."""
    shares = [Share(p, name("c"), t) for p, t in zip(PEERS, tokens, strict=False) if t]
    included = tuple(range(len(shares)))
    slices = tuple(SliceResult(name(f"r{i}"), PEERS[0], included) for i in range(2))
    empty = following_record(parent, RecordKind.ROUND)
    return replace(empty, shares=tuple(shares), slices=slices)


def chain(rounds: Sequence[Sequence[int]]) -> list[Record]:
    records = [genesis(3)]
    for tokens in rounds:
        kept = any(tokens)
        parent = records[-1]
        records.append(record(parent, tokens) if kept else following_record(parent))
    return records


def swarm(records: Sequence[Record]) -> list[float]:
    """What peers that lose nothing make of it."""
    cells = [0.0] * CELLS
    for each in records:
        if each.kind is RecordKind.ROUND and each.number % 3 == 1:
            total = sum(share.tokens for share in each.shares)
            for share in each.shares:
                cells[SLOTS[share.peer]] -= UNIT * share.tokens * share.tokens / total
    return cells


@given(st.lists(TOKENS, max_size=12))
def test_a_swarm_that_loses_nothing_balances(rounds: list[list[int]]) -> None:
    records = chain(rounds)
    for cell in balance(records, swarm(records), SLOTS, PLACE):
        assert cell.missing == pytest.approx(0, abs=1e-9)


def test_a_lost_share_and_one_that_was_taken_twice_show() -> None:
    records = chain([[0, 0, 0], [4, 4, 8], [1, 1, 1], [1, 1, 1], [6, 2, 8]])
    values = swarm(records)
    values[0] += UNIT * 36 / 16  # the newest round's share of the first peer
    values[1] -= UNIT * 16 / 16
    missing = {c.slot: c.missing for c in balance(records, values, SLOTS, PLACE)}
    usual = (1 + 36 / 16) / 2, (1 + 4 / 16) / 2  # medians of two shares each
    assert missing == pytest.approx({0: 36 / 16 / usual[0], 1: -1 / usual[1], 2: 0.0})


def test_shares_of_other_slices_and_fragments_do_not_move_a_cell() -> None:
    records = chain([[5, 5, 5], [5, 5, 5]])
    elsewhere = Place(fragment=1, fragments=3, offset=4096 + 5, size=4096 * 2)
    one_sender = records[-1].slices[0], SliceResult(name("r1"), PEERS[0], (1,))
    records[-1] = replace(records[-1], slices=one_sender)
    cells = {c.slot: c for c in balance(records, [0.0] * CELLS, SLOTS, elsewhere)}
    assert [cells[slot].shares for slot in range(3)] == [0, 1, 0]
