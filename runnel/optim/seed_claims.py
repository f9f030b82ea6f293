"""What a contribution of scalars claims, one by one: at which point its author says to have been, and what it found.

Whoever has the state before a round, the contribution and the public seed of its author can go to that
point again. JustOneByte's scalars are all at the weights themselves; FedKSeed's are along a walk, each at
what the steps before it, as they were published, led to. Ferret's are projections of steps with an
optimizer whose state nobody else has: they cannot be checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import float32, float64, nn

from runnel.errors import BugError
from runnel.optim.byte_scale import CODES_PER_SCALE, scale_value
from runnel.optim.fedkseed import SeedPool, pool_probe, unpack_steps
from runnel.optim.fixed_point import Probe
from runnel.optim.just_one_byte import probes_of, unpack_codes
from runnel.optim.seed_methods import BlockMethod, OneByteMethod, PoolMethod, SeedMethod
from runnel.optim.seed_updates import SeedUpdate


@dataclass(frozen=True, slots=True)
class Author:
    """What else a contribution follows from.

    Attributes:
        seat: its author's place in the round's view.
        progress: of the run, in millionths.
        seed: public, of the author in this round.
        amount: epsilon of the run, see `epsilon_amount`.
        uneven: whether the run draws seeds of large scalars more often.
    """

    seat: int
    progress: int
    seed: bytes
    amount: int
    uneven: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """One published scalar.

    Attributes:
        probe: beside the weights at which it was evaluated.
        code: the byte; None says that it was no number.
        unit: the scalar whose code is 1.
        step: which of the author's batches of the round.
        moved: what leads from the weights before the round to those at which it was evaluated.
        problem: why it cannot be true whatever the losses, or nothing.
    """

    probe: Probe
    code: int | None
    unit: float
    step: int
    moved: tuple[SeedUpdate, ...] = ()
    problem: str = ""


def can_be_checked(method: SeedMethod) -> bool:
    """Whether the scalars of this method follow from public values."""
    return not isinstance(method, BlockMethod)


def is_exact(model: nn.Module) -> bool:
    """Whether losses of this model are so exact that two machines agree: no value is of half precision."""
    values = [*model.parameters(), *model.buffers()]
    return all(one.dtype in (float32, float64) for one in values if one.is_floating_point())


def count_scalars(method: SeedMethod, payload: bytes) -> int:
    """How many scalars a sound contribution has that can be checked."""
    match method:
        case OneByteMethod():
            return len(payload)
        case PoolMethod(local_steps=most):
            return len(unpack_steps(payload, max_steps=most))
    return 0


def scalars_per_round(method: SeedMethod) -> int:
    """How many a whole contribution has."""
    match method:
        case OneByteMethod(probes=probes):
            return probes
        case PoolMethod(local_steps=steps):
            return steps
    return 0


def claim_of(method: SeedMethod, state: Any, payload: bytes, number: int, author: Author) -> Claim:
    """Scalar `number` of a sound contribution.

    Args:
        method: of the run.
        state: the method's before the round.
        payload: the contribution.
        number: below `count_scalars`.
        author: whose it is.
    """
    match method:
        case OneByteMethod(probes=count):
            probe = probes_of(state, author.seat, count, author.amount)[number]
            code = unpack_codes(payload, peer=author.seat).get(probe.slot)
            return Claim(probe, code, scale_value(state.scale.exponent) / CODES_PER_SCALE, 0)
        case PoolMethod():
            return _claim_of_walk(method, state, payload, number, author)
    raise BugError(f"scalars of {method} cannot be checked")


def _claim_of_walk(
    method: PoolMethod, pool: SeedPool, payload: bytes, number: int, author: Author
) -> Claim:
    steps = unpack_steps(payload, max_steps=method.local_steps)
    drawn = int(pool.draw(author.seed, method.local_steps, pro=author.uneven)[number])
    taken = steps[number]
    lr = method.lr.at(author.progress)
    problem = f"candidate {taken.candidate}, the seed draws {drawn}"
    return Claim(
        probe=pool_probe(taken.candidate, author.amount),
        code=taken.code,
        unit=pool.scale.value / CODES_PER_SCALE,
        step=number,
        moved=tuple(pool.local_update(step, lr=lr) for step in steps[:number]),
        problem="" if taken.candidate == drawn else problem,
    )
