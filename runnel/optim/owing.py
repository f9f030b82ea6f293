"""What records change in a residual: the part of the outer store's rule that is arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runnel.optim.exchange import Array, Outcome, Payload
from runnel.protocols import Codec

Owed = tuple[slice, Array | None]
"""Where in a fragment, and what to add to the residual there; None for fading."""


@dataclass(frozen=True, slots=True)
class Owing:
    """How a residual is kept.

    Attributes:
        codec: of contributions.
        decay: what a record that includes this peer leaves of the residual there.
        take_buffer: an array of so many values, to be filled.
    """

    codec: Codec
    decay: float
    take_buffer: Callable[[int], Array]

    def by(self, outcome: Outcome, sign: int, *, payloads: bool) -> Iterator[Owed]:
        """What a record takes out (-1) or puts back (1): its payloads of ours, and what our encodings of results lost.

        `payloads` is false where they were taken out of what the trainer holds.
        """
        rows = zip(outcome.bounds, outcome.included, outcome.losses, strict=True)
        for index, ((low, high), included, loss) in enumerate(rows):
            if included and payloads:
                decoded = self.decoded(outcome.payloads[index], high - low)
                yield slice(low, high), decoded if sign > 0 else -decoded
                if sign < 0:
                    yield slice(low, high), None
            if loss is not None:
                yield slice(low, high), loss if sign < 0 else -loss

    def change(self, residual: Array, place: slice, values: Array | None) -> None:
        """Adds `values` there, or lets the residual fade."""
        if values is not None:
            residual[place] += values
        elif self.decay != 1.0:
            residual[place] *= residual.dtype.type(self.decay)

    def decoded(self, payload: Payload, numel: int) -> Array:
        """The values of a payload of ours, in an array of its own."""
        values = self.take_buffer(numel)
        self.codec.decode(payload, values)
        return values
