"""What an outer store holds of one fragment."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np

from runnel.optim.exchange import Array
from runnel.optim.parts import Bounds
from runnel.types import Digest


@dataclass(slots=True)
class FragmentState:
    """Shared parameters `theta` and `momentum`, and what this peer alone keeps beside them.

    Attributes:
        ahead: where windows start from public values, how far the trainer's values are beyond those that
            `residual` counts from; None for not at all. It is as short-lived as they are.
        version: merges given out.
        ready: states after results that may be decided, and their names.
    """

    theta: Array
    momentum: Array
    residual: Array
    ahead: Array | None = None
    version: int = 0
    ready: dict[Hashable, tuple[Array, Array, Digest]] = field(default_factory=dict)

    @property
    def counted(self) -> tuple[Array, ...]:
        """The residual, and what the trainer's values are ahead by, if they are."""
        return (self.residual,) if self.ahead is None else (self.residual, self.ahead)

    def trained(self, values: Array, take_buffer: Callable[[int], Array]) -> Array:
        """The trainer's values as the residual counts: a copy where they are ahead."""
        if self.ahead is None:
            return values
        counted: Array = np.subtract(values, self.ahead, out=take_buffer(values.size))
        return counted

    def start(self, values: Array, sent: Array) -> Array:
        """Begins a window at public values, ``theta - q``: gives what the trainer's are to move by.

        With w the trainer's values, e the residual and a what w is ahead by, a peer has learned
        ``U = e + theta - (w - a)``. Both w and a change by the same, so U stays, whatever becomes of the
        round; nothing that is on disk changes. Where a record includes the peer, a ends.

        Args:
            values: w at the hand-over; what is given is in their place.
            sent: q, what its payloads hold; it becomes ``theta - q``.
        """
        np.subtract(self.theta, sent, out=sent)
        np.subtract(sent, values, out=values)
        self.ahead = (
            values.copy() if self.ahead is None else np.add(self.ahead, values, out=self.ahead)
        )
        self.version += 1
        return values

    def settle(self, bounds: Bounds, included: tuple[bool, ...]) -> None:
        """A record took out what was handed over last, in these slices: nothing is ahead there."""
        if self.ahead is None or all(included):
            self.ahead = None
            return
        for (low, high), taken in zip(bounds, included, strict=True):
            if taken:
                self.ahead[low:high] = 0
