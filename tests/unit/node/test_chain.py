"""The chain: what rounds derive from, which of two paths wins, and what a locator finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.node.certificates import Certificate
from runnel.node.chain import Chain
from runnel.node.records import Record, RecordKind
from runnel.types import Digest
from runnel.verification.votes import Step
from tests.support.members import PEERS, certificate, following_record, genesis

BRANCH, ABORT = RecordKind.BRANCH, RecordKind.ABORT


def chain_of(length: int, *, open_rounds: int = 2, members: int = 3) -> Chain:
    """A chain of aborts."""
    chain = Chain(genesis(members), open_rounds=open_rounds)
    extend(chain, length)
    return chain


def extend(chain: Chain, length: int) -> None:
    for _ in range(length):
        step(chain, following_record(chain.head))


def step(chain: Chain, record: Record, attempt: int | None = None) -> Record:
    certified = attempt is not None and record.kind is not BRANCH
    proof = certificate(record, PEERS[:3], attempt=attempt or 0) if certified else None
    chain.follow([*chain.path, chain.add(record, proof)])
    return record


def branch(parent: Record, *, view: int = 2, listed: int = 0, nonce: bytes = b"") -> Record:
    return following_record(parent, BRANCH, view=PEERS[:view], listed=listed, nonce=nonce)


def test_genesis_has_number_minus_one() -> None:
    chain = Chain(genesis(3), open_rounds=2)
    assert (chain.number, chain.head.number) == (-1, -1)
    assert chain.view_of(0) == chain.voters_of(0) == PEERS[:3]


@pytest.mark.parametrize(("number", "base"), [(0, -1), (1, -1), (2, 0), (5, 3), (6, 4)])
def test_a_round_derives_from_the_record_k_before_it(number: int, base: int) -> None:
    chain = chain_of(6)
    assert chain.record(chain.base_of(number)).number == base


def test_one_open_round_derives_from_the_record_before_it() -> None:
    chain = chain_of(4, open_rounds=1)
    assert chain.base_of(4) == chain.head.hash


def test_rounds_after_a_branch_derive_from_it_until_it_is_k_old() -> None:
    chain = chain_of(3)
    cut = step(chain, branch(chain.head))
    extend(chain, 3)
    assert [chain.base_of(n) for n in (4, 5)] == [cut.hash, cut.hash]
    assert chain.record(chain.base_of(6)).number == 4
    assert chain.view_of(5) == PEERS[:2]


def test_newcomers_have_no_vote_unless_nobody_else_is_left() -> None:
    chain = Chain(genesis(2), open_rounds=1)
    step(chain, following_record(chain.head, view=PEERS[:3], unproven=(PEERS[2],)))
    assert chain.voters_of(1) == PEERS[:2]
    step(chain, following_record(chain.head, view=(PEERS[2],), unproven=(PEERS[2],)))
    assert chain.voters_of(2) == (PEERS[2],)


# -- forks


def fork(first: Record, first_attempt: int, second: Record, second_attempt: int) -> bool:
    """Whether a path that ends with `second` beats ours that ends with `first`."""
    chain = chain_of(2)
    step(chain, first, first_attempt)
    certified = second.kind is not BRANCH
    proof = certificate(second, PEERS[:3], attempt=second_attempt) if certified else None
    chain.add(second, proof)
    return chain.prefers([*chain.path[:-1], second.hash])


PARENT = chain_of(2).head
PLAIN = following_record(PARENT)
OTHER = following_record(PARENT, view=PEERS[:2])


def test_a_certified_record_beats_a_branch_however_many_it_lists() -> None:
    assert fork(branch(PARENT, listed=3), 0, PLAIN, 0)
    assert not fork(PLAIN, 0, branch(PARENT, listed=3), 0)


def test_a_higher_attempt_beats_a_lower() -> None:
    assert fork(PLAIN, 1, OTHER, 2)
    assert not fork(PLAIN, 2, OTHER, 1)


def test_between_branches_more_listed_voters_win_then_the_smaller_hash() -> None:
    two = branch(PARENT, listed=2)
    for nonce in range(64):  # whatever the hashes
        one = branch(PARENT, listed=1, nonce=bytes([nonce]))
        assert fork(one, 0, two, 0)
        assert not fork(two, 0, one, 0)
    low, high = sorted(
        (branch(PARENT, listed=1, nonce=bytes([i])) for i in range(2)), key=lambda r: r.hash
    )
    assert fork(high, 0, low, 0)
    assert not fork(low, 0, high, 0)


def test_the_first_record_that_differs_decides_not_the_length() -> None:
    chain = chain_of(2)
    cut = step(chain, branch(chain.head, listed=1))
    extend(chain, 5)
    better = following_record(chain.record(cut.parent))
    chain.add(better, certificate(better, PEERS[:3]))
    assert chain.prefers([*chain.path[:3], better.hash])
    assert chain.prefers([*chain.path[:3], better.hash], chain.path)
    assert not chain.prefers(chain.path, [*chain.path[:3], better.hash])


def test_a_longer_path_beats_its_own_beginning_and_not_the_reverse() -> None:
    chain = chain_of(4)
    whole = list(chain.path)
    assert not chain.prefers(whole)
    chain.follow(whole[:3])
    assert chain.prefers(whole)
    assert not chain.prefers(whole[:2])


def test_a_better_certificate_replaces_a_worse_one_and_never_the_reverse() -> None:
    chain = chain_of(1)
    record = chain.head
    worse, better = (certificate(record, PEERS[:2], attempt=a) for a in (0, 3))
    assert chain.improves(record, better)
    chain.add(record, better)
    assert not chain.improves(record, worse)
    chain.add(record, worse)
    assert chain.certificate(record.hash) == better
    carried = certificate(record, PEERS[:2], attempt=4, step=Step.PREVOTE)
    assert chain.improves(record, carried)


def test_what_a_fork_gives_up_comes_newest_first_and_what_it_adopts_oldest_first() -> None:
    chain = chain_of(4)
    ours = list(chain.path)
    first = following_record(chain.record(ours[2]), view=PEERS[:2])
    second = following_record(first)
    path = [*ours[:3], chain.add(first), chain.add(second)]
    steps = chain.fork_to(path)
    assert [r.hash for r in steps.given_up] == [ours[4], ours[3]]
    assert steps.adopted == (first, second)
    chain.follow(path)
    assert chain.head == second
    assert not chain.follows(ours[3])
    assert chain.follows(first.hash)


# -- paths and locators


def test_a_lineage_runs_from_genesis_also_off_the_path() -> None:
    chain = chain_of(3)
    aside = following_record(chain.record(chain.path[1]), view=PEERS[:2])
    assert chain.lineage(chain.add(aside)) == [*chain.path[:2], aside.hash]
    assert chain.lineage(chain.path[2]) == chain.path[:3]


def test_a_lineage_with_an_unknown_ancestor_is_a_key_error() -> None:
    chain = chain_of(1)
    orphan = following_record(following_record(following_record(chain.head)))
    chain.add(orphan)
    with pytest.raises(KeyError):
        chain.lineage(orphan.hash)


@settings(max_examples=40)
@given(st.integers(0, 120), st.integers(0, 120), st.integers(1, 64))
def test_a_locator_finds_where_two_paths_part(shared: int, own: int, limit: int) -> None:
    chain = chain_of(shared)
    ours = list(chain.path)
    extend(chain, 60)
    other = Chain(genesis(3), open_rounds=2)
    for name in ours[1:]:
        other.add(chain.record(name))
    other.follow(ours)
    for _ in range(own):
        other.follow([*other.path, other.add(following_record(other.head, view=PEERS[:2]))])
    locator = other.locator()
    found = [record for record, _ in chain.after(locator, limit)]
    assert len(locator) <= 8 + 3 + (shared + own).bit_length()
    assert len(found) == min(limit, 60) or own
    assert found[0].number <= shared
    assert [r.hash for r in found] == list(chain.path[found[0].number + 1 :][: len(found)])


def test_after_a_locator_of_strangers_comes_everything() -> None:
    chain = chain_of(5)
    assert [r.number for r, _ in chain.after([Digest(b"?" * 32)], 3)] == [0, 1, 2]
    assert not list(chain.after([chain.path[-1]], 3))


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 40))
def test_common_counts_leading_records(turns: list[bool], meet: int) -> None:
    chain = chain_of(len(turns))
    ours, meet = list(chain.path), min(meet, len(turns))
    path = ours[: meet + 1]
    for turn in turns[meet:]:
        parent = chain.record(path[-1])
        path.append(chain.add(following_record(parent, view=PEERS[: 1 + turn], nonce=b"other")))
    slow = next((i for i, (a, b) in enumerate(zip(path, ours, strict=False)) if a != b), len(ours))
    assert chain.common(path) == min(slow, len(path)) == meet + 1


def test_the_last_update_of_a_fragment_skips_rounds_without_a_result() -> None:
    chain = Chain(genesis(1), open_rounds=1)
    for kind in (RecordKind.ROUND, RecordKind.ROUND, ABORT, RecordKind.ROUND):
        step(chain, following_record(chain.head, kind))
    assert [getattr(chain.last_update(f, 2), "number", None) for f in (0, 1)] == [0, 3]
    early = chain.last_update(1, 2, upto=2)
    assert early is not None
    assert early.number == 1
    assert Chain(genesis(1), open_rounds=1).last_update(0, 2) is None


def test_a_certificate_says_nothing_of_tickets_unless_a_branch_has_them() -> None:
    assert Certificate(0, ()).tickets == ()
