"""One outer step of a fragment: results decoded, the outer optimizer applied, cache-sized part after part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runnel.optim.exchange import Array, Payload, RoundResults
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
        turn: int,
        final: bool,
    ) -> None:
        """Writes parameters and momentum after a round's results to `after`, which may be `before`.

        Args:
            before: parameters, [values], and momentum of the fragment, [slots * values], slot after slot.
            after: where the new ones go.
            bounds: the slices.
            payloads: a result for each slice.
            turn: which round of its fragment it is, from 0 on.
            final: a plain averaging.

        Raises:
            PeerError: a payload is not an encoding of its slice.
        """
        values = before[0].size
        optimizer = self.optimizer.at(turn)
        known, new = self._rows(before[1], values), self._rows(after[1], values)
        for (low, high), payload in zip(bounds, payloads, strict=True):
            means = self.codec.decode_parts(payload, high - low)
            for part, mean in zip(parts_of(low, high), means, strict=True):
                out = (after[0][part], new[..., part])
                optimizer.step(before[0][part], known[..., part], mean, final=final, out=out)

    def replay(self, state: tuple[Array, Array], rounds: Iterable[RoundResults]) -> None:
        """Takes parameters and momentum, as they were before these rounds, through their results, in place."""
        for one in rounds:
            bounds, payloads = one.bounds, one.payloads
            self.step(state, state, bounds, payloads, turn=one.turn, final=one.final)

    def _rows(self, momentum: Array, values: int) -> Array:
        """A row for each slot, if there are any; a single one stays a vector."""
        slots = self.optimizer.slots
        return momentum if slots == 1 else momentum.reshape(slots, values)
