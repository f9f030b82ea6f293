"""The trainer's side of rounds: counts steps, hands over what is due, applies what arrived.

Runs in the caller's thread, at step boundaries only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from runnel.errors import ConfigError
from runnel.node.actions import RoundKey, WantHandover
from runnel.node.events import (
    ContributionWithheld,
    InnerProgress,
    MergeApplied,
    WindowStarted,
)
from runnel.node.mailbox import DecidedMerge, HandedOver
from runnel.node.peer import PeerNode
from runnel.node.sampling import window_seed
from runnel.node.shares import Share, public_windows
from runnel.optim.binding import ModelBinding
from runnel.optim.store import OuterStore

logger = logging.getLogger(__name__)

_REPORT_STEPS = 10
"""Steps between two reports, and whose losses one is the mean of; the first step is reported as well."""


@dataclass(slots=True)
class Window:
    """What lies behind the next hand-overs. Tokens are by fragment, since its last included one.

    `step_s` and `waited_s` are seconds in `Trainer.step`, and of these in waiting, since the last report.
    `unshared` are trainable parameters that are not exchanged, of which a warning was given.
    """

    tokens: list[int]
    steps: int = 0
    steps_since_commit: int = 0
    next_round: int = 0
    total_tokens: int = 0
    losses: list[float] = field(default_factory=list)
    handed_at: dict[int, int] = field(default_factory=dict)
    withheld: str = ""
    withheld_round: int = -1
    step_s: float = 0.0
    waited_s: float = 0.0
    unshared: set[str] = field(default_factory=set)


class Trainer:
    """Ties a model's parameters to a node's mailbox."""

    def __init__(
        self,
        node: PeerNode,
        binding: ModelBinding,
        store: OuterStore,
        optimizer: object = None,
    ) -> None:
        """Puts the run's newest parameters into the model.

        Raises:
            ConfigError: the run starts each window with a fresh inner state, and there is no `optimizer`.
        """
        owed = node.mailbox.owed_tokens or (0,) * node.plan.num_fragments
        self.window = Window(tokens=list(owed))
        self.lr = 0.0
        self._node, self._binding, self._outer = node, binding, node.spec.outer
        is_public = self._outer.windows == "public"
        fragments = node.plan.num_fragments
        rules = (fragments, self._outer.inner_state, node.mailbox.chain.progress)
        self._public = public_windows(optimizer, *rules) if is_public else None
        self._take_buffer = store.take_buffer
        self._versions = [0] * fragments
        self._recent: list[float] = []
        self._reported = (0.0, 0)
        for fragment, values in enumerate(node.outer_parameters()):
            binding.write(fragment, values)

    def step(self, loss: float, tokens: int) -> None:
        """One inner step is done.

        Raises:
            ConfigError: `tokens` is below 1.
            RunMismatchError: a parameter of the model was replaced, or has another shape.
            RunnelError: what ended the peer's network side, or that it has left.
        """
        self._node.check()
        began_s = self._node.clock.monotonic_s()
        self._count(loss, tokens)
        self._merge()
        self._hand_over_due()
        self._wait_if_asked()
        self.window.step_s += self._node.clock.monotonic_s() - began_s
        if self.window.steps == 1 or self.window.steps % _REPORT_STEPS == 0:
            self._report()

    @property
    def progress(self) -> float:
        """The share of the run that is done, 0 to 1, for learning rates.

        Where windows are public it is that of the newest record that was merged.
        """
        return self._node.mailbox.chain.progress if self._public is None else self._public.progress

    def window_seed(self) -> bytes:
        """The public seed of this peer's data in the window under way.

        Where windows are public it changes at their ends, and is of the record that the first share of the
        last one derives from.
        """
        start = self._public.start if self._public is not None else None
        return (
            window_seed(start[0], self._node.peer, start[1]) if start else self._node.window_seed()
        )

    def take_outer_state(self) -> None:
        """Puts the newest outer parameters into the model in place of its own; training ends here."""
        for decided in self._node.mailbox.take_merges(lambda _: True):
            self._apply(decided)
        for fragment, values in enumerate(self._node.outer_parameters()):
            self._binding.write(fragment, values)

    def _count(self, loss: float, tokens: int) -> None:
        if tokens < 1:
            raise ConfigError(
                f"tokens is {tokens}, expected at least 1: it weighs this peer's contribution"
            )
        window = self.window
        window.steps += 1
        window.steps_since_commit += 1
        window.total_tokens += tokens
        window.tokens = [count + tokens for count in window.tokens]
        if math.isfinite(loss):
            window.losses.append(loss)
            self._recent = [*self._recent, loss][-_REPORT_STEPS:]
        else:
            window.withheld = f"the loss was {loss}"

    def _merge(self) -> None:
        newest = self._node.mailbox.chain.number
        for decided in self._node.mailbox.take_merges(self._is_time_for):
            self._apply(decided)
        # What is still noted of decided rounds was aborted: nothing comes back.
        for number, handed in list(self.window.handed_at.items()):
            if number <= newest and self.window.steps >= handed + self._outer.overlap_steps:
                del self.window.handed_at[number]

    def _is_time_for(self, decided: DecidedMerge) -> bool:
        """Own contributions come back `overlap_steps` after their hand-over, everything else at once."""
        handed = None if decided.starts else self.window.handed_at.get(decided.number)
        return handed is None or self.window.steps >= handed + self._outer.overlap_steps

    def _apply(self, decided: DecidedMerge) -> None:
        window, merge = self.window, decided.merge
        if self._outer.mixing > 0 and decided.included:
            self._mix(decided)
        else:
            self._binding.add(merge.fragment, merge.delta)
        self._versions[merge.fragment] = merge.version
        if self._public is not None:
            self._public.follow(decided, window.steps)
        if decided.starts:
            fact = WindowStarted(
                unix_s=0.0, round=decided.number, fragment=merge.fragment, step=window.steps
            )
            self._node.note(fact)
            return
        window.handed_at.pop(decided.number, None)
        window.tokens[merge.fragment] = max(0, window.tokens[merge.fragment] - decided.tokens)
        self._node.note(
            MergeApplied(
                unix_s=0.0,
                round=decided.number,
                fragment=merge.fragment,
                included=decided.included,
                step=window.steps,
            )
        )

    def _mix(self, decided: DecidedMerge) -> None:
        """``w <- alpha * w + (1 - alpha) * theta'`` (Streaming DiLoCo, equation 3)."""
        fragment, alpha = decided.merge.fragment, self._outer.mixing
        values = self._binding.new_buffer(fragment)
        self._binding.read(fragment, values)
        values *= alpha
        values += (1 - alpha) * decided.merge.parameters
        self._binding.write(fragment, values)

    def _hand_over_due(self) -> None:
        """Answers the lowest open round first: those after it are decided after it."""
        wants = self._node.mailbox.wants()
        hurried = any(want.urgent for want in wants)
        for want in wants:
            if not self._is_due(want.key.number, hurried=hurried):
                return
            self._hand_over(want)

    def _is_due(self, number: int, *, hurried: bool) -> bool:
        public, steps = self._public, self.window.steps_since_commit
        if public is not None and number <= public.until:
            return True
        share = (
            self._node.schedule.steps_before(number) if public is None else self._outer.every_steps
        )
        return steps > 0 and (hurried or steps >= share)

    def _hand_over(self, want: WantHandover) -> None:
        window, public = self.window, self._public
        self._binding.require_same()
        self._warn_of_unshared()
        share = public.shares.pop(want.fragment, None) if public is not None else None
        if share is None and public is not None and want.key.number > public.until:
            share = self._end_window(want.key)
        elif share is None:
            share = self._read(want.fragment)
        if share is None:
            self._withhold(want)
            return
        contribution = HandedOver(
            want=want,
            snapshot=share.snapshot,
            version=share.version,
            tokens=share.tokens,
            steps=share.steps,
            loss=share.loss,
            end=share.end,
        )
        window.handed_at[want.key.number] = share.at_step
        window.next_round = want.key.number + 1
        if public is None:
            window.steps_since_commit, window.losses = 0, []
        self._node.mailbox.hand_over(contribution)

    def _warn_of_unshared(self) -> None:
        told = self.window.unshared
        names = [name for name in self._binding.unshared() if name not in told]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            logger.warning(
                "parameter %r%s is trained here but not exchanged, as it was frozen or not there when this peer"
                " joined: unfreeze it before joining, in a run whose owner does so too",
                names[0],
                more,
            )
        told.update(names)

    def _end_window(self, key: RoundKey) -> Share | None:
        """Reads what is left of the window that `key` belongs to, all at this step; the first share of it."""
        public, window = self._public, self.window
        assert public is not None
        last = public.last_of(key.number) % public.fragments
        shares = [self._read(f) for f in range(key.number % public.fragments, last + 1)]
        whole = [share for share in shares if share is not None]
        if len(whole) < len(shares):
            return None
        public.end(key.number, key.base, whole)
        window.steps_since_commit, window.losses = 0, []
        return public.shares.pop(key.number % public.fragments)

    def _read(self, fragment: int) -> Share | None:
        """A fragment's share as of now; None where it must stay here, and why is noted."""
        window = self.window
        snapshot = self._take_buffer(self._node.plan.sizes[fragment])
        self._binding.read(fragment, snapshot)
        if not math.isfinite(float(snapshot.sum(dtype=np.float64))):
            window.withheld = (
                "the model's parameters are not all finite; peer.take_last_state() puts the swarm's"
                " newest into the model"
            )
        if window.withheld:
            return None
        return Share(
            snapshot=snapshot,
            version=self._versions[fragment],
            tokens=max(1, min(window.tokens[fragment], self._outer.max_weight_tokens)),
            steps=window.steps_since_commit,
            loss=sum(window.losses) / len(window.losses) if window.losses else 0.0,
            at_step=window.steps,
        )

    def _withhold(self, want: WantHandover) -> None:
        """Leaves a request unanswered for another share of steps; says so once per round."""
        window, number, reason = self.window, want.key.number, self.window.withheld
        window.steps_since_commit, window.losses, window.withheld = 0, [], ""
        if self._public is not None:
            self._public.withhold()
        if window.withheld_round != number:
            window.withheld_round = number
            self._node.note(ContributionWithheld(unix_s=0.0, round=number, reason=reason))

    def _wait_if_asked(self) -> None:
        """Where the run says so, waits for a round that is due back, then for the next one to open."""
        wait_s, mailbox, window = self._outer.wait_s, self._node.mailbox, self.window
        if wait_s <= 0:
            return
        due = [
            n
            for n, at in window.handed_at.items()
            if window.steps >= at + self._outer.overlap_steps
        ]
        if due:
            self._wait_for(max(due))
            self._merge()
        is_given = self._public is not None and window.next_round <= self._public.until
        if not is_given and self._is_due(window.next_round, hurried=False):
            self._wait(lambda: mailbox.chain.is_over or bool(mailbox.wants()), wait_s)
            self._hand_over_due()

    def _wait_for(self, newest: int) -> None:
        """Until this round is decided; where windows are public, until all of its window are."""
        mailbox, public, wait_s = self._node.mailbox, self._public, self._outer.wait_s
        last = newest if public is None else max(newest, public.until)

        def is_done() -> bool:
            return mailbox.chain.is_over or mailbox.chain.number >= last

        def may_go_on() -> bool:
            more = public is not None and any(w.key.number <= last for w in mailbox.wants())
            return more or is_done()

        while self._wait(may_go_on, wait_s) and not is_done():
            self._merge()
            self._hand_over_due()

    def _wait(self, until: Callable[[], bool], wait_s: float) -> bool:
        began_s = self._node.clock.monotonic_s()
        came = self._node.mailbox.wait(until, wait_s)
        self.window.waited_s += self._node.clock.monotonic_s() - began_s
        return came

    def _report(self) -> None:
        window, now = self.window, self._node.clock.monotonic_s()
        then, tokens = self._reported
        rate = (window.total_tokens - tokens) / (now - then) if then and now > then else 0.0
        self._reported = (now, window.total_tokens)
        self._node.note(
            InnerProgress(
                unix_s=0.0,
                step=window.steps,
                round=self._node.mailbox.chain.number,
                loss=sum(self._recent) / len(self._recent) if self._recent else 0.0,
                tokens=window.total_tokens,
                tokens_per_s=rate,
                lr=self.lr,
                exchange_s=window.step_s - window.waited_s,
                waited_s=window.waited_s,
            )
        )
        window.step_s = window.waited_s = 0.0
