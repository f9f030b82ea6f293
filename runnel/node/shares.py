"""What a trainer gives away: shares of single fragments, or of all of them at the end of a window."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runnel.errors import ConfigError
from runnel.optim.inner import forget
from runnel.optim.store import Array, Merge
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
    """

    snapshot: Array
    version: int
    tokens: int
    steps: int
    loss: float
    at_step: int


@dataclass(slots=True)
class PublicWindows:
    """Windows that start from public values: all fragments are read at one step, each goes when its round opens.

    Attributes:
        optimizer: of the inner steps, where it starts each window anew; None where it goes on.
        fragments: P.
        until: the last round whose share is of a window that is over; -1 before the first.
        shares: by fragment, those that were not asked for yet.
        start: public randomness and number of the window under way; None before the first.
    """

    optimizer: Optimizer | None
    fragments: int
    until: int = -1
    shares: dict[int, Share] = field(default_factory=dict)
    start: tuple[Digest, int] | None = None

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
        if self.optimizer is not None:
            forget(self.optimizer)

    def follow(self, merge: Merge) -> None:
        """The trainer's values have moved: those that were read move with them."""
        share = self.shares.get(merge.fragment)
        if share is not None:
            share.snapshot += merge.delta
            share.version = merge.version


def public_windows(optimizer: object, fragments: int, inner_state: str) -> PublicWindows:
    """Windows whose inner optimizer's state is ``"kept"`` from one to the next, or ``"fresh"`` in each.

    Raises:
        ConfigError: it is to be fresh, and there is no optimizer, or one whose state cannot be cleared.
    """
    if inner_state == "kept":
        return PublicWindows(None, fragments)
    if not isinstance(getattr(optimizer, "state", None), MutableMapping):
        seen = "no optimizer was given" if optimizer is None else f"a {type(optimizer).__name__}"
        raise ConfigError(
            f"outer.inner_state is fresh and {seen}, expected a torch.optim.Optimizer because every window"
            " starts it anew: pass runnel.Peer(..., optimizer=...)"
        )
    return PublicWindows(optimizer, fragments)  # type: ignore[arg-type]  # or what acts like one
