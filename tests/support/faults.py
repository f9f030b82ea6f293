"""Faults as data: what happens to a world, when and to whom, drawn from its seed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.world import World

QUIET_AT = 120.0
"""From here on nothing fails any more."""

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
    """What happens, to which peer; `tag` for a crash, `until` for a freeze."""

    kind: str
    index: int = -1
    tag: str | None = None
    until: float = 0.0


def plan(rng: Random, kind: str, count: int) -> list[tuple[float, Fault]]:
    """The faults of a schedule of `count` founders, with their times."""
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
            world.blocked = _cut(world.rng, list(world.disks))
        case "heal":
            world.blocked = frozenset()
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
