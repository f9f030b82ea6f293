"""What a trainer gives away: shares of single fragments, or of all of them at the end of a window."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runnel.errors import ConfigError
from runnel.node.mailbox import DecidedMerge
from runnel.node.records import FULL_PROGRESS
from runnel.node.window_facts import Move
from runnel.node.window_trace import WindowEnd, WindowTrace
from runnel.optim.inner import forget
from runnel.optim.inner_state import copy_inner_state
from runnel.optim.store import Array
from runnel.types import Digest

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(slots=True)
class Share:
    """A fragment's values at a step boundary, and what is behind them.

    Attributes:
        snapshot: a copy of the trainer's values.
        version: the merges that are in them.
        tokens: since the last share that a record included.
        steps: inner steps since the last hand-over.
        loss: their mean.
        at_step: inner steps of this trainer until then.
        end: what it says of a window that it ends.
    """

    snapshot: Array
    version: int
    tokens: int
    steps: int
    loss: float
    at_step: int
    end: WindowEnd | None = None


@dataclass(slots=True)
class PublicWindows:
    """Windows that start from public values: all fragments are read at one step, each goes when its round opens.

    Attributes:
        optimizer: of the inner steps; None for one that nobody knows.
        fragments: P.
        is_fresh: whether the optimizer starts each window anew.
        until: the last round whose share is of a window that is over; -1 before the first.
        shares: by fragment, those that were not asked for yet.
        start: public randomness and number of the window under way; None before the first.
        trace: what moved the trainer's values in it.
    """

    optimizer: Optimizer | None
    fragments: int
    is_fresh: bool
    until: int = -1
    shares: dict[int, Share] = field(default_factory=dict)
    start: tuple[Digest, int] | None = None
    trace: WindowTrace = field(default_factory=WindowTrace)

    @property
    def progress(self) -> float:
        """The share of the run that was done at the newest record that was merged, 0 to 1.

        It follows from what commitments name, as the newest record of the chain does not.
        """
        return self.trace.progress / FULL_PROGRESS

    def last_of(self, number: int) -> int:
        """The last round of the window that round `number` belongs to."""
        return number - number % self.fragments + self.fragments - 1

    def end(self, number: int, base: Digest, shares: Iterable[Share]) -> None:
        """A window is over: its shares of round `number` and those after it, up to the window's last one.

        What was read before and not asked for is in them. The data of the next window follow from the record
        `base`.
        """
        first = number % self.fragments
        self.shares = dict(enumerate(shares, start=first))
        self.until = self.last_of(number)
        self.start = (base, self.until // self.fragments + 1)
        if self.is_fresh and self.optimizer is not None:
            forget(self.optimizer)
        inner, at_step = copy_inner_state(self.optimizer), self.shares[first].at_step
        ends = self.trace.end(at_step, inner, self.shares)
        for share, end in zip(self.shares.values(), ends, strict=True):
            share.end = end

    def withhold(self) -> None:
        """The window goes on: what was read before its end goes with the next share, and has no names."""
        self.until = -1
        self.trace.lost.update(range(self.fragments))

    def follow(self, decided: DecidedMerge, at_step: int) -> None:
        """The trainer's values have moved after so many steps: those that were read move with them."""
        merge, trace = decided.merge, self.trace
        share = self.shares.get(merge.fragment)
        # a start that comes so late is of values that two windows' commitments would have to name
        is_told = decided.plain and not (decided.starts and share is not None)
        step = at_step - trace.began_at
        move = Move(step, decided.number, decided.starts) if is_told else None
        trace.note(merge.fragment, move)
        trace.progress = max(trace.progress, decided.progress)
        if share is not None:
            share.end = share.end.moved(share.snapshot, move) if share.end else None
            share.snapshot += merge.delta
            share.version = merge.version


def public_windows(
    optimizer: object, fragments: int, inner_state: str, progress: float
) -> PublicWindows:
    """Windows whose inner optimizer's state is ``"kept"`` from one to the next, or ``"fresh"`` in each.

    `progress` is the share of the run that is done, 0 to 1.

    Raises:
        ConfigError: it is to be fresh, and there is no optimizer, or one whose state cannot be cleared.
    """
    is_fresh = inner_state == "fresh"
    if is_fresh and not isinstance(getattr(optimizer, "state", None), MutableMapping):
        seen = "no optimizer was given" if optimizer is None else f"a {type(optimizer).__name__}"
        raise ConfigError(
            f"outer.inner_state is fresh and {seen}, expected a torch.optim.Optimizer because every window"
            " starts it anew: pass runnel.Peer(..., optimizer=...)"
        )
    known: Optimizer | None = optimizer  # type: ignore[assignment]  # or what acts like one
    millionths = round(progress * FULL_PROGRESS)
    trace = WindowTrace(progress=millionths, began_with=millionths)
    return PublicWindows(known, fragments, is_fresh, trace=trace)
