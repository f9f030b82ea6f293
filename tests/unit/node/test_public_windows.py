"""The trainer's side of public windows: all is read at one step, given when asked for, and may start anew."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from runnel.dht.identity import Identity
from runnel.errors import ConfigError
from runnel.hashing import digest
from runnel.node.events import WindowStarted
from runnel.node.mailbox import DecidedMerge
from runnel.node.peer import PeerNode
from runnel.node.place import local
from runnel.node.sampling import window_seed
from runnel.node.trainer import Trainer
from runnel.node.window_facts import Move
from runnel.optim.binding import ModelBinding
from runnel.optim.exchange import raw
from runnel.optim.inner import inner_optimizer
from runnel.optim.inner_state import InnerState, copy_inner_state
from runnel.optim.store import Merge, OuterStore
from tests.unit.node.test_trainer import BASE, BUFFERS, Bench, NotingNode, Waits

WINDOW = 16
ME = Identity.from_seed(bytes(32)).peer_id
BEFORE = b"seed before the first window"


class PublicBench(Bench):
    """As `Bench`, 4 fragments of 2 values, with windows of 16 steps and an inner optimizer."""

    def __init__(self, *settings: str) -> None:
        self.model = nn.Linear(8, 1, bias=False)
        self.optimizer = inner_optimizer("adamw", self.model.named_parameters(), lr=0.1)
        every = f"outer.every_steps={WINDOW}"
        spec = local("outer.windows=public", every, "outer.overlap_steps=2", *settings).spec
        self.node = NotingNode(self.model, spec)
        self.node.peer, self.node.window_seed = ME, lambda: BEFORE  # type: ignore[attr-defined]
        self.binding = ModelBinding(self.model, self.node.plan)
        self.trainer = Trainer(
            cast(PeerNode, self.node), self.binding, cast(OuterStore, BUFFERS), self.optimizer
        )

    def learn(self, step: float) -> None:
        with torch.no_grad():
            self.model.weight.add_(step)

    def start(self, number: int, delta: float, version: int) -> None:
        """The codec thread has encoded a share."""
        fragment = number % 4
        change = np.full(2, delta, dtype=np.float32)
        merge = Merge(fragment, version, change, np.zeros(2, dtype=np.float32))
        decided = DecidedMerge(number, merge, included=False, starts=True, plain=True)
        self.node.mailbox.deliver(decided)

    @property
    def numbers(self) -> list[int]:
        return [handed.want.key.number for handed in self.handed]


def test_all_fragments_are_read_at_one_step_and_given_when_their_rounds_open() -> None:
    bench = PublicBench()
    bench.node.want(0)
    bench.node.want(1)
    bench.steps(WINDOW - 1)
    assert bench.handed == []
    bench.steps(1, loss=3.0)
    assert bench.numbers == [0, 1]
    bench.learn(0.5)
    bench.steps(3)
    bench.node.want(2)
    bench.node.want(3)
    bench.steps(1)
    assert bench.numbers == [0, 1, 2, 3]
    assert [float(handed.snapshot[0]) for handed in bench.handed] == [1, 2, 3, 4], "not learned yet"
    assert {(handed.steps, handed.tokens) for handed in bench.handed} == {(WINDOW, WINDOW)}
    assert [handed.loss for handed in bench.handed] == pytest.approx([1 + 2 / WINDOW] * 4)


def test_the_next_window_needs_all_of_its_steps() -> None:
    bench = PublicBench()
    for number in range(4):
        bench.node.want(number)
    bench.steps(WINDOW)
    bench.node.want(4)
    bench.steps(WINDOW - 1)
    assert bench.numbers == [0, 1, 2, 3]
    bench.steps(1)
    assert bench.numbers == [0, 1, 2, 3, 4]


def test_the_inner_optimizer_remembers_unless_it_shall_not() -> None:
    bench = PublicBench()
    bench.node.want(0)
    bench.model(torch.ones(8)).backward()
    bench.optimizer.step()
    bench.steps(WINDOW)
    assert bench.numbers == [0]
    assert float(bench.optimizer.state[bench.model.weight]["step"]) == 1


def test_a_fresh_inner_optimizer_forgets_at_the_end_of_a_window_and_keeps_its_rate() -> None:
    bench = PublicBench("outer.inner_state=fresh")
    bench.node.want(0)
    for _ in range(WINDOW):
        bench.model(torch.ones(8)).backward()
        bench.optimizer.step()
        assert bench.optimizer.state
        bench.optimizer.param_groups[0]["lr"] = 0.05
        bench.steps(1)
    assert not bench.optimizer.state
    assert bench.optimizer.param_groups[0]["lr"] == 0.05
    bench.optimizer.step()
    assert float(bench.optimizer.state[bench.model.weight]["step"]) == 1, "and counts from there"


def test_the_window_starts_at_once_and_its_step_is_noted() -> None:
    bench = PublicBench()
    bench.node.want(0)
    bench.steps(WINDOW)
    bench.learn(0.25)
    bench.start(0, delta=0.5, version=1)
    bench.steps(1)  # before the overlap is over
    assert np.all(bench.values(0) == 1.75)
    started = [cast(WindowStarted, event) for event in bench.noted(WindowStarted)]
    assert [(s.round, s.fragment, s.step) for s in started] == [(0, 0, WINDOW + 1)]
    bench.node.decide(0, included=True, delta=1.0, version=2)
    bench.steps(1)
    assert np.all(bench.values(0) == 2.75)


def test_a_late_result_moves_what_was_read_since_and_is_merged_once() -> None:
    bench = PublicBench()
    for number in range(4):
        bench.node.want(number)
    bench.steps(WINDOW)
    bench.node.want(4)
    bench.steps(WINDOW)  # the next window is over, and round 3 is not decided
    assert bench.numbers == [0, 1, 2, 3, 4]
    bench.node.decide(3, included=True, delta=0.5, version=2)
    bench.learn(0.25)
    bench.steps(1)
    assert np.all(bench.values(3) == 4.75)
    bench.node.want(7)
    bench.steps(1)
    assert bench.numbers[-1] == 7
    assert np.all(bench.handed[-1].snapshot == 4.5), "as it was read, and the merge"
    assert bench.handed[-1].version == 2


def test_shares_tell_of_the_window_that_they_end() -> None:
    bench = PublicBench()
    for number in range(4):
        bench.node.want(number)
    bench.steps(WINDOW)
    first = bench.handed[0].end
    assert first is not None
    assert first.inner is not None
    assert (first.serial, first.moves, first.inner.name) == (0, (), InnerState().name)
    assert bench.trainer.progress == 0
    bench.start(3, delta=0.5, version=1)
    bench.steps(3)
    bench.node.want(4)
    bench.model(torch.ones(8)).backward()
    bench.optimizer.step()
    bench.steps(WINDOW - 3)
    bench.node.decide(3, included=True, delta=0.5, version=2)
    bench.steps(4)
    bench.node.want(7)
    bench.steps(1)
    last = bench.handed[-1].end
    assert last is not None
    assert (last.serial, last.moves) == (1, (Move(1, 3, starts=True),))
    assert last.late == (Move(1, 3, starts=False),)
    assert last.values == digest(raw(bench.handed[-1].snapshot - np.float32(0.5)))
    inner = copy_inner_state(bench.optimizer)
    assert inner is not None
    assert last.inner is not None
    assert last.inner.name == inner.name != first.inner.name
    assert (last.progress, bench.trainer.progress) == (0, 0.004), "as it began, and now"


@pytest.mark.parametrize("plain", [True, False])
def test_what_nobody_can_repeat_is_told_as_nothing(plain: bool) -> None:
    bench = PublicBench()
    bench.node.want(0)
    bench.steps(WINDOW)
    change = np.full(2, 0.5, dtype=np.float32)
    merge = Merge(0, 1, change, change)
    bench.node.mailbox.deliver(DecidedMerge(0, merge, included=False, plain=plain))
    bench.node.want(4)
    bench.steps(WINDOW)
    end = bench.handed[-1].end
    assert end is not None
    assert end.moves == ((Move(2, 0, starts=False),) if plain else None)


def test_a_window_that_was_withheld_is_told_as_nothing() -> None:
    bench = PublicBench()
    bench.node.want(0)
    bench.steps(WINDOW - 1)
    bench.steps(1, loss=float("nan"))
    bench.steps(WINDOW)
    end = bench.handed[-1].end
    assert end is not None
    assert end.moves is None


def test_a_fragment_that_was_never_asked_for_goes_with_the_newest_window() -> None:
    bench = PublicBench()
    bench.node.want(0)
    bench.steps(WINDOW)
    bench.learn(0.5)
    bench.node.want(4)
    bench.steps(WINDOW)
    assert bench.numbers == [0, 4]
    bench.node.want(3)  # of the window before
    bench.steps(1)
    assert np.all(bench.handed[-1].snapshot == 4.5)
    assert bench.handed[-1].tokens == 2 * WINDOW


def test_a_peer_that_comes_in_the_middle_of_a_window_trains_one_before_it_gives() -> None:
    bench = PublicBench()
    bench.node.want(6)
    bench.steps(WINDOW - 1)
    assert bench.handed == []
    bench.node.want(6, urgent=True)
    bench.steps(1)
    bench.node.want(7)
    bench.steps(1)
    assert bench.numbers == [6, 7]
    bench.node.want(8)
    bench.steps(WINDOW - 2)
    assert bench.numbers == [6, 7]
    bench.steps(1)
    assert bench.numbers == [6, 7, 8]


def test_a_share_that_is_asked_for_again_is_read_again() -> None:
    bench = PublicBench()
    bench.node.want(0, urgent=True)
    bench.steps(1)
    bench.learn(0.5)
    bench.node.want(0, urgent=True)  # the trainer had merges to apply
    bench.steps(1)
    assert [float(handed.snapshot[0]) for handed in bench.handed] == [1, 1.5]


def test_a_loss_that_is_no_number_withholds_the_whole_window() -> None:
    bench = PublicBench()
    for number in (0, 1):
        bench.node.want(number)
    bench.steps(WINDOW - 1)
    bench.steps(1, loss=float("nan"))
    assert bench.handed == []
    bench.steps(WINDOW - 1)
    assert bench.handed == []
    bench.steps(1)
    assert bench.numbers == [0, 1]
    assert bench.handed[0].tokens == 2 * WINDOW, "what was withheld is not lost"


def test_data_follow_from_the_record_that_a_windows_first_share_derives_from() -> None:
    bench = PublicBench()
    assert bench.trainer.window_seed() == BEFORE
    bench.node.want(4)
    bench.steps(WINDOW)
    assert bench.trainer.window_seed() == window_seed(BASE, ME, 2)
    for number in (5, 6, 7):
        bench.node.want(number)
        bench.node.decide(number - 1, included=True, version=number)
        bench.steps(3)
    assert bench.trainer.window_seed() == window_seed(BASE, ME, 2), "results change nothing"


def test_a_trainer_that_waits_gives_all_of_its_window_meanwhile() -> None:
    bench = PublicBench("outer.wait_s=5")
    node = bench.node

    def decide_next() -> None:
        number = node.mailbox.chain.number + 1
        for decided in range(number, number + 1 if number < 2 else 4):
            node.decide(decided, included=True, delta=0.5, version=decided)
        if number < 2:
            node.want(number + 2)

    Waits(bench, decide_next)
    node.want(0)
    node.want(1)
    bench.steps(WINDOW + 1)
    assert bench.numbers == [0, 1]
    bench.steps(1)
    assert bench.numbers == [0, 1, 2, 3]
    assert node.mailbox.chain.number == 3
    assert [float(bench.values(f)[0]) for f in range(4)] == [1.5, 2.5, 3.5, 4.5]


def test_without_an_optimizer_it_says_what_to_do() -> None:
    bench = PublicBench("outer.inner_state=fresh")
    for optimizer in (None, object()):
        with pytest.raises(ConfigError, match=r"outer.inner_state is fresh .* pass runnel.Peer"):
            Trainer(cast(PeerNode, bench.node), bench.binding, cast(OuterStore, BUFFERS), optimizer)
