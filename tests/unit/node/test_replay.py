"""Public windows computed again: what comes of one is what its peer committed to, and a lie is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from runnel.hashing import digest
from runnel.node.actions import RoundKey
from runnel.node.keepsakes import Contribution
from runnel.node.manifest_sections import OuterSection
from runnel.node.outer_parts import parts_of
from runnel.node.replay import Claim, KnownRound, Replica, judge_window
from runnel.node.window_facts import Move, WindowFacts
from runnel.optim.binding import ModelBinding, plan_model
from runnel.optim.exchange import Outcome, raw
from runnel.optim.inner import inner_optimizer
from runnel.optim.inner_state import InnerState, copy_inner_state
from runnel.optim.store import OuterStore
from runnel.protocols import Float32
from runnel.types import Decision, Verdict
from tests.support.members import PEERS, commitment, name
from tests.support.replayed import FRAGMENTS, Seen, run_of, spec_of

SPEC = spec_of()


@pytest.fixture(scope="module")
def seen() -> Seen:
    return run_of(SPEC)


def late_moves(claim: Claim) -> list[Move]:
    return [move for one in claim.commitments if one.window for move in one.window.late]


def test_all_windows_that_are_named_come_to_what_was_committed(seen: Seen) -> None:
    assert seen.course.problems == []
    claims = [found for index in range(len(seen.peers)) for found in seen.claims(index)]
    assert len(claims) >= 3
    assert any(late_moves(claim) for claim, _ in claims), "some results came late"
    for claim, replica in claims:
        verdict = judge_window(claim, replica, SPEC.outer)
        assert verdict == Verdict(Decision.ACCEPT, "window"), claim.commitments[0].round


def test_a_window_begins_with_the_optimizer_that_the_one_before_named(seen: Seen) -> None:
    pairs = 0
    for made in seen.commitments.values():
        for before, after in pairwise(made[n].window for n in sorted(made) if n % FRAGMENTS == 2):
            if before is not None and after is not None:
                assert after.inner == before.next_inner
                pairs += 1
    assert pairs


def with_facts(claim: Claim, fragment: int | None, **changes: Any) -> Claim:
    """Other facts in the commitment of a fragment, or in all of them."""
    commitments = list(claim.commitments)
    for place, one in enumerate(commitments):
        assert one.window is not None
        if fragment in (None, place):
            commitments[place] = replace(one, window=replace(one.window, **changes))
    return replace(claim, commitments=commitments)


def merged_elsewhere(claim: Claim) -> Claim:
    """One result a step sooner or later than it was."""
    facts, steps = claim.commitments[1].window, claim.commitments[1].steps
    assert facts is not None
    *moves, last = facts.moves
    step = last.step + 1 if last.step < steps else last.step - 1
    ordered = sorted([*moves, replace(last, step=step)], key=lambda move: move.step)
    return with_facts(claim, 1, moves=tuple(ordered))


def never_merged(claim: Claim) -> Claim:
    facts = claim.commitments[0].window
    assert facts is not None
    return with_facts(claim, 0, moves=facts.moves[:-1])


def other_moments(claim: Claim) -> InnerState:
    first, *rest = claim.inner.values
    assert isinstance(first.value, torch.Tensor)
    return InnerState((replace(first, value=first.value * 1.5), *rest))


def other_start(claim: Claim) -> Claim:
    values = [claim.values[0] + np.float32(0.01), *claim.values[1:]]
    return with_facts(replace(claim, values=values), 0, values=digest(raw(values[0])))


def other_residual(claim: Claim) -> Claim:
    counted = [*claim.counted[:-1], (claim.counted[-1][0] + np.float32(0.01),)]
    lied = replace(claim, counted=counted)
    return with_facts(lied, FRAGMENTS - 1, residual=digest(raw(counted[-1][0])))


def named(claim: Claim, inner: InnerState) -> Claim:
    return with_facts(replace(claim, inner=inner), None, inner=inner.name)


LIES: dict[str, tuple[Callable[[Claim], Claim], str]] = {
    "merged at another step": (merged_elsewhere, "comes to another contribution"),
    "never merged": (never_merged, "comes to another contribution"),
    "other moments": (lambda c: named(c, other_moments(c)), "comes to another contribution"),
    "other values at first": (other_start, "comes to another contribution"),
    "another residual": (other_residual, "fragment 2 comes to another contribution"),
    "other moments at last": (
        lambda c: with_facts(c, None, next_inner=name("none")),
        "comes to another state",
    ),
    "moments that were not named": (
        lambda c: replace(c, inner=other_moments(c)),
        "did not begin with this state",
    ),
    "values that were not named": (
        lambda c: replace(c, values=[np.zeros_like(v) for v in c.values]),
        "fragment 0 did not begin with these values",
    ),
    "values of another size": (
        lambda c: replace(c, values=[v[1:] for v in c.values]),
        "other arrays were given",
    ),
    "a residual that was not named": (
        lambda c: replace(c, counted=[(np.zeros_like(v),) for v in c.values]),
        "fragment 0 has another residual",
    ),
    "two windows": (lambda c: with_facts(c, 1, progress=1), "tells of another window"),
    "a move beyond the end": (
        lambda c: with_facts(c, 1, moves=(Move(1_000, 0, starts=False),)),
        "was moved at steps",
    ),
    "a round that never was": (
        lambda c: with_facts(c, 1, moves=(Move(0, 1_000, starts=False),)),
        "rounds that were not decided",
    ),
    "a start by a share of long ago": (
        lambda c: with_facts(c, 1, moves=(Move(0, 1, starts=True),)),
        "was started by another share",
    ),
}


@pytest.mark.parametrize(("lie", "told"), LIES.values(), ids=LIES)
def test_a_lie_is_found(seen: Seen, lie: Callable[[Claim], Claim], told: str) -> None:
    claim, replica = list(seen.claims(0))[-1]
    verdict = judge_window(lie(claim), replica, SPEC.outer)
    assert verdict.decision is Decision.REJECT
    assert told in verdict.reason


def test_other_data_come_to_another_contribution(seen: Seen) -> None:
    claim, replica = next(seen.claims(0))
    elsewhere = replace(replica, train=lambda step, progress: replica.train(step + 1, progress))
    verdict = judge_window(claim, elsewhere, SPEC.outer)
    assert verdict.reason == "fragment 0 comes to another contribution"


def test_nothing_is_said_of_a_window_without_names(seen: Seen) -> None:
    claim, replica = next(seen.claims(0))
    silent = [*claim.commitments[:-1], replace(claim.commitments[-1], window=None)]
    verdict = judge_window(replace(claim, commitments=silent), replica, SPEC.outer)
    assert verdict.decision is Decision.ABSTAIN


def first_share(
    store: OuterStore, key: RoundKey, values: Float32
) -> tuple[tuple[bytes | memoryview, ...], Float32, Float32]:
    """The payloads of a share of the only fragment, what they say, and what starts the next window."""
    bounds, sent = ((0, values.size),), np.empty_like(values)
    encoded = store.encode(key, 0, values.copy(), version=0, bounds=bounds)
    assert encoded is not None
    store.codec.decode(encoded.payloads[0], sent)
    start = store.start(key, bounds)
    assert start is not None
    return tuple(encoded.payloads), sent, start.delta


@pytest.mark.parametrize("moved_at", [0, 1])
@pytest.mark.parametrize("inner_state", ["kept", "fresh"])
def test_a_round_that_went_by_without_its_share_is_counted(
    inner_state: Literal["kept", "fresh"], moved_at: int
) -> None:
    """One fragment, one step: what the first share held stays ahead, as no record included it."""
    model = nn.Linear(40, 1, bias=False)
    optimizer = inner_optimizer("adamw", model.named_parameters(), lr=0.1)
    outer = OuterSection(windows="public", fragments=1, inner_state=inner_state)
    binding = ModelBinding(model, plan_model(model, 1))
    rng, bounds = np.random.default_rng(3), ((0, 40),)
    theta, learned, mean = rng.standard_normal((3, 40), dtype=np.float32)
    store = OuterStore([theta.copy()], parts_of(outer, binding.plan))

    def train(step: int, progress: float) -> None:
        model(torch.ones(40)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    keys = [RoundKey(number, name("base")) for number in range(2)]
    begun = theta - learned
    binding.write(0, begun)
    payloads, sent, move = first_share(store, keys[0], begun)
    if moved_at == 1:
        train(1, 0.0)
    binding.add(0, move)
    result = store.codec.encode(mean)
    store.prepare("result", 0, bounds, [result], final=False)
    missed = Outcome(keys[0], 0, bounds, payloads, (False,), (None,), final=False)
    binding.add(0, store.adopt("result", missed).delta)
    if moved_at == 0:
        train(1, 0.0)
    values, counted = binding.new_buffer(0), tuple(one.copy() for one in store.counted(0))
    binding.read(0, values)
    after = store.parameters(0).copy()
    second = store.encode(keys[1], 0, values, version=store.version(0), bounds=bounds)
    assert second is not None
    assert len(counted) == 2
    end = copy_inner_state(optimizer) if inner_state == "kept" else InnerState()
    assert end is not None
    facts = WindowFacts(
        values=digest(raw(begun)),
        inner=InnerState().name,
        next_inner=end.name,
        residual=digest(*map(raw, counted)),
        progress=0,
        moves=(Move(moved_at, 0, starts=True), Move(moved_at, 0, starts=False)),
    )
    missed_round = KnownRound(theta, after, sent, bounds, (False,), 0)
    root = Contribution.of(0, second.payloads).root
    said = replace(commitment(PEERS[0], 1, keys[1].base), payload_root=root, window=facts)
    claim = Claim(
        commitments=[said],
        values=[begun],
        inner=InnerState(),
        counted=[counted],
        rounds={0: missed_round, 1: KnownRound(after, after, None, (), (), 0)},
    )
    replica = Replica(binding, optimizer, train)
    assert judge_window(claim, replica, outer).reason == ""
    alone = with_facts(replace(claim, counted=[counted[:1]]), 0, residual=digest(raw(counted[0])))
    assert "another contribution" in judge_window(alone, replica, outer).reason
