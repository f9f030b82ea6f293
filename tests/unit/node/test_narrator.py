"""Steps of the chain as events: what is told round by round, and what in one line because it was missed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runnel.dht.traffic import ByteCounter
from runnel.node.chain import Fork
from runnel.node.events import CaughtUp, Event, ResidualCut, RoundDecided, RoundLate, diary
from runnel.node.mailbox import DecidedMerge
from runnel.node.narrator import Narrator
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Record
from runnel.optim.exchange import Merge
from tests.support.members import PEERS, certificate, following_record
from tests.support.states import GENESIS, result_record, state_of


class Bench:
    """A narrator over a chain that may be further than what it is told of."""

    def __init__(self) -> None:
        self.state: ProtocolState = state_of()
        self.events: list[Event] = []
        self.narrator = Narrator(self.state, self.events.append, ByteCounter())
        self.records: list[Record] = [GENESIS]

    def know(self, *kinds: str) -> None:
        """The chain goes on by records of these kinds: "round" or "abort"."""
        for kind in kinds:
            parent = self.records[-1]
            record = (
                result_record(parent, f"r{parent.number}")
                if kind == "round"
                else following_record(parent)
            )
            self.records.append(record)
            name = self.state.chain.add(record, certificate(record, PEERS[:2]))
            self.state.chain.follow([*self.state.chain.path, name])

    def tell(
        self,
        *numbers: int,
        included: bool = False,
        given_up: Sequence[Record] = (),
        cut: float = 0.0,
    ) -> None:
        adopted = tuple(self.records[number + 1] for number in numbers)
        merges = [DecidedMerge(n, Merge(n % 4, 1, NONE, NONE, cut), included) for n in numbers]
        self.narrator.moved(Fork(tuple(given_up), adopted), merges, 100.0 + numbers[-1])

    def lines(self) -> list[str]:
        return [line for event in self.events if (line := diary(event))]

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


NONE = np.zeros(1, dtype=np.float32)


def test_rounds_are_told_one_by_one_while_a_peer_keeps_up() -> None:
    bench = Bench()
    for number in range(5):
        bench.know("round")
        bench.tell(number, included=True)
    assert len(bench.lines()) == 5
    assert not bench.of(CaughtUp)


def test_what_a_cap_takes_is_told_of_each_time_and_said_where_it_begins() -> None:
    bench = Bench()
    for number, cut in enumerate((0.0, 2.5, 1.5, 0.0, 0.25)):
        bench.know("round")
        bench.tell(number, included=True, cut=cut)
    bench.know("round")
    bench.tell(5, included=False)
    events = [event for event in bench.events if isinstance(event, ResidualCut)]
    assert [(e.round, e.fragment, e.cut, e.again) for e in events] == [
        (1, 1, 2.5, False),
        (2, 2, 1.5, True),
        (4, 0, 0.25, False),
    ]
    said = [line for line in bench.lines() if "outer.residual_cap" in line]
    assert [line.split(":")[0] for line in said] == ["round 1", "round 4"]
    assert "norm 2.5 of it is dropped" in said[0]


def test_a_thread_that_is_some_rounds_late_missed_nothing() -> None:
    bench = Bench()
    bench.know(*["round"] * 8)
    for number in range(5, 8):
        bench.tell(number)
    assert not bench.of(CaughtUp)
    assert len(bench.of(RoundLate)) == 3


def test_what_was_missed_is_told_in_one_line() -> None:
    bench = Bench()
    bench.know("round", "abort", "round", "round", "abort", "round", "round")
    for number in range(7):
        bench.tell(number, included=number == 0)
    (told,) = bench.of(CaughtUp)
    assert isinstance(told, CaughtUp)
    assert (told.first, told.last) == (0, 3)
    assert (told.records, told.aborts, told.branches, told.included) == (3, 1, 0, 1)
    decided = [event for event in bench.events if isinstance(event, RoundDecided)]
    assert [event.missed for event in decided] == [True] * 3 + [False] * 4
    assert len(bench.lines()) == 1 + 4 + len(bench.of(RoundLate))
    assert "caught up with rounds 0 to 3" in " ".join(bench.lines())


def test_a_landing_is_told_in_one_line_with_what_was_given_up() -> None:
    bench = Bench()
    bench.know(*["round"] * 9)
    own = following_record(GENESIS, nonce=b"other")
    bench.tell(*range(9), given_up=[own, own])
    (told,) = bench.of(CaughtUp)
    assert isinstance(told, CaughtUp)
    assert (told.first, told.last, told.records, told.given_up) == (0, 8, 9, 2)
    assert not bench.of(RoundLate)
    assert bench.lines() == [told.diary()]


def test_a_second_absence_is_counted_by_itself() -> None:
    bench = Bench()
    bench.know(*["round"] * 9)
    bench.tell(*range(5))
    bench.tell(*range(5, 9))
    bench.know(*["abort"] * 9)
    bench.tell(*range(9, 18))
    first, second = bench.of(CaughtUp)
    assert isinstance(first, CaughtUp)
    assert isinstance(second, CaughtUp)
    assert (first.first, first.last, first.records) == (0, 8, 9)
    assert (second.first, second.last, second.aborts) == (9, 17, 9)
