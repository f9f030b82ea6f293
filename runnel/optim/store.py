"""The outer store: what all replicas share (parameters, momentum) and what this peer still owes (residuals).

Owned by the codec thread, never by the trainer. It keeps one rule: per value, ``U = e + (theta - w)``
is what this peer has learned that is not on its chain. U grows by training; a decided record takes
``q`` out of it where it includes this peer; nothing else changes it.

So at a hand-over ``x = e + (theta - w)`` is encoded as ``q = C(x)``; if a slice of the record includes
this peer, ``e <- x - q`` and ``w <- theta' + (w - snapshot)``; if not, ``w <- w + (theta' - theta)`` and
``e`` stays. Both merges are additions, so that the trainer may apply them late.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from runnel.errors import BugError
from runnel.optim.exchange import (
    Array,
    Bounds,
    Encoded,
    Handed,
    Merge,
    Outcome,
    Reduced,
    RootOf,
    StoreParts,
)
from runnel.protocols import Codec
from runnel.types import Digest

__all__ = [
    "Array",
    "Bounds",
    "Encoded",
    "Handed",
    "Merge",
    "Outcome",
    "OuterStore",
    "Reduced",
    "RootOf",
    "StoreParts",
    "raw",
]

_MAX_LOSS_FACTOR = 64.0
"""A reducer takes back what its encoding lost divided by its own share of the result, at most times this."""


@dataclass(slots=True)
class _Fragment:
    theta: Array
    momentum: Array
    residual: Array
    version: int = 0
    ready: dict[Hashable, tuple[Array, Array, Digest]] = field(default_factory=dict)


class OuterStore:
    """Outer parameters, momentum and residuals by fragment (1-D arrays of equal dtype)."""

    def __init__(self, parameters: Sequence[Array], parts: StoreParts) -> None:
        """Takes over `parameters`; momentum and residuals start at zero."""
        self._parts = parts
        self._fragments = [_Fragment(p, np.zeros_like(p), np.zeros_like(p)) for p in parameters]
        self._handed: dict[Hashable, Handed] = {}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Values per fragment."""
        return tuple(f.theta.size for f in self._fragments)

    @property
    def codec(self) -> Codec:
        """How contributions are encoded."""
        return self._parts.codec

    def parameters(self, fragment: int) -> Array:
        """The outer parameters (not a copy)."""
        return self._fragments[fragment].theta

    def momentum(self, fragment: int) -> Array:
        """The outer momentum (not a copy)."""
        return self._fragments[fragment].momentum

    def root(self, fragment: int) -> Digest:
        """The name of a fragment's shared state; hashes it."""
        own = self._fragments[fragment]
        return self._parts.root_of([raw(own.theta), raw(own.momentum)])

    def residual(self, fragment: int) -> Array:
        """What this peer learned, handed over or not, that no record holds and its trainer does not either."""
        return self._fragments[fragment].residual

    def version(self, fragment: int) -> int:
        """How many merges of this fragment have been given out; the trainer must have applied them all."""
        return self._fragments[fragment].version

    def handed(self, key: Hashable) -> Handed | None:
        """A contribution whose round is not decided yet."""
        return self._handed.get(key)

    def encode(
        self, key: Hashable, fragment: int, snapshot: Array, *, version: int, bounds: Bounds
    ) -> Encoded | None:
        """Encodes what this peer has learned of a fragment, slice by slice; takes over `snapshot`.

        None if the trainer has merges to apply first, or has handed over for `key` before.

        Raises:
            ValueError: the trainer's values are not finite: its contribution must be withheld.
        """
        own = self._fragments[fragment]
        if version != own.version or key in self._handed:
            return None
        drift = own.theta - snapshot
        after = own.residual + drift
        payloads, norms = [], []
        for low, high in bounds:
            piece = after[low:high]
            sent = piece.copy()
            payloads.append(self._parts.codec.encode(piece, piece))
            np.subtract(sent, piece, out=sent)
            norms.append(_norm(sent))
        for earlier in self._handed.values():
            if (
                earlier.fragment == fragment
            ):  # of a round of another path: its drift is in this one's
                earlier.snapshot = earlier.after = None
        self._handed[key] = Handed(fragment, tuple(payloads), snapshot, after)
        return Encoded(tuple(payloads), tuple(norms), drift)

    def forget(self, key: Hashable) -> None:
        """Drops a contribution that no record will include: what it holds is still in ``theta - w``."""
        self._handed.pop(key, None)

    def recall(
        self, key: Hashable, fragment: int, payloads: tuple[bytes, ...], drift: Array
    ) -> None:
        """After a restart: a contribution read back. Its drift joins the residual, as the trainer's is gone."""
        self._fragments[fragment].residual += drift
        self._handed[key] = Handed(fragment, payloads, None, None)

    def load(
        self, fragment: int, parameters: Array, momentum: Array, residual: Array | None = None
    ) -> None:
        """Replaces a fragment's state by one read back or fetched."""
        own = self._fragments[fragment]
        own.theta[:], own.momentum[:] = parameters, momentum
        own.ready.clear()
        if residual is not None:
            own.residual[:] = residual

    def reduce(
        self,
        payloads: Sequence[bytes | memoryview],
        weights: Array,
        norms: Array,
        *,
        numel: int,
        own: int,
    ) -> Reduced:
        """Aggregates payloads of one slice and encodes the result once.

        Args:
            payloads: one per sender, in the order of the decided set.
            weights: tokens behind each contribution, [senders].
            norms: Euclidean norm of each sender's whole fragment, [senders].
            numel: values in the slice.
            own: place of this peer among the senders, or -1.
        """
        parts = self._parts
        total: Array = np.zeros(numel, dtype=self._fragments[0].theta.dtype)
        factors = parts.aggregator.coefficients(weights, norms)
        for payload, factor in zip(payloads, factors, strict=True):
            parts.codec.accumulate(payload, factor, total)
        norm = _norm(total)
        encoded = parts.result_codec.encode(total, total)
        if own < 0:
            total[:] = 0
        else:
            total *= total.dtype.type(_loss_factor(factors[own]))
        return Reduced(encoded, total, norm)

    def prepare(
        self,
        tag: Hashable,
        fragment: int,
        bounds: Bounds,
        payloads: Sequence[bytes],
        *,
        final: bool,
    ) -> Digest:
        """Computes the fragment's state after these results, keeps it under `tag`, and names it."""
        own = self._fragments[fragment]
        known = own.ready.get(tag)
        if known is not None:
            return known[2]
        step = np.empty_like(own.theta)
        for (low, high), payload in zip(bounds, payloads, strict=True):
            self._parts.result_codec.decode(payload, step[low:high])
        theta, momentum = own.theta.copy(), own.momentum.copy()
        self._parts.optimizer.step(theta, momentum, step, final=final)
        root = self._parts.root_of([raw(theta), raw(momentum)])
        own.ready[tag] = (theta, momentum, root)
        return root

    def adopt(self, tag: Hashable, outcome: Outcome) -> Merge:
        """Takes up a decided round: new state, residual, and what the trainer must add. `tag` is prepared."""
        own = self._fragments[outcome.fragment]
        if tag not in own.ready:
            raise BugError(f"fragment {outcome.fragment} has no prepared state to adopt")
        theta, momentum, _ = own.ready[tag]
        return self.leap(outcome.fragment, theta, momentum, [outcome])

    def leap(
        self, fragment: int, parameters: Array, momentum: Array, outcomes: Sequence[Outcome]
    ) -> Merge:
        """Takes up several decided rounds of a fragment at once, given the state after the last of them."""
        own = self._fragments[fragment]
        owed = np.zeros_like(own.residual)
        delta = parameters - own.theta
        for outcome in outcomes:
            handed = self._handed.pop(outcome.key, None)
            rows = zip(outcome.bounds, outcome.included, outcome.losses, strict=True)
            for index, ((low, high), included, loss) in enumerate(rows):
                snapshot, after = (handed.snapshot, handed.after) if handed else (None, None)
                if included and snapshot is not None and after is not None:
                    own.residual[low:high] = after[low:high]
                    delta[low:high] = parameters[low:high] - snapshot[low:high]
                elif included:
                    owed[low:high] -= self._decoded(outcome.payloads[index], high - low)
                if loss is not None:
                    owed[low:high] += loss
        self._owe(fragment, owed, delta)
        own.theta, own.momentum = parameters, momentum
        own.ready.clear()
        own.version += 1
        return Merge(fragment, own.version, delta, parameters)

    def give_up(self, outcome: Outcome, parameters: Array, momentum: Array) -> Merge:
        """Takes back a record this peer's chain gives up: what was decoded from it is owed again."""
        own = self._fragments[outcome.fragment]
        owed = np.zeros_like(own.residual)
        rows = zip(outcome.bounds, outcome.included, outcome.losses, strict=True)
        for index, ((low, high), included, loss) in enumerate(rows):
            if included:
                owed[low:high] += self._decoded(outcome.payloads[index], high - low)
            if loss is not None:
                owed[low:high] -= loss
        delta = parameters - own.theta
        self._owe(outcome.fragment, owed, delta)
        own.theta, own.momentum = parameters, momentum
        own.ready.clear()
        own.version += 1
        return Merge(outcome.fragment, own.version, delta, parameters)

    def _owe(self, fragment: int, owed: Array, delta: Array) -> None:
        """Adds to the residual; what is handed over and undecided follows it and the trainer's merge."""
        self._fragments[fragment].residual += owed
        for handed in self._handed.values():
            if handed.fragment == fragment and handed.after is not None:
                handed.after += owed
                handed.snapshot += delta

    def _decoded(self, payload: bytes, numel: int) -> Array:
        values: Array = np.empty(numel, dtype=self._fragments[0].theta.dtype)
        self._parts.codec.decode(payload, values)
        return values


def raw(values: Array) -> memoryview:
    """The bytes of a contiguous array (not a copy)."""
    return memoryview(values.data).cast("B")


def _norm(values: Array) -> float:
    return float(np.sqrt(np.dot(values.astype(np.float64), values.astype(np.float64))))


def _loss_factor(share: float) -> float:
    """What the loss of a result is multiplied by to reappear in full when weighted by `share` again."""
    if share <= 0:
        return 0.0
    return min(1.0 / float(share), _MAX_LOSS_FACTOR)
