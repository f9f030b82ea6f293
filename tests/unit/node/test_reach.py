"""How members are reached: what is noted, what a person is told, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runnel.dht.identity import null_peer_id
from runnel.dht.middle import Middle
from runnel.dht.outside import Outside
from runnel.dht.routes import DIRECT, Route
from runnel.node.events import Event, PeerReached, PeerWarned
from runnel.node.reach import ReachWatch, explanation
from runnel.types import PeerId, short

A, B, C = (null_peer_id(n) for n in range(3))


class FakeMiddle(Middle):
    """Without a daemon: what others say of us is set."""

    def __init__(self) -> None:
        self.said, self.help = Outside.UNKNOWN, list[PeerId]()

    @property
    def outside(self) -> Outside:
        return self.said

    @property
    def carried_bytes(self) -> int:
        return 7

    def helpers(self) -> list[PeerId]:
        return self.help


class Watched:
    def __init__(self, members: Sequence[PeerId] = (A, B), port: int = 4001) -> None:
        self.middle, self.members = FakeMiddle(), list(members)
        self.events: list[Event] = []
        self.told: dict[str, Any] = {}
        self.watch = ReachWatch(
            self.middle,
            lambda: self.members,
            port=port,
            note=self.events.append,
            tell=lambda facts: self.told.update(facts),
        )

    def ways(self) -> list[tuple[str, str]]:
        return [(e.peer, e.way) for e in self.events if isinstance(e, PeerReached)]

    def warnings(self) -> list[str]:
        return [e.text for e in self.events if isinstance(e, PeerWarned)]


def test_a_member_reached_directly_is_no_news() -> None:
    it = Watched()
    it.watch.look({A: DIRECT, B: DIRECT, C: DIRECT})
    assert it.events == []
    assert it.told["ways"] == {short(A): "directly", short(B): "directly"}
    assert it.told["carried_bytes"] == 7


def test_a_change_of_route_is_noted_once_and_its_end_too() -> None:
    it = Watched()
    for _ in range(3):
        it.watch.look({A: DIRECT, B: Route(A)})
    assert it.ways() == [(short(B), f"through {short(A)}")]
    it.watch.look({A: DIRECT, B: DIRECT})
    assert it.ways()[1:] == [(short(B), "directly")]


def test_a_member_counts_as_not_reached_only_after_some_looks() -> None:
    it = Watched(members=[A])
    it.watch.look({A: DIRECT})
    it.watch.look({})
    it.watch.look({})
    assert it.told["ways"] == {short(A): "directly"}
    it.watch.look({})
    assert it.ways() == [(short(A), "in no way")]
    assert "is reached in no way" in str(it.events[0].diary())
    it.members = []
    it.watch.look({})
    assert it.told["ways"] == {}


def test_who_cannot_be_reached_is_told_what_to_do_once() -> None:
    it = Watched()
    it.watch.look({})
    assert it.warnings() == [], "nobody has tried yet"
    it.middle.said, it.middle.help = Outside.NONE, [B]
    it.watch.look({})
    it.watch.look({})
    (warning,) = it.warnings()
    assert f"through {short(B)}" in warning
    assert "--port 4001" in warning


def test_a_peer_without_help_is_told_so() -> None:
    it = Watched()
    it.middle.said = Outside.NONE
    it.watch.look({})
    assert "no member that can be reached" in it.warnings()[0]


def test_it_is_said_again_when_it_comes_back() -> None:
    it = Watched()
    for said in (Outside.NONE, Outside.ALL, Outside.NONE):
        it.middle.said = said
        it.watch.look({})
    assert len(it.warnings()) == 2


def test_who_listens_nowhere_on_purpose_is_warned_only_without_help() -> None:
    assert explanation(Outside.NONE, 0, [B]) == ""
    assert "--host none" in explanation(Outside.NONE, 0, [])
    assert explanation(Outside.SOME, 4001, []) == ""
