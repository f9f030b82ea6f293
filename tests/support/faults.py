"""Faults as data: what happens to a world, when and to whom, drawn from its seed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.world import World

QUIET_AT = 120.0
"""From here on nothing fails any more, in most schedules."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is particular to schedules of one kind.

    `forwards`: whether members pass on what others cannot send each other. `pace` scales the time
    that training takes.
    """

    quiet_at: float = QUIET_AT
    forwards: bool = True
    pace: float = 1.0


SHAPES = {
    "halves": Shape(forwards=False),
    "line": Shape(forwards=False),
    "apart": Shape(quiet_at=300.0, forwards=False, pace=0.1),
    "shrink": Shape(),
    "joiners": Shape(),
    "clock": Shape(),
    "late": Shape(),
    "carried": Shape(),
}
"""Schedules of one kind of fault only, or of rounds whose contributions travel in their commitments."""

FOUNDERS = {
    "halves": (2, 4, 6),
    "line": (3, 4, 5),
    "apart": (4, 5, 6),
    "shrink": (2, 3, 4),
    "joiners": (1, 2, 3),
}
"""How many founders they have, where that matters."""

KINDS = (
    "calm",
    "crash",
    "crash",
    "cut",
    "cut",
    "both",
    "both",
    "minority",
    "blackout",
    "freeze",
)
TAGS = ("Store", "Send", "Scatter", "Reduce", "Adopt", "Prepare", "Fetch", None)
"""The kind of action in the midst of which a doomed peer dies; None: any."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens, to which peer (-1: all).

    `tag` for a crash, `until` for a freeze, `blocked` for a cut of a set shape, `seconds` for a clock.
    """

    kind: str
    index: int = -1
    tag: str | None = None
    until: float = 0.0
    blocked: frozenset[tuple[int, int]] | None = None
    seconds: float = 0.0


def plan(rng: Random, kind: str, count: int) -> list[tuple[float, Fault]]:
    """The faults of a schedule of `count` founders, with their times."""
    if kind in SHAPES:
        quiet_at = SHAPES[kind].quiet_at
        return [*_PLANS[kind](rng, count), (quiet_at, Fault("quiet"))]
    faults: list[tuple[float, Fault]] = []
    if kind in ("crash", "both", "minority"):
        for _ in range(rng.randint(1, 6)):
            faults += _crash(rng, rng.randrange(count + 2))
    if kind == "blackout":  # all die at one moment, and return one by one in any order
        when = rng.uniform(10, QUIET_AT - 60)
        for index in range(count + 3):
            faults.append((when + rng.uniform(0, 1), Fault("doom", index, rng.choice(TAGS))))
            back = when + rng.choice((2, 30, 90)) + rng.random()
            faults.append((back, Fault("restart", index)))
    if kind == "freeze":
        for _ in range(rng.randint(1, 3)):
            index, when = rng.randrange(count), rng.uniform(3, QUIET_AT - 40)
            faults.append((when, Fault("freeze", index, until=when + rng.choice((8, 30, 60)))))
    if kind in ("cut", "both"):
        for _ in range(rng.randint(1, 3)):
            when = rng.uniform(3, QUIET_AT - 10)
            faults += [(when, Fault("cut")), (rng.uniform(when, QUIET_AT), Fault("heal"))]
    return [*faults, *_comings_and_goings(rng, kind, count), (QUIET_AT, Fault("quiet"))]


def _crash(rng: Random, index: int) -> list[tuple[float, Fault]]:
    when = rng.uniform(3, QUIET_AT - 30)
    doom = Fault("doom", index, rng.choice(TAGS))
    back = rng.choice((when + rng.uniform(0.1, 5), rng.uniform(when, QUIET_AT)))
    return [(when, doom), (back, Fault("restart", index))]


def _comings_and_goings(rng: Random, kind: str, count: int) -> list[tuple[float, Fault]]:
    faults: list[tuple[float, Fault]] = []
    dead = rng.randint(0, (count - 1) // 2)
    if kind == "minority":
        dead = rng.randint(dead, count - 1)
    for index in rng.sample(range(count), dead):
        faults.append((rng.uniform(3, QUIET_AT), Fault("dead", index, rng.choice(TAGS))))
    for index in range(count, count + rng.choice((0, 0, 1, 2, 3))):
        when = rng.uniform(3, QUIET_AT)
        faults.append((when, Fault("join", index)))
        if rng.random() < 0.4:
            end = when + rng.uniform(2, 30)
            faults.append((end, Fault("dead", index, rng.choice(TAGS))))
    if rng.random() < 0.3:
        faults.append((rng.uniform(20, QUIET_AT), Fault("leave", rng.randrange(count))))
    return faults


def _halves(rng: Random, count: int) -> list[tuple[float, Fault]]:
    """Two equal halves that cannot meet, once or twice, with a crash now and then."""
    faults: list[tuple[float, Fault]] = []
    for start in (3.0, 60.0)[: rng.randint(1, 2)]:
        one = set(rng.sample(range(count), count // 2))
        when = rng.uniform(start, start + 20)
        faults += _between(_across(one, count), when, when + rng.uniform(5, 45))
    return [*faults, *(_crash(rng, rng.randrange(count)) if rng.random() < 0.5 else ())]


def _line(rng: Random, count: int) -> list[tuple[float, Fault]]:
    """Each reaches its neighbours only, and nobody forwards: A-B, B-C, not A-C."""
    order = rng.sample(range(count), count)
    near = {frozenset(pair) for pair in pairwise(order)}
    apart = frozenset(pair for pair in combinations(range(count), 2) if {*pair} not in near)
    when = rng.uniform(3, 30)
    faults = _between(apart, when, rng.uniform(when + 30, QUIET_AT))
    return [*faults, *(_crash(rng, rng.randrange(count)) if rng.random() < 0.5 else ())]


def _apart(rng: Random, count: int) -> list[tuple[float, Fault]]:
    """Two groups, none of them a single peer, that go on without each other for over a hundred rounds."""
    one = set(rng.sample(range(count), count // 2))
    return _between(_across(one, count), rng.uniform(3, 10), SHAPES["apart"].quiet_at - 1)


def _shrink(rng: Random, count: int) -> list[tuple[float, Fault]]:
    """All but one die or leave, one after the other; later some of them and newcomers come."""
    faults: list[tuple[float, Fault]] = []
    *others, last = rng.sample(range(count), count)
    when = rng.uniform(3, 10)
    for index in others:
        kind = rng.choice(("leave", "doom", "doom"))
        faults.append((when, Fault(kind, index, rng.choice(TAGS))))
        if kind == "doom":
            faults.append((rng.uniform(80, QUIET_AT), Fault("restart", index)))
        when += rng.choice((0.5, 10, 25))
    if rng.random() < 0.5:
        faults += _crash(rng, last)
    joins = [(rng.uniform(60, QUIET_AT), Fault("join", count + i)) for i in range(2)]
    return [*faults, *joins]


def _joiners(rng: Random, count: int) -> list[tuple[float, Fault]]:
    """Newcomers all the time, most of which die soon: before they are let in, or right after."""
    faults: list[tuple[float, Fault]] = []
    for index in range(count, count + 8):
        when = rng.uniform(3, QUIET_AT - 10)
        faults.append((when, Fault("join", index)))
        if rng.random() < 0.7:
            faults.append((when + rng.uniform(0.5, 15), Fault("dead", index, rng.choice(TAGS))))
    return faults


def _clock(rng: Random, count: int) -> list[tuple[float, Fault]]:
    """Clocks jump ahead, by the same amount for all or for one of them alone, up to an hour."""
    faults: list[tuple[float, Fault]] = []
    for _ in range(rng.randint(1, 4)):
        index = rng.choice((-1, rng.randrange(count)))
        jump = Fault("clock", index, seconds=rng.choice((7.0, 60.0, 3600.0)))
        faults.append((rng.uniform(3, QUIET_AT), jump))
    return faults


def _late(rng: Random, count: int) -> list[tuple[float, Fault]]:
    """Messages come twice and up to a minute late (see `Links`), while peers crash."""
    return [fault for _ in range(rng.randint(0, 3)) for fault in _crash(rng, rng.randrange(count))]


_PLANS = {
    "halves": _halves,
    "line": _line,
    "apart": _apart,
    "shrink": _shrink,
    "joiners": _joiners,
    "clock": _clock,
    "late": _late,
    "carried": lambda rng, count: plan(rng, rng.choice(KINDS), count),
}


def _across(one: set[int], count: int) -> frozenset[tuple[int, int]]:
    return frozenset((a, b) for a, b in combinations(range(count), 2) if (a in one) != (b in one))


def _between(
    blocked: frozenset[tuple[int, int]], start: float, end: float
) -> list[tuple[float, Fault]]:
    return [(start, Fault("cut", blocked=blocked)), (end, Fault("heal"))]


def strike(world: World, fault: Fault) -> None:
    """Lets a fault happen."""
    index = fault.index
    match fault.kind:
        case "doom" if index in world.peers:
            world.doomed[index] = fault.tag
        case "dead":
            world.gone.add(index)
            if index in world.peers:
                world.doomed[index] = fault.tag
        case "freeze":
            world.frozen[index] = fault.until
        case "restart" if index in world.disks and index not in world.gone:
            if index not in world.peers or index in world.doomed:
                world.kill(index)
                world.boot(index)
        case "join" if index not in world.gone and index not in world.disks:
            world.boot(index)
        case "leave" if index in world.peers:
            world.peers[index].protocol.state.members.leaving = True
        case "cut":
            world.blocked = (
                _cut(world.rng, list(world.disks)) if fault.blocked is None else fault.blocked
            )
        case "heal":
            world.blocked = frozenset()
        case "clock":
            for peer in list(world.peers) if index < 0 else [index]:
                world.ahead[peer] = world.ahead.get(peer, 0.0) + fault.seconds
        case "quiet":
            _quiet(world)


def _cut(rng: Random, names: list[int]) -> frozenset[tuple[int, int]]:
    pairs = list(combinations(sorted(names), 2))
    if rng.random() < 0.6:  # groups
        side = {a: rng.randint(0, rng.choice((1, 1, 2))) for a in names}
        return frozenset((a, b) for a, b in pairs if side[a] != side[b])
    return frozenset(pair for pair in pairs if rng.random() < 0.5)  # any shape


def _quiet(world: World) -> None:
    world.blocked = frozenset()
    world.links = world.links.calmed()
    for index in list(world.doomed):
        world.kill(index)
    for index in list(world.disks):
        if index not in world.peers and index not in world.gone:
            world.boot(index)
