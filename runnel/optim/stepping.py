"""One outer step of a fragment: results decoded, the outer optimizer applied, cache-sized part after part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runnel.optim.exchange import Array, Payload
from runnel.optim.parts import Bounds, parts_of
from runnel.protocols import Codec, OuterOptimizer


@dataclass(frozen=True, slots=True)
class Stepper:
    """How results move outer parameters; `codec` is that of results."""

    codec: Codec
    optimizer: OuterOptimizer

    def step(
        self,
        before: tuple[Array, Array],
        after: tuple[Array, Array],
        bounds: Bounds,
        payloads: Sequence[Payload],
        *,
        final: bool,
    ) -> None:
        """Writes parameters and momentum after a round's results to `after`, which may be `before`.

        Args:
            before: parameters and momentum of the fragment, [values] each.
            after: where the new ones go.
            bounds: the slices.
            payloads: a result for each slice.
            final: a plain averaging.

        Raises:
            PeerError: a payload is not an encoding of its slice.
        """
        for (low, high), payload in zip(bounds, payloads, strict=True):
            means = self.codec.decode_parts(payload, high - low)
            for part, mean in zip(parts_of(low, high), means, strict=True):
                out = (after[0][part], after[1][part])
                self.optimizer.step(before[0][part], before[1][part], mean, final=final, out=out)
