"""Values that pass between an outer store and its surroundings: its parts, what it sends, what was decided."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from runnel.optim.parts import Bounds
from runnel.protocols import Aggregator, Codec, OuterOptimizer
from runnel.types import Digest

Array = np.ndarray[Any, Any]
Payload = bytes | memoryview
RootOf = Callable[[Sequence[memoryview]], Digest]
SeedOf = Callable[[Hashable], int]


def no_seed(_: Hashable) -> int:
    """For encoders that draw nothing."""
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreParts:
    """The exchangeable parts of an outer store.

    `root_of` names shared state by content: the digest of the concatenation of buffers. `decay` is what
    a record that includes this peer leaves of its residual there: 1 forgets nothing; `cap` is how many times
    the norm of what it sent there that may then have, 0 for any. `seed_of` a round's
    key is what its encoders draw from, so that all draw alike. `public_start`: a contribution moves the
    trainer's values to the outer ones less what its payloads hold. `edges` are where the layers of each
    fragment begin, ascending; only encoders that tell them apart ask.
    """

    codec: Codec
    result_codec: Codec
    aggregator: Aggregator
    optimizer: OuterOptimizer
    root_of: RootOf
    decay: float = 1.0
    cap: float = 0.0
    seed_of: SeedOf = no_seed
    public_start: bool = False
    edges: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class RoundResults:
    """A decided round: its results by slice, whether they are averaged plainly (`final`), its fragment's `turn`."""

    bounds: Bounds
    payloads: Sequence[Payload]
    final: bool = False
    turn: int = 0


class StateStore(Protocol):
    """What all peers share of a run's parameters, by fragment, as whoever keeps and fetches it sees it.

    A state is two arrays of 4-byte words: the parameters, and whatever else is shared of them.
    """

    @property
    def sizes(self) -> tuple[int, ...]:
        """Parameters per fragment."""
        ...

    @property
    def shared_sizes(self) -> tuple[tuple[int, int], ...]:
        """Words of both parts, per fragment."""
        ...

    def shared(self, fragment: int, /) -> tuple[Array, Array]:
        """The state (not necessarily a copy)."""
        ...

    def residual(self, fragment: int, /) -> Array:
        """What this peer alone keeps beside it."""
        ...

    def root(self, fragment: int, /) -> Digest:
        """The name of the state; hashes it."""
        ...

    def root_of(self, state: tuple[Array, Array]) -> Digest:
        """The name of a state; hashes it."""
        ...

    def load(
        self, fragment: int, parameters: Array, rest: Array, residual: Array | None = None, /
    ) -> None:
        """Replaces the state by one read back or fetched; the residual too, if it is given."""
        ...

    def replay(self, state: tuple[Array, Array], rounds: Iterable[RoundResults], /) -> None:
        """Takes a state, as it was before the first of these rounds, through their results, in place."""
        ...


@dataclass(slots=True)
class Handed:
    """A contribution between hand-over and outcome.

    `snapshot` are the trainer's values at hand-over, or what they were moved to; `after` is the residual if the contribution is
    included, ``x - q``. Both are None where the drift behind it is not told apart any more: after a
    restart it is in the residual, as the trainer's values are gone; after a later hand-over of the
    same fragment it is a part of that one's.
    """

    fragment: int
    payloads: tuple[Payload, ...]
    snapshot: Array | None
    after: Array | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A contribution ready to be committed: payloads and their norms, by slice."""

    payloads: tuple[Payload, ...]
    norms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reduced:
    """The only encoding of an aggregated slice.

    `loss` is what it lost, in units of the reducer's residual; None where the reducer contributed
    nothing and so has no residual to take it.
    """

    payload: Payload
    loss: Array | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A decided round as it concerns this peer.

    `included[s]` says whether slice s holds this peer's payload; `losses[s]` is the loss to take back
    where this peer's encoding of slice s was chosen, else None.
    """

    key: Hashable
    fragment: int
    bounds: Bounds
    payloads: tuple[Payload, ...]
    included: tuple[bool, ...]
    losses: tuple[Array | None, ...]
    final: bool


@dataclass(frozen=True, slots=True)
class Merge:
    """To be added to the trainer's parameters of a fragment. `parameters` are the new outer ones.

    `cut` is the Euclidean norm of what the run's cap took out of the residual on the way: learned, and lost.
    """

    fragment: int
    version: int
    delta: Array
    parameters: Array
    cut: float = 0.0


def raw(values: Array) -> memoryview:
    """The bytes of a contiguous array (not a copy)."""
    return memoryview(values.data).cast("B")
