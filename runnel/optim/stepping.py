"""One outer step of a fragment: results decoded, the outer optimizer applied, cache-sized part after part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runnel.optim.exchange import Array, Bounds
from runnel.protocols import Codec, OuterOptimizer

PART = 1 << 16
"""Values handled at once where several operations follow each other: they stay in the processor's cache."""


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
        payloads: Sequence[bytes | memoryview],
        *,
        scratch: Array,
        final: bool,
    ) -> None:
        """Writes parameters and momentum after a round's results to `after`, which may be `before`.

        Args:
            before: parameters and momentum of the fragment, [values] each.
            after: where the new ones go.
            bounds: the slices.
            payloads: a result for each slice.
            scratch: as long as the longest slice.
            final: a plain averaging.

        Raises:
            PeerError: a payload is not an encoding of its slice.
        """
        for (low, high), payload in zip(bounds, payloads, strict=True):
            self.codec.decode(payload, scratch[: high - low])
            for part in parts_of(low, high):
                for old, new in zip(before, after, strict=True):
                    if new is not old:
                        new[part] = old[part]
                mean = scratch[part.start - low : part.stop - low]
                self.optimizer.step(after[0][part], after[1][part], mean, final=final)


def parts_of(low: int, high: int) -> Iterator[slice]:
    """The cache-sized parts of a range."""
    for start in range(low, high, PART):
        yield slice(start, min(start + PART, high))


def longest(bounds: Bounds) -> int:
    """Values of the longest slice."""
    return max((high - low for low, high in bounds), default=0)
