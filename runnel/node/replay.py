"""A public window computed again, from what is public and what its commitments name and its peer is asked for.

Pure: nobody asks for anything here, and nothing is sent. On the machine that trained, or one like it, the
payloads and the inner optimizer come out bit for bit as the peer committed to them, or it did something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from runnel.hashing import digest
from runnel.node.actions import RoundKey
from runnel.node.commitments import Commitment
from runnel.node.keepsakes import Contribution
from runnel.node.outer_parts import parts_of
from runnel.node.records import FULL_PROGRESS
from runnel.node.rounds import slice_bounds
from runnel.node.window_facts import Move, WindowFacts
from runnel.optim.binding import ModelBinding
from runnel.optim.exchange import raw
from runnel.optim.inner import forget
from runnel.optim.inner_state import InnerState, copy_inner_state, put_inner_state
from runnel.optim.parts import Bounds
from runnel.optim.store import OuterStore
from runnel.protocols import Float32
from runnel.types import Decision, Digest, Verdict

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from runnel.node.manifest_sections import OuterSection

_CHECK = "window"


@dataclass(frozen=True, slots=True)
class KnownRound:
    """What is public of a round, as it concerns one peer.

    Attributes:
        before: outer parameters of its fragment before the record, float32 [numel].
        after: those after it.
        sent: what the peer's payloads decode to, float32 [numel]; None if it gave nothing.
        bounds: the slices of the record.
        included: whether the record holds the peer's payload, by slice.
        progress: of the record, in millionths.
    """

    before: Float32
    after: Float32
    sent: Float32 | None
    bounds: Bounds
    included: tuple[bool, ...]
    progress: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What is said of one window of a peer.

    Attributes:
        commitments: one for each fragment, in order.
        values: the trainer's values as the window began, by fragment, as the peer gives them.
        inner: what its optimizer remembered then, as the peer gives it.
        counted: residual, and what the values were ahead by, if they were, by fragment, as the peer gives
            them: those with which the shares at the window's end were encoded.
        rounds: public, by number: those of the commitments and of their moves.
    """

    commitments: Sequence[Commitment]
    values: Sequence[Float32]
    inner: InnerState
    counted: Sequence[tuple[Float32, ...]]
    rounds: Mapping[int, KnownRound]


@dataclass(frozen=True, slots=True)
class Replica:
    """A model to train in place of the peer's.

    Attributes:
        binding: to its parameters, which are overwritten.
        optimizer: made as the peer's was.
        train: takes an inner step of the window, from 1, at a share of the run, 0 to 1.
    """

    binding: ModelBinding
    optimizer: Optimizer
    train: Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a window leads to: names of payloads by fragment, and of what the next one's optimizer begins with."""

    payload_roots: tuple[Digest, ...]
    next_inner: Digest | None


def judge_window(claim: Claim, replica: Replica, outer: OuterSection) -> Verdict:
    """Whether a peer's window is what its commitments say; ABSTAIN where they say nothing.

    Costs the window's inner steps: look at their number first. What an optimizer raises for a state that is
    not one of its own is raised here.
    """
    facts = [commitment.window for commitment in claim.commitments]
    named = [one for one in facts if one is not None]
    if len(named) < len(facts):
        return Verdict(Decision.ABSTAIN, _CHECK, "its commitments do not name a window")
    problem = _problem(claim, named, replica.binding.plan.sizes)
    if problem:
        return Verdict(Decision.REJECT, _CHECK, problem)
    found = replay_window(claim, replica, outer)
    for fragment, (root, commitment) in enumerate(
        zip(found.payload_roots, claim.commitments, strict=True)
    ):
        if root != commitment.payload_root:
            return Verdict(
                Decision.REJECT, _CHECK, f"fragment {fragment} comes to another contribution"
            )
    if found.next_inner != named[0].next_inner:
        return Verdict(Decision.REJECT, _CHECK, "the inner optimizer comes to another state")
    return Verdict(Decision.ACCEPT, _CHECK, "")


def replay_window(claim: Claim, replica: Replica, outer: OuterSection) -> Replayed:
    """Trains the window once more and encodes what comes of it.

    The commitments must name what is given, see `judge_window`.
    """
    binding, steps = replica.binding, claim.commitments[0].steps
    facts = _facts(claim)
    held = [values.copy() for values in claim.values]
    for fragment, values in enumerate(claim.values):
        binding.write(fragment, values)
    put_inner_state(claim.inner, replica.optimizer)
    progress = facts[0].progress
    for step in range(steps + 1):
        if step:
            replica.train(step, progress / FULL_PROGRESS)
        for fragment, one in enumerate(facts):
            for move in (move for move in one.moves if move.step == step):
                known = claim.rounds[move.round]
                delta = _delta(move, known, held[fragment])
                binding.add(fragment, delta)
                if not move.starts:
                    held[fragment] += delta
                    progress = max(progress, known.progress)
    if outer.inner_state == "fresh":
        forget(replica.optimizer)
    inner = copy_inner_state(replica.optimizer)
    roots = tuple(_payload_root(claim, replica, outer, f) for f in range(len(facts)))
    return Replayed(roots, inner.name if inner else None)


def _delta(move: Move, known: KnownRound, held: Float32) -> Float32:
    """What a move added, by the operations of the outer store; `held` is what the share of its round was."""
    start = known.before if known.sent is None else known.before - known.sent
    if move.starts:
        return start - held
    delta = np.empty_like(held)
    for (low, high), included in zip(known.bounds, known.included, strict=True):
        from_here = start if included else known.before
        np.subtract(known.after[low:high], from_here[low:high], out=delta[low:high])
    return delta


def _payload_root(claim: Claim, replica: Replica, outer: OuterSection, fragment: int) -> Digest:
    """The name of what the replica's values of a fragment are encoded to."""
    binding, commitment = replica.binding, claim.commitments[fragment]
    values, facts = binding.new_buffer(fragment), _facts(claim)[fragment]
    binding.read(fragment, values)
    for move in facts.late:
        values += _delta(move, claim.rounds[move.round], values)
    residual, *ahead = claim.counted[fragment]
    for one in ahead:
        values -= one
    parts = parts_of(outer, binding.plan)
    store = OuterStore(
        [claim.rounds[commitment.round].before.copy()],
        replace(parts, edges=parts.edges[fragment : fragment + 1]),
    )
    store.residual(0)[:] = residual
    key = RoundKey(commitment.round, commitment.base)
    bounds = slice_bounds(values.size, len(commitment.slice_norms))
    encoded = store.encode(key, 0, values, version=store.version(0), bounds=bounds)
    assert encoded is not None  # the first of this store
    return Contribution.of(fragment, encoded.payloads).root


def _problem(claim: Claim, facts: Sequence[WindowFacts], sizes: Sequence[int]) -> str:
    """What does not fit together before anything is computed; empty for nothing."""
    first = claim.commitments[0]
    for fragment, (commitment, one) in enumerate(zip(claim.commitments, facts, strict=True)):
        place = f"fragment {fragment}"
        alike = (one.inner, one.next_inner, one.progress, commitment.steps)
        if alike != (facts[0].inner, facts[0].next_inner, facts[0].progress, first.steps):
            return f"{place} tells of another window than fragment 0"
        given = (claim.values[fragment], *claim.counted[fragment])
        if any(values.shape != (sizes[fragment],) for values in given):
            return f"{place} has {sizes[fragment]} values, and other arrays were given"
        if digest(raw(claim.values[fragment])) != one.values:
            return f"{place} did not begin with these values"
        if digest(*map(raw, claim.counted[fragment])) != one.residual:
            return f"{place} has another residual"
        steps = [move.step for move in one.moves]
        if steps != sorted(steps) or max(steps, default=0) > commitment.steps:
            return f"{place} was moved at steps {steps} of {commitment.steps}"
        moved = {move.round for move in (*one.moves, *one.late)}
        if not moved <= claim.rounds.keys():
            return f"{place} was moved by rounds that were not decided"
        starts = {move.round for move in one.moves if move.starts}
        if not starts <= {commitment.round - len(facts)} or any(move.starts for move in one.late):
            return f"{place} was started by another share than that of the window before"
    if claim.inner.name != facts[0].inner:
        return "the inner optimizer did not begin with this state"
    return ""


def _facts(claim: Claim) -> list[WindowFacts]:
    return [commitment.window for commitment in claim.commitments if commitment.window is not None]
