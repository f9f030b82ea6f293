"""The outer store: what all replicas share (parameters, momentum) and what this peer still owes (residuals).

Owned by the codec thread, never by the trainer. It keeps one rule: per value, ``U = e + (theta - w)``
is what this peer has learned that is not on its chain. U grows by training; a decided record takes
``q`` out of it where it includes this peer; nothing else changes it.

So at a hand-over ``x = e + (theta - w)`` is encoded as ``q = C(x)``; if a slice of the record includes
this peer, ``e <- x - q`` and ``w <- theta' + (w - snapshot)``; if not, ``w <- w + (theta' - theta)`` and
``e`` stays. Both merges are additions, so that the trainer may apply them late. Where the run says so, a
record that includes this peer also makes what is left of ``e`` there fade (SparseLoCo, algorithm 1).

Where windows start from public values, ``w <- theta - q`` follows the hand-over, as one more addition. The
store notes by how much, and counts with the w that would be without it; see `FragmentState.start`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from runnel.errors import BugError
from runnel.optim.buffers import BufferPool
from runnel.optim.exchange import (
    Array,
    Encoded,
    Handed,
    Merge,
    Outcome,
    Payload,
    Reduced,
    RootOf,
    RoundResults,
    StoreParts,
    raw,
)
from runnel.optim.fragment_state import FragmentState
from runnel.optim.layer_bits import chosen, fitted_like
from runnel.optim.owing import Owed, Owing
from runnel.optim.parts import Bounds
from runnel.optim.passes import owing, summed
from runnel.optim.stepping import Stepper
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

_SPARE_ARRAYS = 3  # change hands in a round: snapshot, residual, parameters; and momentum


class OuterStore:
    """Outer parameters, momentum and residuals by fragment (1-D arrays of equal dtype)."""

    def __init__(self, parameters: Sequence[Array], parts: StoreParts) -> None:
        """Takes over `parameters`; momentum and residuals start at zero."""
        self._parts, self._stepper = parts, Stepper(parts.result_codec, parts.optimizer)
        slots = parts.optimizer.slots
        self._fragments = [
            FragmentState(p, np.zeros(slots * p.size, p.dtype), np.zeros_like(p))
            for p in parameters
        ]
        self._handed: dict[Hashable, Handed] = {}
        dtype = self._fragments[0].theta.dtype
        spare = (_SPARE_ARRAYS + slots) * max(self.sizes) * dtype.itemsize
        self._buffers = BufferPool(dtype, max_spare_bytes=spare)
        self._rooms = BufferPool(np.uint8, max_spare_bytes=max(self.sizes) * dtype.itemsize // 2)
        self._owing = Owing(parts.codec, parts.decay, parts.cap, self.take_buffer)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Values per fragment."""
        return tuple(f.theta.size for f in self._fragments)

    @property
    def codec(self) -> Codec:
        """How contributions are encoded."""
        return self._parts.codec

    @property
    def shared_sizes(self) -> tuple[tuple[int, int], ...]:
        """Values of both parts of a state, per fragment."""
        return tuple((f.theta.size, f.momentum.size) for f in self._fragments)

    def shared(self, fragment: int) -> tuple[Array, Array]:
        """Parameters and momentum (not copies)."""
        return self._fragments[fragment].theta, self._fragments[fragment].momentum

    def parameters(self, fragment: int) -> Array:
        """The outer parameters (not a copy)."""
        return self.shared(fragment)[0]

    def momentum(self, fragment: int) -> Array:
        """The outer momentum, all that the optimizer keeps (not a copy)."""
        return self.shared(fragment)[1]

    def root(self, fragment: int) -> Digest:
        """The name of a fragment's shared state; hashes it."""
        return self.root_of(self.shared(fragment))

    def root_of(self, state: tuple[Array, Array]) -> Digest:
        """The name of parameters and momentum; hashes them."""
        return self._parts.root_of([raw(values) for values in state])

    def residual(self, fragment: int) -> Array:
        """What this peer learned, handed over or not, that no record holds and its trainer does not either."""
        return self._fragments[fragment].residual

    def counted(self, fragment: int) -> tuple[Array, ...]:
        """What a share is encoded with beside outer parameters and trainer's values (not copies)."""
        return self._fragments[fragment].counted

    def version(self, fragment: int) -> int:
        """How many merges of this fragment have been given out; the trainer must have applied them all."""
        return self._fragments[fragment].version

    def result_bytes(self, numel: int) -> int:
        """The largest result of `numel` values."""
        return self._parts.result_codec.max_bytes(numel)

    def norm_of_result(self, payload: Payload, numel: int) -> float:
        """The Euclidean norm of a slice of an aggregated pseudo-gradient."""
        return self._parts.result_codec.norm(payload, numel)

    def take_buffer(self, numel: int) -> Array:
        """An array to fill, for whoever hands over or restores values; any thread."""
        return self._buffers.take(numel)

    def take_rooms(self, sizes_bytes: Sequence[int]) -> list[memoryview]:
        """Memory for payloads of at most these sizes; any thread."""
        return self._rooms.take_rooms(sizes_bytes)

    def handed(self, key: Hashable) -> Handed | None:
        """A contribution whose round is not decided yet."""
        return self._handed.get(key)

    def encode(
        self,
        key: Hashable,
        fragment: int,
        snapshot: Array,
        *,
        version: int,
        bounds: Bounds,
        keep: Callable[[Array], object] | None = None,
    ) -> Encoded | None:
        """Encodes what this peer has learned of a fragment, slice by slice; takes over `snapshot`.

        None if the trainer has merges to apply first, or has handed over for `key` before.

        Args:
            key: names the round.
            fragment: which one.
            snapshot: the trainer's values.
            version: how many of its merges the trainer has applied.
            bounds: the slices.
            keep: gets ``theta - w`` less what the payloads hold, in order: the parts of each slice, each
                overwritten by the next.

        Raises:
            ValueError: the trainer's values are not finite: its contribution must be withheld.
        """
        own, codec = self._fragments[fragment], self._parts.codec.seeded(self._parts.seed_of(key))
        if version != own.version or key in self._handed:
            return None
        after, trained = self.take_buffer(snapshot.size), own.trained(snapshot, self.take_buffer)
        known = (own.theta, trained, own.residual)
        edges = self._parts.edges[fragment] if self._parts.edges else ()
        codecs = chosen(codec, known, after, bounds, edges)
        sizes = [high - low for low, high in bounds]
        rooms = self.take_rooms([codec.max_bytes(size) for size in sizes])
        payloads = tuple(
            each.encode_parts(owing(known, after, span, keep), size, room)
            for each, span, size, room in zip(codecs, bounds, sizes, rooms, strict=True)
        )
        norms = tuple(
            codec.norm(payload, high - low)
            for payload, (low, high) in zip(payloads, bounds, strict=True)
        )
        for earlier in self._handed.values():
            if (
                earlier.fragment == fragment
            ):  # of a round of another path: its drift is in this one's
                earlier.snapshot = earlier.after = None
        self._handed[key] = Handed(fragment, payloads, snapshot, after)
        return Encoded(payloads, norms)

    def start(self, key: Hashable, bounds: Bounds) -> Merge | None:
        """Where the run says so: what moves the trainer to public values, once `encode` has taken `key`.

        It counts as a merge: without it the trainer hands nothing of the fragment over again.
        """
        handed = self._handed[key]
        if not self._parts.public_start or handed.snapshot is None:
            return None
        own, start = self._fragments[handed.fragment], self.take_buffer(handed.snapshot.size)
        for (low, high), payload in zip(bounds, handed.payloads, strict=True):
            self._parts.codec.decode(payload, start[low:high])
        delta = own.start(handed.snapshot, start)
        handed.snapshot = start
        return Merge(handed.fragment, own.version, delta, own.theta)

    def forget(self, key: Hashable) -> None:
        """Drops a contribution that no record will include: what it holds is still in ``theta - w``."""
        self._handed.pop(key, None)

    def recall(
        self, key: Hashable, fragment: int, payloads: tuple[Payload, ...], drift: Array
    ) -> None:
        """After a restart: a contribution read back. Its drift joins the residual, as the trainer's is gone."""
        self._fragments[fragment].residual += drift
        self._handed[key] = Handed(fragment, payloads, None, None)

    def load(
        self, fragment: int, parameters: Array, rest: Array, residual: Array | None = None
    ) -> None:
        """Replaces a fragment's state by one read back or fetched."""
        own = self._fragments[fragment]
        own.theta[:], own.momentum[:] = parameters, rest
        own.ready.clear()
        if residual is not None:
            own.residual[:] = residual

    def reduce(
        self,
        payloads: Sequence[Payload],
        weights: Array,
        norms: Array,
        *,
        numel: int,
        own: int,
        key: Hashable = None,
    ) -> Reduced:
        """Aggregates payloads of one slice and encodes the result once.

        Args:
            payloads: one per sender, in the order of the decided set.
            weights: tokens behind each contribution, [senders].
            norms: Euclidean norm of each sender's whole fragment, [senders].
            numel: values in the slice.
            own: place of this peer among the senders, or -1.
            key: names the round, as in `encode`; its seed is that of the result.
        """
        parts = self._parts
        total = self.take_buffer(numel)
        total[:] = 0
        factors = parts.aggregator.coefficients(weights, norms)
        for payload, factor in zip(payloads, factors, strict=True):
            parts.codec.accumulate(payload, factor, total)
        share = float(factors[own]) if own >= 0 else 0.0
        room = self.take_rooms([parts.result_codec.max_bytes(numel)])[0]
        codec = parts.result_codec.seeded(parts.seed_of(key))
        codec = fitted_like(codec, parts.codec, payloads, total)
        encoded = codec.encode_parts(summed(total, share), numel, room)
        return Reduced(encoded, total if own >= 0 else None)

    def prepare(
        self,
        tag: Hashable,
        fragment: int,
        bounds: Bounds,
        payloads: Sequence[Payload],
        *,
        turn: int = 0,
        final: bool,
    ) -> Digest:
        """Computes the fragment's state after these results, keeps it under `tag`, and names it."""
        own = self._fragments[fragment]
        known = own.ready.get(tag)
        if known is not None:
            return known[2]
        theta, momentum = self.take_buffer(own.theta.size), self.take_buffer(own.momentum.size)
        before, after = (own.theta, own.momentum), (theta, momentum)
        self._stepper.step(before, after, bounds, payloads, turn=turn, final=final)
        root = self._parts.root_of([raw(theta), raw(momentum)])
        own.ready[tag] = (theta, momentum, root)
        return root

    def replay(self, state: tuple[Array, Array], rounds: Iterable[RoundResults]) -> None:
        """Takes parameters and momentum, as they were before these rounds, through their results, in place."""
        self._stepper.replay(state, rounds)

    def settle_again(self, outcome: Outcome, drift: Array) -> None:
        """After a restart: what a record took out of the residual and the trainer's values, once more.

        `drift` is what was in the trainer's values at the hand-over for `outcome.key`.
        """
        residual = self._fragments[outcome.fragment].residual
        for index, (low, high) in enumerate(outcome.bounds):
            if outcome.included[index]:
                residual[low:high] += drift[low:high]
                residual[low:high] -= self._owing.decoded(outcome.payloads[index], high - low)
                self._owing.change(residual, slice(low, high), None)
                self._owing.bounded(residual, slice(low, high), outcome.payloads[index])
        for place, values in self._owing.by(outcome, -1, payloads=False):
            self._owing.change(residual, place, values)

    def adopt(self, tag: Hashable, outcome: Outcome) -> Merge:
        """Takes up a decided round: new state, residual, and what the trainer must add. `tag` is prepared."""
        own = self._fragments[outcome.fragment]
        if tag not in own.ready:
            raise BugError(f"fragment {outcome.fragment} has no prepared state to adopt")
        theta, momentum, _ = own.ready[tag]
        return self.leap(outcome.fragment, theta, momentum, [outcome])

    def leap(
        self,
        fragment: int,
        parameters: Array,
        momentum: Array,
        outcomes: Sequence[Outcome],
        *,
        lost: Iterable[Outcome] = (),
    ) -> Merge:
        """Takes up several decided rounds of a fragment at once, given the state after the last of them.

        `lost` are decided rounds that this peer's chain gives up for it, in any order: what was decoded
        from them is owed again. They are used one by one, as each may need a contribution read back.
        """
        own = self._fragments[fragment]
        live: tuple[Outcome, Handed] | None = None
        taken: list[Owed] = []
        for outcome in outcomes:
            handed = self._handed.pop(outcome.key, None)
            in_trainer = handed is not None and handed.snapshot is not None
            if handed is not None and in_trainer:
                live = (outcome, handed)
            taken += self._owing.by(outcome, -1, payloads=not in_trainer)
        again = (self._owing.by(outcome, 1, payloads=True) for outcome in lost)
        owed = chain(taken, chain.from_iterable(again))
        delta, cut = self._take_out(own, parameters, *live) if live else (None, 0.0)
        if delta is None:
            delta = np.subtract(parameters, own.theta, out=self.take_buffer(parameters.size))
        return replace(self._moved(fragment, parameters, momentum, owed, delta), cut=cut)

    def _take_out(
        self, own: FragmentState, parameters: Array, outcome: Outcome, handed: Handed
    ) -> tuple[Array, float]:
        """Gives a contribution's included slices up to the record.

        Returns:
            The trainer's change, in the snapshot's place, and the norm of what the cap took.
        """
        snapshot, after, cut = handed.snapshot, handed.after, 0.0
        assert snapshot is not None
        assert after is not None
        rows = zip(outcome.bounds, outcome.included, outcome.payloads, strict=True)
        for (low, high), included, payload in rows:
            start = snapshot if included else own.theta
            np.subtract(parameters[low:high], start[low:high], out=snapshot[low:high])
            if included:
                self._owing.change(after, slice(low, high), None)
                cut = math.hypot(cut, self._owing.bounded(after, slice(low, high), payload))
            else:
                after[low:high] = own.residual[low:high]
        own.residual = after
        own.settle(outcome.bounds, outcome.included)
        return snapshot, cut

    def _moved(
        self,
        fragment: int,
        parameters: Array,
        momentum: Array,
        owed: Iterable[Owed],
        delta: Array,
    ) -> Merge:
        """The new state is in force; what is handed over and undecided follows it and the trainer's merge."""
        own = self._fragments[fragment]
        residuals = [own.residual]
        for handed in self._handed.values():
            if handed.fragment == fragment and handed.after is not None:
                residuals.append(handed.after)
                if handed.snapshot is not None:
                    handed.snapshot += delta
        for place, values in owed:
            for residual in residuals:
                self._owing.change(residual, place, values)
        own.theta, own.momentum = parameters, momentum
        own.ready.clear()
        own.version += 1
        return Merge(fragment, own.version, delta, parameters)
