"""Branches: who calls, who signs, what a branch carries, and what proves it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runnel.dht.identity import NullSigner, null_peer_id
from runnel.node.branches import (
    PATIENCE_S,
    RANK_S,
    REACH_S,
    Brancher,
    Forming,
    Signature,
    branch_problem,
    branch_record,
    branch_vote,
)
from runnel.node.certificates import Certificate
from runnel.node.membership import greeting_s
from runnel.node.records import Record, RecordKind
from runnel.types import PeerId
from runnel.verification.votes import Lock, Vote
from tests.support.members import PEERS, RUN, following_record, genesis, name, signed_vote, verify

STALL_S = 20.0
HEAD = following_record(genesis(3))
A, B, C, D = PEERS[:4]


def brancher(me: PeerId, *near: PeerId, now: float = 0.0) -> Brancher:
    subject = Brancher(me, stall_s=STALL_S)
    for peer in near:
        subject.hello(peer, HEAD.hash, now)
    return subject


def signature(peer: PeerId, group: tuple[PeerId, ...], *, nonce: bytes = b"nonce") -> Vote:
    vote = branch_vote(HEAD, nonce, group, peer)
    return replace(vote, signature=NullSigner(peer).sign(vote.statement(RUN)))


# -- reach


def test_reach_is_who_stands_at_our_head_and_was_heard_just_now() -> None:
    subject = brancher(B, A, C, D)
    assert subject.reach(HEAD, 1.0, orphaned=False) == (A, B, C)
    assert subject.reach(HEAD, 1.0, orphaned=True) == (A, B, C, D)
    assert subject.reach(HEAD, REACH_S, orphaned=False) == (B,)
    subject.hello(A, name("elsewhere"), 1.0)
    assert subject.reach(HEAD, 1.0, orphaned=False) == (B, C)
    assert subject.head_of(A) == name("elsewhere")
    assert subject.head_of(PEERS[7]) is None


def test_one_of_many_who_greets_more_rarely_is_within_reach_for_as_many_greetings() -> None:
    view = tuple(sorted(map(null_peer_id, range(64))))
    head = replace(HEAD, view=view)
    subject, last_s = Brancher(view[0], stall_s=STALL_S), REACH_S * greeting_s(64)
    subject.hello(view[1], head.hash, 0.0)
    assert subject.reach(head, last_s - 0.1, orphaned=False) == view[:2]
    assert subject.reach(head, last_s, orphaned=False) == view[:1]
    assert subject.elsewhere(view, lambda _: False, last_s - 0.1) == 1
    assert subject.elsewhere(view, lambda name: name == head.hash, last_s - 0.1) == 0
    assert subject.elsewhere(view, lambda _: False, last_s) == 0


# -- calling


def test_the_lowest_calls_first_and_each_next_one_later() -> None:
    for rank, me in enumerate((A, B, C)):
        due = STALL_S + RANK_S * rank
        others = [p for p in (A, B, C) if p != me]
        early, late = brancher(me, *others, now=due), brancher(me, *others, now=due)
        assert early.call(HEAD, 0.01, due, orphaned=False) is None
        forming = late.call(HEAD, 0.0, due, orphaned=False)
        assert forming is not None
        assert forming.group == (A, B, C)
        assert forming.parent == HEAD.hash


def test_who_is_no_member_calls_only_if_orphaned() -> None:
    subject = brancher(D)
    assert subject.call(HEAD, 0.0, 99.0, orphaned=False) is None
    assert subject.call(HEAD, 0.0, 99.0, orphaned=True) is not None


def test_an_orphan_has_heard_nobody_of_the_view_for_three_stall_times() -> None:
    assert brancher(D).orphaned(HEAD, 0.0, 3 * STALL_S + 1)
    assert not brancher(D).orphaned(HEAD, 0.0, 3 * STALL_S - 1)
    assert not brancher(D, A, now=10.0).orphaned(HEAD, 0.0, 3 * STALL_S + 1)
    assert brancher(D, PEERS[5], now=10.0).orphaned(HEAD, 0.0, 3 * STALL_S + 1)
    assert not brancher(A).orphaned(HEAD, 0.0, 999.0)
    assert not brancher(D).orphaned(genesis(3), 0.0, 999.0)  # nobody has begun yet


def test_who_signed_calls_again_only_after_a_while() -> None:
    subject = brancher(A)
    subject.sign(A, 30.0)
    assert subject.call(HEAD, 0.0, 30.0 + PATIENCE_S - 0.1, orphaned=False) is None
    assert subject.call(HEAD, 0.0, 30.0 + PATIENCE_S, orphaned=False) is not None


def test_every_call_has_a_nonce_of_its_own() -> None:
    subject = brancher(A)
    first = subject.call(HEAD, 0.0, 30.0, orphaned=False)
    second = subject.call(HEAD, 0.0, 40.0, orphaned=False)
    assert first is not None
    assert second is not None
    assert first.nonce != second.nonce


# -- signing


def may_sign(
    subject: Brancher, caller: PeerId, group: tuple[PeerId, ...], now: float = 15.0
) -> bool:
    return subject.may_sign(caller, group, HEAD, 0.0, now)


def test_a_member_signs_for_a_group_it_reaches() -> None:
    subject = brancher(B, A, C, now=14.0)
    assert may_sign(subject, A, (A, B))
    assert may_sign(subject, A, (A, B, C))


@pytest.mark.parametrize(
    ("caller", "group", "why"),
    [
        (A, (A, C), "it is not listed"),
        (D, (A, B), "the caller is not listed"),
        (D, (B, D), "the caller is no member"),
        (A, (A, B, PEERS[5]), "it does not reach all"),
    ],
)
def test_a_member_signs_for_no_other_group(
    caller: PeerId, group: tuple[PeerId, ...], why: str
) -> None:
    assert not may_sign(brancher(B, A, C, D, now=14.0), caller, group), why


def test_nobody_signs_while_the_chain_moves() -> None:
    assert not may_sign(brancher(B, A, now=11.0), A, (A, B), now=11.9)
    assert may_sign(brancher(B, A, now=11.0), A, (A, B), now=12.0)


def test_a_lower_caller_overrides_a_higher_and_not_the_reverse() -> None:
    subject = brancher(C, A, B, now=14.0)
    subject.sign(B, 14.0)
    assert may_sign(subject, A, (A, B, C))
    assert not may_sign(subject, B, (A, B, C))
    subject.sign(A, 14.5)
    assert not may_sign(subject, B, (A, B, C))
    for peer in (A, B):
        subject.hello(peer, HEAD.hash, 19.0)
    assert may_sign(subject, B, (A, B, C), now=14.5 + PATIENCE_S)


# -- what it carries


def lock(attempt: int, label: str) -> tuple[Lock, Record]:
    record = following_record(HEAD, nonce=label.encode())
    return Lock(attempt, record.hash, ()), record


def test_a_branch_is_complete_with_all_signatures_and_carries_the_highest_lock() -> None:
    group = (A, B, C)
    forming = Forming(b"nonce", HEAD.hash, group)
    low, high = lock(0, "low"), lock(2, "high")
    forming.signed[A] = Signature(signature(A, group), b"", *low)
    forming.signed[B] = Signature(signature(B, group), b"", *high)
    before = forming.complete
    forming.signed[C] = Signature(signature(C, group), b"", None, None)
    assert (before, forming.complete) == (False, True)
    assert forming.highest_lock() == high


def test_without_locks_nothing_is_carried() -> None:
    forming = Forming(b"nonce", HEAD.hash, (A,))
    forming.signed[A] = Signature(signature(A, (A,)), b"", None, None)
    assert forming.highest_lock() is None


def test_a_branch_takes_the_next_number_and_counts_the_voters_it_lists() -> None:
    record = branch_record(HEAD, b"nonce", (A, D), (A, B, C))
    assert (record.number, record.parent, record.kind) == (1, HEAD.hash, RecordKind.BRANCH)
    assert (record.view, record.unproven, record.listed) == ((A, D), (), 1)
    assert (record.tokens, record.progress) == (HEAD.tokens, HEAD.progress)


# -- what proves it

GROUP = (A, B)
BRANCH = branch_record(HEAD, b"nonce", GROUP, (A, B, C))


def problem(certificate: Certificate, branch: Record = BRANCH) -> str:
    def admits(_: PeerId, ticket: bytes) -> bool:
        return ticket == b"ticket"

    return branch_problem(HEAD, branch, certificate, verify=verify, admits=admits)


def proof(*signers: PeerId, tickets: tuple[bytes, ...] | None = None) -> Certificate:
    votes = tuple(signature(p, BRANCH.view) for p in signers)
    return Certificate(0, votes, tickets or (b"",) * len(votes))


def test_the_signatures_of_all_it_lists_prove_a_branch() -> None:
    forming = Forming(b"nonce", HEAD.hash, GROUP)
    for peer in (B, A):
        forming.signed[peer] = Signature(signature(peer, GROUP), b"ticket", None, None)
    assert forming.certificate(HEAD.view) == proof(A, B)
    assert problem(forming.certificate(HEAD.view)) == ""


def test_a_branch_by_a_holder_of_the_head_needs_a_ticket() -> None:
    group = (A, D)
    branch = branch_record(HEAD, b"nonce", group, (A, B, C))
    votes = tuple(signature(p, group) for p in group)
    assert problem(Certificate(0, votes, (b"", b"ticket")), branch) == ""
    assert "ticket" in problem(Certificate(0, votes, (b"", b"")), branch)
    assert "ticket" in problem(Certificate(0, votes, ()), branch)


@pytest.mark.parametrize(
    "certificate",
    [
        proof(),
        proof(A),
        proof(B, A),
        proof(A, B, C),
        proof(A, B, tickets=(b"",)),
        Certificate(
            0, (signature(A, GROUP), replace(signature(B, GROUP), signature=b"forged")), (b"",) * 2
        ),
        Certificate(0, (signature(A, GROUP), signature(B, (A, B, C))), (b"",) * 2),
        Certificate(0, (signature(A, GROUP), signature(B, GROUP, nonce=b"n")), (b"",) * 2),
        Certificate(
            0, tuple(signed_vote(replace(v, attempt=1)) for v in proof(A, B).votes), (b"",) * 2
        ),
    ],
    ids=["none", "few", "order", "more", "tickets", "forged", "group", "nonce", "attempt"],
)
def test_nothing_else_proves_a_branch(certificate: Certificate) -> None:
    assert problem(certificate)


def test_signatures_from_another_head_do_not_prove_a_branch() -> None:
    elsewhere = following_record(HEAD)
    assert branch_problem(elsewhere, BRANCH, proof(A, B), verify=verify, admits=lambda *_: True)
