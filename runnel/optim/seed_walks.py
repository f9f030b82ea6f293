"""A peer's own part in a round of shared seeds: from losses, or from local steps, to a contribution.

Only the trainer's thread uses these. A walk begins at the newest weights and ends with the bytes to
send; begun again, it forgets what it did from older weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from runnel.errors import ConfigError
from runnel.optim.fedkseed import LocalStep, SeedPool, pack_steps, pool_probe
from runnel.optim.ferret import Sketch
from runnel.optim.fixed_point import Probe
from runnel.optim.fixed_point_model import FixedPointModel, Materialise
from runnel.optim.just_one_byte import pack_codes, probes_of
from runnel.optim.seed_claims import Claim
from runnel.optim.seed_methods import BlockMethod, OneByteMethod, PoolMethod, pack_blocks
from runnel.optim.seed_store import SeedStore
from runnel.optim.seed_updates import SeedUpdate
from runnel.optim.spsa_loss import Difference, Loss, differences

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Part:
    """What a round asks of this peer.

    Attributes:
        seat: this peer's place in the round's view.
        progress: of the run, in millionths.
        seed: public, of this peer in this round.
    """

    seat: int
    progress: int
    seed: bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """What one step found.

    Attributes:
        loss: of the step.
        forwards: passes that it took.
        payload: the contribution, if it is complete.
        problem: why a scalar could not be used, or nothing.
    """

    loss: float
    forwards: int
    payload: bytes | None
    problem: str = ""


class Walk(Protocol):
    """A way of one method."""

    @property
    def strayed(self) -> bool:
        """Whether the model was left beside its weights, where only `begin` leads back from."""
        ...

    @property
    def steps(self) -> int:
        """Local steps that lie behind, of those of a contribution."""
        ...

    def begin(self, state: Any) -> None:
        """Goes to the newest weights, which nobody changes meanwhile, with the method's state."""
        ...

    def enter(self, part: Part) -> None:
        """Takes part in a round that goes on from these weights."""
        ...

    def step(self, loss: Loss | float) -> Taken:
        """One step: of a loss that is evaluated beside the weights, or after a local step with that loss.

        Raises:
            ConfigError: the run needs the other one, or the loss is none.
        """
        ...


class ReplayingWalk(Walk, Protocol):
    """A walk whose model can be lent for losses elsewhere."""

    def replay(self, claim: Claim, source: Materialise, loss: Loss) -> Difference:
        """The losses behind somebody's scalar, at weights that `source` writes.

        Afterwards the walk goes on as if nothing had been.

        Raises:
            NotAtHandError: those weights are not at hand any more.
            ConfigError: the loss is none, see `differences`.
        """
        ...


class OneByteWalk:
    """All probes of a contribution in one step, at the same weights."""

    steps = 0

    def __init__(
        self, model: nn.Module, store: SeedStore, method: OneByteMethod, amount: int
    ) -> None:
        self._bound = FixedPointModel(model, store.weights)
        self._store, self._method, self._amount = store, method, amount
        self._state: Any = store.state
        self._seat = 0
        self.strayed = False

    def begin(self, state: Any) -> None:
        """See `Walk`."""
        self._state, self.strayed = state, False
        self._bound.write()

    def enter(self, part: Part) -> None:
        """See `Walk`."""
        self._seat = part.seat

    def step(self, loss: Loss | float) -> Taken:
        """See `Walk`. No contribution comes of weights that changed meanwhile."""
        turn, probes = self._store.turn, self._probes()
        found = differences(self._bound, _function(loss), probes, stay=True)
        self.strayed = True
        if turn != self._store.turn:
            return Taken(_mean_loss(found), 2 * len(found), None)
        payload = pack_codes([self._state.scale.code_of(one.scalar) for one in found])
        return Taken(_mean_loss(found), 2 * len(found), payload, _problem(found))

    def replay(self, claim: Claim, source: Materialise, loss: Loss) -> Difference:
        """See `ReplayingWalk`."""
        self.strayed = True
        with self._bound.elsewhere(source):
            return differences(self._bound, loss, [claim.probe], stay=True)[0]

    def _probes(self) -> tuple[Probe, ...]:
        return probes_of(self._state, self._seat, self._method.probes, self._amount)


class PoolWalk:
    """Local steps along seeds of the pool, on a copy of the weights."""

    strayed = False

    def __init__(
        self,
        model: nn.Module,
        store: SeedStore,
        method: PoolMethod,
        amount: int,
        *,
        uneven: bool,
    ) -> None:
        self._store, self._local = store, store.weights.copy()
        self._bound = FixedPointModel(model, self._local)
        self._method, self._amount, self._uneven = method, amount, uneven
        self._pool: SeedPool = store.state
        self._part = Part(0, 0, b"")
        self._steps: list[LocalStep] = []
        self._loss = 0.0

    def begin(self, state: Any) -> None:
        """See `Walk`."""
        self._pool, self._steps = state, []
        with self._local.changes.overwriting():
            for own, newest in zip(self._local.tensors, self._store.weights.tensors, strict=True):
                own.values[:] = newest.values
        self._bound.write()

    def enter(self, part: Part) -> None:
        """See `Walk`. Steps of another round drew other seeds: they are taken back."""
        self._part = part
        done = [self._update(step) for step in self._steps]
        self._steps = []
        if done:
            self._bound.apply([update.undone() for update in done])

    def step(self, loss: Loss | float) -> Taken:
        """See `Walk`. A complete contribution that is asked for once more is given once more."""
        pool, method = self._pool, self._method
        if len(self._steps) == method.local_steps:
            return Taken(self._loss, 0, pack_steps(self._steps))
        drawn = pool.draw(self._part.seed, method.local_steps, pro=self._uneven)
        candidate = int(drawn[len(self._steps)])
        probe = pool_probe(candidate, self._amount)
        found = differences(self._bound, _function(loss), [probe], stay=True)
        step = LocalStep(candidate, pool.scale.code_of(found[0].scalar) or 0)
        self._steps.append(step)
        self._bound.apply([self._update(step)])
        done = len(self._steps) == method.local_steps
        payload = pack_steps(self._steps) if done else None
        self._loss = _mean_loss(found)
        return Taken(self._loss, 2, payload, _problem(found))

    @property
    def steps(self) -> int:
        """See `Walk`."""
        return len(self._steps)

    def replay(self, claim: Claim, source: Materialise, loss: Loss) -> Difference:
        """See `ReplayingWalk`."""
        try:
            with self._bound.elsewhere(source):
                return differences(self._bound, loss, [claim.probe], stay=True)[0]
        finally:
            self._bound.write()

    def _update(self, step: LocalStep) -> SeedUpdate:
        return self._pool.local_update(step, lr=self._method.lr.at(self._part.progress))


class BlockWalk:
    """Local steps with an optimizer of the caller's; their sum is projected at the end."""

    strayed = False

    def __init__(
        self, model: nn.Module, store: SeedStore, method: BlockMethod, local_steps: int
    ) -> None:
        self._bound = FixedPointModel(model, store.weights, copied=False)
        self._store, self._method, self._local_steps = store, method, local_steps
        self._number: int = store.state
        self._seat = self.steps = 0

    def begin(self, state: Any) -> None:
        """See `Walk`."""
        self._number, self.steps = state, 0
        self._bound.write()

    def enter(self, part: Part) -> None:
        """See `Walk`. Local steps go on: they are of these weights, whatever round takes them."""
        self._seat = part.seat

    def step(self, loss: Loss | float) -> Taken:
        """See `Walk`."""
        if callable(loss):
            raise ConfigError(
                "this run's method takes local steps with gradients: call optimizer.step() and"
                " peer.step(loss) in place of peer.spsa_step"
            )
        self.steps += 1
        if self.steps < self._local_steps:
            return Taken(loss, 1, None)
        key, directions = self._store.weights.key, self._method.directions
        sketch = Sketch(self._number, self._seat, key, directions)
        with self._store.lock:
            scalars = sketch.contribution(self._bound.differences(), elsewhere=self._bound.project)
        return Taken(loss, 1, pack_blocks(scalars))


def _function(loss: Loss | float) -> Loss:
    if not callable(loss):
        raise ConfigError(
            "this run's method needs losses beside the weights: call peer.spsa_step(loss_fn) with a"
            " function in place of optimizer.step() and peer.step(loss)"
        )
    return loss


def _mean_loss(found: tuple[Difference, ...]) -> float:
    return sum(one.plus + one.minus for one in found) / (2 * len(found))


def _problem(found: tuple[Difference, ...]) -> str:
    return next((one.problem for one in found if one.problem), "")
