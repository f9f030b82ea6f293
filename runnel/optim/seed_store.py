"""The weights of a shared-seed run on one peer, and what its method shares beside them.

Owned by the codec thread; the trainer's thread reads weights under `lock`, which is held only while
integers change. A round's updates are applied in place when its state is to be named, and taken back
exactly if another outcome is decided: no second copy of the weights is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from runnel.errors import BugError, RunMismatchError
from runnel.hashing import digest
from runnel.optim.exchange import Array, Payload, RootOf, RoundResults, raw
from runnel.optim.fixed_point import MasterWeights, Probe
from runnel.optim.seed_methods import SeedMethod
from runnel.optim.seed_rounds import RoundEntry
from runnel.optim.seed_updates import UNIT_SHIFT, Entries, SeedUpdate
from runnel.protocols import Float32
from runnel.types import Digest

_WORD = 4
_REDUCED_DIRECTIONS = 1 << 14
"""After so many it is looked whether some undo each other."""
_MOST_WAITING = 1 << 20
"""And once more among so many: some 130 MB."""
_KEPT_CHANGES = 8
"""Decided changes that can be looked behind: a few numbers per round and peer."""

_PART_LABEL = b"runnel.part.1"

Part = tuple[int, int]
"""From which to which of a state's weights."""
Shared = tuple[Array, Array]
"""Weights as int32 [n], then shifts and the method's state as bytes, both seen as float32."""


@dataclass(frozen=True, slots=True)
class _Trial:
    tag: Hashable
    updates: tuple[SeedUpdate, ...]
    before: tuple[Any, int]
    root: Digest


@dataclass(frozen=True, slots=True)
class _Change:
    """A decided one: of the state of this version."""

    version: int
    state: Any
    updates: tuple[SeedUpdate, ...]


class NotAtHandError(LookupError):
    """Weights as they were before changes that cannot be looked behind any more."""


class SeedStore:
    """One fragment, that is the whole model: fixed-point weights in one array, and the method's state.

    Attributes:
        weights: views into that array, by tensor.
        method: of the run.
        state: the method's, after `version` decided changes.
        mark: names the weights: of two equal ones nothing has changed, or all of it was taken back.
        turn: grows with every change of the integers, tried, taken back or decided.
        lock: held while they change; whose threads share the store gives one.
    """

    def __init__(
        self,
        weights: MasterWeights,
        method: SeedMethod,
        root_of: RootOf,
        *,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Takes the weights over: tensors follow each other by name, as in a plan of one fragment."""
        self._flat = weights.flat()
        self.weights = _over(weights, self._flat)
        self.method, self._root_of = method, root_of
        self.state: Any = method.first()
        self.version = self.mark = self.turn = 0
        self.lock = lock or nullcontext()
        self._trial: _Trial | None = None
        self._changes: deque[_Change] = deque(maxlen=_KEPT_CHANGES)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Weights of the one fragment."""
        return (self._flat.size,)

    @property
    def tensor_sizes(self) -> tuple[int, ...]:
        """Weights of each tensor, by its id."""
        return tuple(tensor.values.size for tensor in self.weights.tensors)

    @property
    def shared_sizes(self) -> tuple[tuple[int, int], ...]:
        """Words of weights and words of what else all peers share."""
        return ((self._flat.size, self._rest_words),)

    def shared(self, _fragment: int) -> Shared:
        """The state of the one fragment (weights: not a copy)."""
        self._require_settled()
        return self._flat.view(np.float32), self._rest(self.state)

    def residual(self, _fragment: int) -> Array:
        """Nothing: a contribution that no round took is gone, and its data was not."""
        return np.zeros(0, np.float32)

    def parameters(self, _fragment: int) -> Float32:
        """The weights as float32, in the plan's order."""
        return np.concatenate([value.reshape(-1) for value in self.weights.arrays().values()])

    def root(self, fragment: int) -> Digest:
        """The name of the state; hashes it."""
        return self.root_of(self.shared(fragment))

    def root_of(self, state: Shared, part: Part | None = None) -> Digest:
        """The name of a state, or of a part of its weights with all that is beside them; hashes what it names."""
        if part is None:
            return self._root_of([raw(one) for one in state])
        return digest(_PART_LABEL, raw(state[0][slice(*part)]), raw(state[1]))

    def load(
        self, _fragment: int, parameters: Array, rest: Array, _residual: Array | None = None
    ) -> None:
        """Replaces the state by one read back or fetched.

        Raises:
            PeerError: it is none of this method's.
            RunMismatchError: its weights have other units than those before it.
        """
        shifts, state = self._read_rest(rest)
        with self.lock:
            if self.version and shifts != [tensor.shift for tensor in self.weights.tensors]:
                raise RunMismatchError("the state has other units of weights than the run")
            self._trial = None
            self._changes.clear()
            with self.weights.changes.overwriting():
                self._flat[:] = parameters.view(np.int32)
            self.weights = _with_shifts(self.weights, shifts)
            self.state = state
            self.version += 1
            self._changed()

    def prepare(self, tag: Hashable, payload: Payload, part: Part | None = None) -> Digest:
        """Tries a round's result: the name of the state after it, or of a part of that.

        Raises:
            PeerError: the payload is no entry of a round.
        """
        trial = self._trial
        if trial is not None and trial.tag == tag:
            return trial.root
        entry = RoundEntry.decode(payload)
        self.retract()
        updates, after = self.method.take(self.state, entry.shares, entry.progress)
        with self.lock:
            self.weights.apply(updates)
            before, self.state = (self.state, self.mark), after
            self._changed()
            root = self.root_of((self._flat.view(np.float32), self._rest(after)), part)
            self._trial = _Trial(tag, updates, before, root)
        return root

    def adopt(self, tag: Hashable) -> None:
        """Settles what `prepare` tried."""
        trial = self._trial
        if trial is None or trial.tag != tag:
            raise BugError("there is no prepared state to adopt")
        with self.lock:
            self._changes.append(_Change(self.version, trial.before[0], trial.updates))
            self._trial = None
            self.version += 1

    def advance(self, payloads: Sequence[Payload], part: Part | None = None) -> Digest:
        """Takes the results of decided rounds in their order, in one pass; the name of the state, or of a part.

        Raises:
            PeerError: one of them is no entry of a round; nothing has changed then.
        """
        entries = [RoundEntry.decode(payload) for payload in payloads]
        self.retract()
        state, changes = self.state, list[_Change]()
        for version, entry in enumerate(entries, self.version):
            updates, after = self.method.take(state, entry.shares, entry.progress)
            changes.append(_Change(version, state, updates))
            state = after
        with self.lock:
            self.weights.apply(update for change in changes for update in change.updates)
            self.state = state
            self._changes += changes
            self.version += len(changes)
            self._changed()
        return self.root_of(self.shared(0), part)

    def retract(self) -> None:
        """Takes back what was tried and not adopted; not one bit stays changed."""
        trial = self._trial
        if trial is None:
            return
        with self.lock:
            self.weights.apply(update.undone() for update in trial.updates)
            self._changed()
            self.state, self.mark = trial.before
            self._trial = None

    def state_at(self, version: int) -> Any:
        """The method's state as it was at a recent version, whatever happened since.

        Raises:
            NotAtHandError: that is too long ago, or another state was loaded.
        """
        with self.lock:
            return self._since(version)[0]

    def materialise_at(
        self,
        version: int,
        number: int,
        out: npt.NDArray[Any],
        probe: Probe | None = None,
        *,
        after: Sequence[SeedUpdate] = (),
    ) -> None:
        """Tensor `number` as it was at a recent version, or after updates of that; any thread.

        Costs a copy of this tensor and a pass over it, and leaves the weights as they are, so that it
        does not matter how far they go between two tensors. See `MasterWeights.materialise`.

        Raises:
            NotAtHandError: that is too long ago, or another state was loaded.
        """
        with self.lock:
            undone = self._since(version)[1]
            self.weights.materialise(number, out, probe, after=[*undone, *after])

    def _since(self, version: int) -> tuple[Any, list[SeedUpdate]]:
        """The state at a version, and what takes the weights back to it."""
        trial = self._trial
        later = [change for change in self._changes if change.version >= version]
        if version != self.version and (not later or later[0].version != version):
            raise NotAtHandError(f"version {version} of the weights is not at hand any more")
        groups = [change.updates for change in later] + ([trial.updates] if trial else [])
        state = later[0].state if later else trial.before[0] if trial else self.state
        return state, [update.undone() for group in groups for update in group]

    def replay(self, state: Shared, rounds: Iterable[RoundResults]) -> None:
        """Takes a state, as it was before these rounds, through their results, in place.

        One pass over the weights for many rounds, and no forward pass.

        Raises:
            PeerError: a result is no entry of a round.
        """
        for entries in self.changes(state, rounds):
            self.add_to(state, entries)

    def changes(self, state: Shared, rounds: Iterable[RoundResults]) -> Iterator[Entries]:
        """What rounds add to the weights of a state, in some large parts; writes what is beside the weights in the end.

        What later rounds undo is not among it, as far as that is seen: of a pool of seeds, each is there twice.

        Raises:
            PeerError: a result is no entry of a round.
        """
        shifts, at = self._read_rest(state[1])
        waiting, news, directions = [Entries.of(())], list[SeedUpdate](), 0
        for one in rounds:
            entry = RoundEntry.decode(one.payloads[0])
            updates, at = self.method.take(at, entry.shares, entry.progress)
            news += updates
            directions += sum(map(len, updates))
            if directions >= _REDUCED_DIRECTIONS:
                waiting.append(Entries.of(news).without_opposites())
                news, directions = [], 0
                if sum(map(len, waiting)) >= _MOST_WAITING:
                    waiting = [Entries.joined(waiting).without_opposites()]
                    if 2 * len(waiting[0]) >= _MOST_WAITING:
                        yield waiting.pop()
        yield Entries.joined([Entries.of(news), *waiting]).without_opposites()
        state[1][:] = self._rest(at, shifts)

    def add_to(self, state: Shared, entries: Entries) -> None:
        """Adds to the weights of a state, in place, in one pass."""
        shifts, _ = self._read_rest(state[1])
        _with_shifts(_over(self.weights, state[0].view(np.int32)), shifts).add(entries)

    def _changed(self) -> None:
        self.turn += 1
        self.mark = self.turn

    @property
    def _rest_words(self) -> int:
        used = len(self.weights.tensors) + self.method.state_bytes
        return -(-used // _WORD)

    def _rest(self, state: Any, shifts: Sequence[int] = ()) -> Array:
        units = bytes(shifts or [tensor.shift for tensor in self.weights.tensors])
        packed = units + self.method.pack(state)
        return np.frombuffer(packed.ljust(_WORD * self._rest_words, b"\0"), np.float32).copy()

    def _read_rest(self, rest: Array) -> tuple[list[int], Any]:
        data, count = rest.tobytes(), len(self.weights.tensors)
        shifts = list(data[:count])
        if any(shift > UNIT_SHIFT for shift in shifts):
            raise RunMismatchError("the state has units of weights that no run has")
        return shifts, self.method.unpack(data[count : count + self.method.state_bytes])

    def _require_settled(self) -> None:
        if self._trial is not None:
            raise BugError("the weights are those of a round that is not decided")


def _over(weights: MasterWeights, flat: npt.NDArray[np.int32]) -> MasterWeights:
    """The same tensors as views of one array, which holds them one after the other."""
    ends = accumulate(tensor.values.size for tensor in weights.tensors)
    tensors = [
        replace(tensor, values=flat[end - tensor.values.size : end])
        for tensor, end in zip(weights.tensors, ends, strict=True)
    ]
    return MasterWeights(tensors, weights.key, spread=weights.spread)


def _with_shifts(weights: MasterWeights, shifts: Sequence[int]) -> MasterWeights:
    """The same integers in other units; the same object if they are its own."""
    if [tensor.shift for tensor in weights.tensors] == list(shifts):
        return weights
    pairs = zip(weights.tensors, shifts, strict=True)
    tensors = [replace(tensor, shift=shift) for tensor, shift in pairs]
    return MasterWeights(tensors, weights.key, spread=weights.spread)
