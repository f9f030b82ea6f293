"""What records change in a residual: the part of the outer store's rule that is arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runnel.kernels import norm
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
        cap: how many times the norm of what was sent of a slice the residual there may have; 0 is no limit.
        take_buffer: an array of so many values, to be filled.
    """

    codec: Codec
    decay: float
    cap: float
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

    def bounded(self, residual: Array, place: slice, payload: Payload) -> float:
        """Shrinks a slice's residual to what the payload taken out of it allows; the norm of what is cut.

        Only where the contribution came out of the trainer's values: then the residual is what its encoding
        lost. Elsewhere it may hold a debt that must not shrink.
        """
        if self.cap == 0.0:
            return 0.0
        held = norm(residual[place])
        most = self.cap * self.codec.norm(payload, place.stop - place.start)
        if held <= most:
            return 0.0
        residual[place] *= residual.dtype.type(most / held)
        return held - most

    def decoded(self, payload: Payload, numel: int) -> Array:
        """The values of a payload of ours, in an array of its own."""
        values = self.take_buffer(numel)
        self.codec.decode(payload, values)
        return values
