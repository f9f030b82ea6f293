"""The trainer's side of rounds, with a node that only takes notes: what is due, what counts, what is merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from runnel.clock import SystemClock
from runnel.errors import ConfigError, RunMismatchError
from runnel.node.actions import RoundKey, WantHandover
from runnel.node.events import ContributionWithheld, Event, InnerProgress, MergeApplied
from runnel.node.mailbox import ChainView, DecidedMerge, HandedOver, Mailbox
from runnel.node.manifest_spec import RunSpec
from runnel.node.peer import PeerNode
from runnel.node.place import local
from runnel.node.trainer import Trainer
from runnel.optim.binding import ModelBinding, plan_model
from runnel.optim.schedule import WindowSchedule
from runnel.optim.store import Merge, OuterStore
from runnel.protocols import Float32
from runnel.types import Digest

BASE = Digest(bytes(32))
BUFFERS = SimpleNamespace(take_buffer=lambda numel: np.empty(numel, dtype=np.float32))


class NotingNode:
    """What a trainer sees of a peer. Its outer parameters are 1, 2, ... by fragment."""

    def __init__(self, model: nn.Module, spec: RunSpec) -> None:
        self.spec, self.plan = spec, plan_model(model, spec.outer.fragments)
        self.schedule = WindowSchedule(self.plan.num_fragments, spec.outer.every_steps)
        self.handed: list[HandedOver] = []
        self.events: list[Event] = []
        self.mailbox = Mailbox(self.handed.append)
        self.clock = SystemClock()

    def outer_parameters(self) -> Sequence[Float32]:
        return [np.full(size, i + 1, dtype=np.float32) for i, size in enumerate(self.plan.sizes)]

    def check(self) -> None:
        self.mailbox.check()

    def note(self, event: Event) -> None:
        self.events.append(event)

    # -- what the I/O thread would do

    def want(self, number: int, *, urgent: bool = False) -> None:
        fragment = number % self.plan.num_fragments
        self.mailbox.want(WantHandover(RoundKey(number, BASE), fragment, 1, urgent))

    def decide(self, number: int, *, included: bool, delta: float = 0.0, version: int = 1) -> None:
        fragment = number % self.plan.num_fragments
        size = self.plan.sizes[fragment]
        merge = Merge(
            fragment,
            version,
            np.full(size, delta, dtype=np.float32),
            np.full(size, 100.0, dtype=np.float32),
        )
        given = [handed.tokens for handed in self.handed if handed.want.key.number == number]
        tokens = given[0] if included and given else 0
        progress = 1_000 * (number + 1)
        self.mailbox.deliver(
            DecidedMerge(number, merge, included, tokens=tokens, plain=True, progress=progress)
        )
        self.mailbox.tell(ChainView(number=number))


class Bench:
    """A model of 8 values in 4 fragments of 2, a fragment due every 4 steps."""

    def __init__(self, *settings: str) -> None:
        self.model = nn.Linear(8, 1, bias=False)
        spec = local("outer.every_steps=16", "outer.overlap_steps=2", *settings).spec
        self.node = NotingNode(self.model, spec)
        self.binding = ModelBinding(self.model, self.node.plan)
        self.trainer = Trainer(cast(PeerNode, self.node), self.binding, cast(OuterStore, BUFFERS))

    def steps(self, count: int, *, loss: float = 1.0, tokens: int = 1) -> None:
        for _ in range(count):
            self.trainer.step(loss, tokens)

    def values(self, fragment: int) -> Float32:
        out = self.binding.new_buffer(fragment)
        self.binding.read(fragment, out)
        return out

    @property
    def handed(self) -> list[HandedOver]:
        return self.node.handed

    def noted(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.node.events if isinstance(event, kind)]


def test_the_model_starts_with_the_outer_parameters() -> None:
    bench = Bench()
    assert [float(bench.values(f)[0]) for f in range(4)] == [1, 2, 3, 4]


# -- what is due


def test_nothing_is_handed_over_unasked() -> None:
    bench = Bench()
    bench.steps(50)
    assert bench.handed == []


def test_a_share_is_handed_over_when_its_steps_are_done() -> None:
    bench = Bench()
    bench.node.want(0)
    due = bench.node.schedule.steps_before(0)
    bench.steps(due - 1)
    assert bench.handed == []
    bench.steps(1, loss=3.0)
    assert [(h.want.key.number, h.steps) for h in bench.handed] == [(0, due)]
    assert bench.handed[0].loss == pytest.approx((due - 1 + 3.0) / due)


def test_each_round_needs_its_own_share_of_steps() -> None:
    bench = Bench()
    for number in (0, 1):
        bench.node.want(number)
    bench.steps(bench.node.schedule.steps_before(0))
    assert len(bench.handed) == 1
    bench.steps(bench.node.schedule.steps_before(1) - 1)
    assert len(bench.handed) == 1
    bench.steps(1)
    assert [h.want.key.number for h in bench.handed] == [0, 1]


def test_a_later_round_with_a_shorter_share_waits_for_its_turn() -> None:
    bench = Bench("outer.every_steps=50")
    schedule = bench.node.schedule
    assert schedule.steps_before(2) < schedule.steps_before(1)
    bench.node.want(0)
    bench.steps(schedule.steps_before(0))
    for number in (1, 2):
        bench.node.want(number)
    bench.steps(schedule.steps_before(2))
    assert [h.want.key.number for h in bench.handed] == [0]
    bench.steps(1)
    assert [h.want.key.number for h in bench.handed] == [0, 1]


def test_an_urgent_round_gets_what_there_is() -> None:
    bench = Bench()
    bench.steps(1)
    bench.node.want(0, urgent=True)
    bench.steps(1)
    assert [(h.want.key.number, h.steps) for h in bench.handed] == [(0, 2)]


def test_what_is_handed_over_is_a_copy() -> None:
    bench = Bench()
    bench.node.want(0, urgent=True)
    bench.steps(1)
    with torch.no_grad():
        bench.model.weight.fill_(9.0)
    assert np.all(bench.handed[0].snapshot == 1.0)


# -- what counts


def test_tokens_count_until_a_record_includes_them() -> None:
    bench = Bench()
    bench.node.want(0, urgent=True)
    bench.steps(1, tokens=10)
    bench.node.decide(0, included=False)
    bench.steps(3, tokens=10)
    bench.node.want(4, urgent=True)  # the same fragment again
    bench.steps(1, tokens=10)
    assert [h.tokens for h in bench.handed] == [10, 50]
    bench.node.decide(4, included=True, version=2)
    bench.steps(3, tokens=10)
    bench.node.want(8, urgent=True)
    bench.steps(1, tokens=10)
    assert bench.handed[-1].tokens == 40


def test_of_two_answers_to_one_request_the_one_that_counted_is_taken_off() -> None:
    bench = Bench()
    bench.node.want(0, urgent=True)
    bench.steps(1, tokens=10)
    bench.node.want(0, urgent=True)  # asked again while the first answer is under way
    bench.steps(1, tokens=10)
    assert [h.tokens for h in bench.handed] == [10, 20]
    bench.node.decide(0, included=True)
    bench.steps(2, tokens=10)
    bench.node.want(4, urgent=True)
    bench.steps(1, tokens=10)
    assert bench.handed[-1].tokens == 40


def test_tokens_of_shares_that_are_given_up_count_again() -> None:
    bench = Bench()
    bench.node.want(0, urgent=True)
    bench.steps(1, tokens=10)
    bench.node.decide(0, included=True)
    bench.steps(3, tokens=10)
    none = np.zeros(2, dtype=np.float32)
    bench.node.mailbox.deliver(DecidedMerge(0, Merge(0, 2, none, none), False, tokens=-10))
    bench.node.want(4, urgent=True)
    bench.steps(1, tokens=10)
    assert bench.handed[-1].tokens == 50


def test_a_weight_above_the_cap_is_paid_off_later() -> None:
    bench = Bench("outer.max_weight_tokens=25")
    bench.node.want(0, urgent=True)
    bench.steps(1, tokens=60)
    bench.node.decide(0, included=True)
    bench.steps(3, tokens=1)
    bench.node.want(4, urgent=True)
    bench.steps(1, tokens=1)
    assert [h.tokens for h in bench.handed] == [25, 25]


def test_a_round_that_was_aborted_keeps_its_tokens() -> None:
    bench = Bench()
    bench.node.want(0, urgent=True)
    bench.steps(1, tokens=10)
    bench.node.mailbox.tell(ChainView(number=0))  # an abort brings no merge
    bench.steps(3, tokens=10)
    assert bench.trainer.window.handed_at == {}
    bench.node.want(4, urgent=True)
    bench.steps(1, tokens=10)
    assert bench.handed[-1].tokens == 50


@pytest.mark.parametrize("tokens", [0, -5])
def test_tokens_below_one_are_refused(tokens: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Bench().trainer.step(1.0, tokens)


# -- what is merged


def test_an_own_contribution_comes_back_after_the_overlap() -> None:
    bench = Bench()
    bench.node.want(0, urgent=True)
    bench.steps(1)
    bench.node.decide(0, included=True, delta=0.5)
    bench.steps(1)
    assert np.all(bench.values(0) == 1.0)
    bench.steps(1)
    assert np.all(bench.values(0) == 1.5)
    assert len(bench.noted(MergeApplied)) == 1


def test_what_others_decided_comes_at_once() -> None:
    bench = Bench()
    bench.node.decide(0, included=False, delta=0.5)
    bench.steps(1)
    assert np.all(bench.values(0) == 1.5)
    assert np.all(bench.values(1) == 2.0)


def test_a_merge_keeps_what_was_learned_meanwhile() -> None:
    bench = Bench("outer.overlap_steps=0")
    bench.node.want(0, urgent=True)
    bench.steps(1)
    with torch.no_grad():
        bench.model.weight.add_(0.25)
    bench.node.decide(0, included=True, delta=0.5)
    bench.steps(1)
    assert np.all(bench.values(0) == 1.75)


def test_mixing_keeps_a_part_of_the_local_parameters() -> None:
    bench = Bench("outer.mixing=0.25", "outer.overlap_steps=0")
    bench.node.decide(0, included=True, delta=0.5)
    bench.steps(1)
    assert np.all(bench.values(0) == 0.25 * 1.0 + 0.75 * 100.0)


def test_a_hand_over_names_the_merges_that_are_in_it() -> None:
    bench = Bench()
    bench.node.decide(0, included=False, version=7)
    bench.node.want(4, urgent=True)
    bench.steps(1)
    assert [h.version for h in bench.handed] == [7]


def test_the_last_state_takes_the_place_of_local_parameters() -> None:
    bench = Bench()
    with torch.no_grad():
        bench.model.weight.fill_(9.0)
    bench.node.decide(0, included=False, delta=0.5)
    bench.trainer.take_outer_state()
    assert [float(bench.values(f)[0]) for f in range(4)] == [1, 2, 3, 4]


# -- what is withheld


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_withholds_one_share_only(loss: float) -> None:
    bench = Bench()
    bench.node.want(0)
    due = bench.node.schedule.steps_before(0)
    bench.steps(due - 1)
    bench.steps(1, loss=loss)
    assert bench.handed == []
    assert [cast(ContributionWithheld, e).round for e in bench.noted(ContributionWithheld)] == [0]
    bench.steps(due, tokens=10)
    assert [h.want.key.number for h in bench.handed] == [0]
    assert bench.handed[0].tokens == due + 10 * due, "what was withheld is not lost"
    assert bench.handed[0].loss == 1.0


def test_parameters_that_are_no_numbers_are_withheld_with_one_line_a_round() -> None:
    bench = Bench()
    with torch.no_grad():
        bench.model.weight[0, 0] = math.nan
    bench.node.want(0, urgent=True)
    bench.steps(5)
    assert bench.handed == []
    assert len(bench.noted(ContributionWithheld)) == 1
    with torch.no_grad():
        bench.model.weight.fill_(2.0)
    bench.steps(1)
    assert len(bench.handed) == 1


# -- what else


def test_a_replaced_module_is_named_before_anything_is_sent() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
    node = NotingNode(model, local().spec)
    trainer = Trainer(
        cast(PeerNode, node), ModelBinding(model, node.plan), cast(OuterStore, BUFFERS)
    )
    model[1] = nn.Linear(2, 1)
    node.want(0, urgent=True)
    with pytest.raises(RunMismatchError, match=r"'1\.bias'"):
        trainer.step(1.0, 1)
    assert node.handed == []


def test_a_parameter_of_another_shape_is_not_handed_over() -> None:
    bench = Bench()
    bench.model.weight.data = torch.full((1, 9), 100.0)
    bench.node.want(0, urgent=True)
    with pytest.raises(RunMismatchError, match=r"'weight' has shape \(1, 9\)"):
        bench.steps(1)
    assert bench.handed == []


def test_a_parameter_that_is_unfrozen_after_joining_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    node = NotingNode(model, local("outer.fragments=1", "rounds.open=1").spec)
    binding = ModelBinding(model, node.plan)
    trainer = Trainer(cast(PeerNode, node), binding, cast(OuterStore, BUFFERS))
    for number in range(3):
        node.want(number, urgent=True)
        trainer.step(1.0, 1)
        model[0].requires_grad_(number == 0)
    assert [record.message[:27] for record in caplog.records] == ["parameter '0.weight' and 1 "]


def test_the_first_step_is_reported_and_then_every_tenth() -> None:
    bench = Bench()
    bench.trainer.lr = 0.1
    bench.steps(25, loss=2.0, tokens=3)
    reports = [cast(InnerProgress, event) for event in bench.noted(InnerProgress)]
    assert [(r.step, r.tokens, r.loss, r.lr) for r in reports] == [
        (1, 3, 2.0, 0.1),
        (10, 30, 2.0, 0.1),
        (20, 60, 2.0, 0.1),
    ]


class Waits:
    """A mailbox's `wait` that lets the I/O thread act instead of time pass."""

    def __init__(self, bench: Bench, then: Callable[[], None]) -> None:
        self.count, self._then = 0, then
        bench.node.mailbox.wait = self  # type: ignore[method-assign]

    def __call__(self, until: Callable[[], bool], timeout_s: float) -> bool:
        self.count += 1
        if not until():
            self._then()
        return until()


def test_a_trainer_waits_for_its_round_only_where_the_run_says_so() -> None:
    patient, hasty = Bench("outer.wait_s=5"), Bench()
    for bench, expected in ((patient, 1.5), (hasty, 1.0)):
        node = bench.node
        Waits(bench, lambda node=node: node.decide(0, included=True, delta=0.5))  # type: ignore[misc]
        node.want(0, urgent=True)
        bench.steps(3)
        assert np.all(bench.values(0) == expected)


def test_a_trainer_that_is_ahead_waits_for_the_next_round_to_open() -> None:
    bench = Bench("outer.wait_s=5")
    due = bench.node.schedule.steps_before(0)
    waits = Waits(bench, lambda: bench.node.want(0))
    bench.steps(due - 1)
    assert waits.count == 0
    bench.steps(1)
    assert waits.count == 1
    assert [h.want.key.number for h in bench.handed] == [0]
