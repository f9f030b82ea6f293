"""The trainer's side of shared-seed rounds: waits for a round, looks around, hands over, takes the result.

Runs in the caller's thread. Steps are synchronous: a scalar says something of the newest weights only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from runnel.errors import BugError
from runnel.node.actions import RoundKey, WantHandover
from runnel.node.events import ContributionWithheld, InnerProgress, MergeApplied
from runnel.node.mailbox import HandedOver
from runnel.node.peer import PeerNode
from runnel.node.records import FULL_PROGRESS
from runnel.node.sampling import step_seed, window_seed
from runnel.node.spot_checker import SpotChecker
from runnel.optim.seed_claims import is_exact
from runnel.optim.seed_methods import BlockMethod, OneByteMethod, PoolMethod
from runnel.optim.seed_store import SeedStore
from runnel.optim.seed_walks import BlockWalk, OneByteWalk, Part, PoolWalk, Walk
from runnel.optim.spsa_loss import Loss, SeededLoss, epsilon_amount

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

_WAIT_S = 0.5
_REPORT_STEPS = 10


class SeedTrainer:
    """Ties a model to a node whose run exchanges scalars."""

    def __init__(self, node: PeerNode, model: nn.Module, store: SeedStore) -> None:
        """Puts the run's newest weights into the model."""
        self.lr = 0.0
        self._node, self._store = node, store
        self._walk = _walk_of(node, model, store)
        self._checker = _checker_of(node, model, store, self._walk)
        self._key: RoundKey | None = None
        self._seed = b""
        self._mark = -1
        self._figures = _Figures()
        self._take_weights()

    def step(self, loss: Loss | float, tokens: int) -> float:
        """One step of the run's method; the loss of it.

        Waits for the round's end where the step completes a contribution. When the run is over, or
        this peer leaves, nothing happens any more.

        Raises:
            ConfigError: the loss is none, or the run's method needs another call.
            RunnelError: what ended the peer's network side, or that it has left.
        """
        return self._step(lambda: loss, tokens)

    def seeded_step(self, losses: SeededLoss, tokens: int) -> float:
        """As `step`, with the loss for a public seed: so others can compute it again, and this peer theirs."""
        if self._checker is not None:
            self._checker.losses = losses
        return self._step(lambda: losses(step_seed(self._seed, self._walk.steps)), tokens)

    def _step(self, loss_of: Callable[[], Loss | float], tokens: int) -> float:
        began_s = self._node.clock.monotonic_s()
        want = self._round()
        if want is None:
            return self._figures.loss
        waited_s = self._node.clock.monotonic_s() - began_s
        taken = self._walk.step(loss_of())
        figures = self._figures
        figures.count(taken.loss, taken.forwards, tokens)
        if taken.problem:
            fact = ContributionWithheld(unix_s=0.0, round=want.key.number, reason=taken.problem)
            self._node.note(fact)
        if taken.payload is not None:
            waited_s += self._give(want, taken.payload)
        elif self._walk.strayed:
            self.take_outer_state()
        figures.waited_s += waited_s
        if figures.steps == 1 or figures.steps % _REPORT_STEPS == 0:
            self._report()
        return taken.loss

    @property
    def progress(self) -> float:
        """The share of the run that is done, 0 to 1, for learning rates."""
        return self._node.mailbox.chain.progress

    def window_seed(self) -> bytes:
        """The public seed of this peer's data in the window under way."""
        return self._node.window_seed()

    def take_outer_state(self) -> None:
        """Puts the newest decided weights into the model."""
        self._take_merges()
        self._take_weights()

    def _round(self) -> WantHandover | None:
        """The open round, with its weights in the model; waits for one. None once the run is over."""
        node = self._node
        while True:
            node.check()
            chain = node.mailbox.chain
            if chain.is_over:
                self.take_outer_state()
                return None
            wants = [want for want in node.mailbox.wants() if want.key.number > chain.number]
            if wants:
                self.take_outer_state()
                self._enter(wants[0])
                return wants[0]
            node.mailbox.wait(
                lambda: node.mailbox.chain.is_over or bool(node.mailbox.wants()), _WAIT_S
            )

    def _take_weights(self) -> None:
        store = self._store
        with store.lock:
            if self._mark != store.mark or self._walk.strayed:
                self._mark = store.mark
                self._walk.begin(store.state)

    def _enter(self, want: WantHandover) -> None:
        if want.key != self._key:
            self._key = want.key
            progress = round(self._node.mailbox.chain.progress * FULL_PROGRESS)
            self._seed = window_seed(want.key.base, self._node.peer, want.key.number)
            self._walk.enter(Part(want.seat, progress, self._seed))

    def _give(self, want: WantHandover, payload: bytes) -> float:
        """Hands over, and waits until the round is decided; seconds of waiting."""
        mailbox, figures = self._node.mailbox, self._figures
        handed = HandedOver(
            want=want,
            snapshot=np.frombuffer(payload, np.uint8),
            version=self._mark,
            tokens=max(1, min(figures.tokens, self._node.spec.outer.max_weight_tokens)),
            steps=figures.since,
            loss=figures.mean(),
        )
        mailbox.hand_over(handed)
        began_s = self._node.clock.monotonic_s()
        while mailbox.chain.number < want.key.number and not mailbox.chain.is_over:
            self._node.check()
            if self._checker is None or not self._checker.once():
                mailbox.wait(lambda: mailbox.chain.number >= want.key.number, _WAIT_S)
            if any(other.key == want.key for other in mailbox.wants()):
                break  # asked again: the weights had changed by the time it was taken
        figures.handed()
        waited_s = self._node.clock.monotonic_s() - began_s
        self.take_outer_state()
        return waited_s

    def _take_merges(self) -> None:
        for decided in self._node.mailbox.take_merges(lambda _: True):
            fact = MergeApplied(
                unix_s=0.0, round=decided.number, fragment=0, included=decided.included
            )
            self._node.note(fact)
            if self._checker is not None and decided.contributions is not None:
                self._checker.offer(decided.contributions)

    def _report(self) -> None:
        figures, now = self._figures, self._node.clock.monotonic_s()
        tokens_per_s, forwards_per_s = figures.rates(now)
        checks = self._checker
        self._node.note(
            InnerProgress(
                unix_s=0.0,
                step=figures.steps,
                round=self._node.mailbox.chain.number,
                loss=figures.loss,
                tokens=figures.total_tokens,
                tokens_per_s=tokens_per_s,
                lr=self.lr,
                waited_s=figures.waited_s,
                forwards_per_s=forwards_per_s,
                checked=checks.scalars if checks else 0,
                refuted=checks.refuted if checks else 0,
                checking_share=checks.share_of(figures.forwards) if checks else 0.0,
            )
        )
        figures.waited_s = 0.0


class _Figures:
    """What lies behind the next contribution, and what a report says."""

    def __init__(self) -> None:
        self.steps = self.since = self.tokens = self.total_tokens = self.forwards = 0
        self.loss, self.waited_s = 0.0, 0.0
        self._losses: list[float] = []
        self._reported = (0.0, 0, 0)

    def count(self, loss: float, forwards: int, tokens: int) -> None:
        self.steps += 1
        self.since += 1
        self.forwards += forwards
        self.tokens += tokens
        self.total_tokens += tokens
        if math.isfinite(loss):
            self.loss = loss
            self._losses.append(loss)

    def mean(self) -> float:
        return sum(self._losses) / len(self._losses) if self._losses else 0.0

    def handed(self) -> None:
        self.since = self.tokens = 0
        self._losses = []

    def rates(self, now: float) -> tuple[float, float]:
        """Tokens and forward passes per second since the last report."""
        then, tokens, forwards = self._reported
        self._reported = (now, self.total_tokens, self.forwards)
        if not then or now <= then:
            return 0.0, 0.0
        spent_s = now - then
        return (self.total_tokens - tokens) / spent_s, (self.forwards - forwards) / spent_s


def _checker_of(
    node: PeerNode, model: nn.Module, store: SeedStore, walk: Walk
) -> SpotChecker | None:
    """Who looks at others' scalars again, where the run wants it and machines can agree."""
    if not node.spec.seeds.spot_checks or not isinstance(walk, OneByteWalk | PoolWalk):
        return None
    if not is_exact(model):
        logger.info("scalars are not checked: a model in half precision gives each machine its own")
        return None
    return SpotChecker(node, walk, store)


def _walk_of(node: PeerNode, model: nn.Module, store: SeedStore) -> Walk:
    seeds = node.spec.seeds
    match store.method:
        case OneByteMethod() as method:
            return OneByteWalk(model, store, method, epsilon_amount(seeds.epsilon))
        case PoolMethod() as method:
            amount = epsilon_amount(seeds.epsilon)
            return PoolWalk(model, store, method, amount, uneven=seeds.uneven)
        case BlockMethod() as method:
            return BlockWalk(model, store, method, seeds.local_steps)
    raise BugError(f"no way to take part in {seeds.method}")
