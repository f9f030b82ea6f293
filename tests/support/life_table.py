"""How peers come, stay, fall silent and go, and how branches are called, signed and chosen: asked of the real classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from runnel.node.branches import PATIENCE_S, RANK_S, Brancher
from runnel.node.certificates import Certificate
from runnel.node.chain import Chain
from runnel.node.following import greet
from runnel.node.membership import (
    ABSENT_ROUNDS,
    ABSENT_S,
    PROBATION_ROUNDS,
    PROBATION_S,
    Membership,
    next_members,
)
from runnel.node.records import Commitment, Record, RecordKind
from runnel.types import PeerId
from tests.support.members import (
    PEERS,
    certificate,
    commitment,
    following_record,
    genesis,
    name,
    signed_vote,
)
from tests.support.states import STALL_S, messages, state_of

A, B, C, D, E = PEERS[:5]
IT, ANOTHER = D, E

# -- the view

STANDINGS = ("no member", "newcomer", "member")


def standing_of(peer: PeerId, view: tuple[PeerId, ...], unproven: tuple[PeerId, ...]) -> str:
    return STANDINGS[(peer in view) + (peer in view and peer not in unproven)]


def _parent(standing: str, *, another: bool = False) -> Record:
    view = [A, B, C] + ([IT] if standing != "no member" else []) + ([ANOTHER] if another else [])
    new = ([IT] if standing == "newcomer" else []) + ([ANOTHER] if another else [])
    return following_record(genesis(3), view=tuple(sorted(view)), unproven=tuple(sorted(new)))


def _set(
    *, commits: bool = False, unheard: int = 0, leaves: bool = False, joins: bool = False
) -> tuple[Commitment, ...]:
    members = [A, B, C]
    said = [
        commitment(
            peer,
            1,
            name("base"),
            unheard=[IT] if place < unheard else [],
            leaves=[IT] if leaves and not place else [],
            joins=[IT] if joins and not place else [],
        )
        for place, peer in enumerate(members)
    ]
    return (*said, commitment(IT, 1, name("base"))) if commits else tuple(said)


DECISIONS: dict[str, tuple[dict[str, object], bool]] = {
    "its commitment is in": ({"commits": True}, False),
    "it did not commit": ({}, False),
    "it did not commit, and half or fewer list it as unheard": ({"unheard": 1}, False),
    "it did not commit, and most list it as unheard": ({"unheard": 2}, False),
    "its commitment is in, and most of the others list it as unheard": (
        {"unheard": 3, "commits": True},
        False,
    ),
    "one names its goodbye": ({"leaves": True, "commits": True}, False),
    "one names its wish to join": ({"joins": True}, False),
    "one names its wish to join, while another newcomer has not contributed": (
        {"joins": True},
        True,
    ),
    "its wish to join and its goodbye are named": ({"joins": True, "leaves": True}, False),
}
"""What a decided set may say of a peer: of `_set`, and whether there is another newcomer."""


def view_rows() -> list[tuple[str, ...]]:
    """What a decided set makes of a peer, by where it stood before."""
    found = []
    for label, (said, another) in DECISIONS.items():
        after = []
        for standing in STANDINGS:
            parent = _parent(standing, another=another)
            view, unproven = next_members(parent, _set(**said))  # type: ignore[arg-type]
            after.append(standing_of(IT, view, unproven))
        found.append((label, *after))
    return found


# -- what one peer thinks of another

SEEN = {
    "any message of it": lambda m: m.hear(IT, 99.0, 9),
    "its deadline passes, and it was not heard in the second half of it": lambda m: m.missed(
        IT, 60.0, 100.0
    ),
    "its deadline passes, and it was heard in the second half of it": lambda m: (
        m.hear(IT, 90.0, 9),
        m.missed(IT, 60.0, 100.0),
    ),
}


def seen_rows() -> list[tuple[str, ...]]:
    """Whether others still wait for a peer, by whether they did before."""
    found = []
    for label, given in SEEN.items():
        after = []
        for overdue in (False, True):
            subject = Membership(A, now=0.0, number=0)
            subject.hear(IT, 10.0, 1)
            if overdue:
                subject.missed(IT, 20.0, 40.0)
            given(subject)
            after.append("overdue" if subject.is_overdue(IT) else "waited for")
        found.append((label, *after))
    return found


def unheard_rows() -> list[tuple[str, str]]:
    """After how much silence a member is listed as unheard in commitments."""

    def listed(seconds: float, rounds: int, *, newcomer: bool) -> str:
        subject, new = Membership(A, now=0.0, number=0), (IT,) if newcomer else ()
        subject.unheard((A, IT), new, 0.0, 0)
        if newcomer:  # it talks, and contributes nothing
            subject.hear(IT, seconds, rounds)
        return "yes" if subject.unheard((A, IT), new, seconds, rounds) else "no"

    s, r, ps, pr = ABSENT_S, ABSENT_ROUNDS, PROBATION_S, PROBATION_ROUNDS
    return [
        (f"silent for more than {s:g} s and {r} rounds", listed(s + 1, r + 1, newcomer=False)),
        (f"silent for more than {s:g} s, but not {r} rounds", listed(s + 1, r, newcomer=False)),
        (f"silent for more than {r} rounds, but not {s:g} s", listed(s, r + 1, newcomer=False)),
        (
            f"a newcomer, heard, without a contribution for more than {ps:g} s and {pr} rounds",
            listed(ps + 1, pr + 1, newcomer=True),
        ),
        (
            f"a newcomer, heard, without a contribution for more than {ps:g} s, but not {pr} rounds",
            listed(ps + 1, pr, newcomer=True),
        ),
    ]


def greeting_rows() -> list[tuple[str, str]]:
    """What a peer sends every second, by where it stands itself."""
    found = []
    for label, me, leaving, over in (
        ("member or newcomer", A, False, False),
        ("no member", IT, False, False),
        ("leaving", A, True, False),
        ("the run is over", IT, False, True),
    ):
        state = state_of(_ended() if over else None, me=me)
        state.members.leaving = leaving
        sent = [f"`{type(message).__name__}`" for message in messages(greet(state, 1.0))]
        found.append((label, ", ".join(sent)))
    return found


def _ended() -> Chain:
    chain = Chain(genesis(3), open_rounds=2)
    last = replace(following_record(genesis(3)), finished=(0, 1, 2, 3))
    chain.follow([*chain.path, chain.add(last, certificate(last, PEERS[:2]))])
    return chain


# -- branches

HEAD = following_record(genesis(3))
STALLS = {
    "half of the stall time": 0.5 * STALL_S,
    "0.7 of it": 0.7 * STALL_S,
    f"it and {RANK_S / 2:g} s": STALL_S + RANK_S / 2,
    f"it and {RANK_S + 1:g} s": STALL_S + RANK_S + 1,
    "3.5 times": 3.5 * STALL_S,
}
"""For how long the chain stands still."""

Situation = Callable[[float], bool]


def _brancher(me: PeerId, *near: PeerId, now: float) -> Brancher:
    subject = Brancher(me, stall_s=STALL_S)
    for peer in near:
        subject.hello(peer, HEAD.hash, now - 1)
    return subject


def _calls(me: PeerId, *near: PeerId) -> Situation:
    def asked(stall_s: float) -> bool:
        subject = _brancher(me, *near, now=stall_s)
        orphaned = subject.orphaned(HEAD, 0.0, stall_s)
        return subject.call(HEAD, 0.0, stall_s, orphaned=orphaned) is not None

    return asked


def _signs(
    caller: PeerId, group: tuple[PeerId, ...], *, before: PeerId | None = None, ago_s: float = 0.0
) -> Situation:
    """B is asked to sign; A and C are in reach. `before` is for whom it signed, `ago_s` ago."""

    def asked(stall_s: float) -> bool:
        subject = _brancher(B, A, C, now=stall_s)
        if before is not None:
            subject.sign(before, stall_s - ago_s)
        return subject.may_sign(caller, group, HEAD, 0.0, stall_s)

    return asked


_BOUND_S, _FREE_S = PATIENCE_S - 1, PATIENCE_S + 1
SITUATIONS: dict[str, Situation] = {
    "calls: it has the lowest id of those in reach": _calls(A, B),
    "calls: one with a lower id is in reach": _calls(B, A),
    "calls: it is no member, and hears members": _calls(D, A),
    "calls: it is no member, and hears no member": _calls(D),
    "signs: the group is itself and others in reach": _signs(A, (A, B, C)),
    "signs: the group has somebody out of its reach": _signs(A, (A, B, D)),
    "signs: the group is without it": _signs(A, (A, C)),
    "signs: the group is without the caller": _signs(A, (B, C)),
    f"signs for A, having signed for C {_BOUND_S:g} s ago": _signs(
        A, (A, B, C), before=C, ago_s=_BOUND_S
    ),
    f"signs for C, having signed for A {_BOUND_S:g} s ago": _signs(
        C, (A, B, C), before=A, ago_s=_BOUND_S
    ),
    f"signs for C, having signed for A {_FREE_S:g} s ago": _signs(
        C, (A, B, C), before=A, ago_s=_FREE_S
    ),
}


def branch_rows() -> list[tuple[str, ...]]:
    """Whether a peer calls or signs a branch, by how long the chain stands still. Ids: A < B < C."""
    return [
        (label, *("yes" if asked(stall_s) else "no" for stall_s in STALLS.values()))
        for label, asked in SITUATIONS.items()
    ]


def _certified(attempt: int) -> tuple[Record, Certificate]:
    record = following_record(genesis(3), nonce=bytes([attempt]))
    return record, certificate(record, PEERS[:2], attempt=attempt)


def _branch(listed: int, nonce: bytes = b"n") -> tuple[Record, Certificate]:
    record = following_record(genesis(3), RecordKind.BRANCH, listed=listed, nonce=nonce)
    return record, Certificate(0, (signed_vote(certificate(record, [A]).votes[0]),))


def _by_hash() -> tuple[tuple[Record, Certificate], tuple[Record, Certificate]]:
    small, large = sorted((_branch(1, b"1"), _branch(1, b"2")), key=lambda pair: pair[0].hash)
    return small, large


ENDS: dict[str, tuple[Record, Certificate]] = {
    "a record, decided in attempt 0": _certified(0),
    "a record, decided in attempt 1": _certified(1),
    "a branch that lists 1 voter, smaller hash": _by_hash()[0],
    "a branch that lists 1 voter, larger hash": _by_hash()[1],
    "a branch that lists 2 voters": _branch(2),
}


def choice_rows() -> list[tuple[str, ...]]:
    """Whether a peer whose path goes on with the row's record moves to one that goes on with the column's."""
    found = []
    for ours, (own, proof) in ENDS.items():
        row = []
        for other, other_proof in ENDS.values():
            chain = Chain(genesis(3), open_rounds=2)
            start = list(chain.path)
            chain.follow([*start, chain.add(own, proof)])
            moves = chain.prefers([*start, chain.add(other, other_proof)])
            row.append("moves" if moves else "stays")
        found.append((ours, *row))
    return found
