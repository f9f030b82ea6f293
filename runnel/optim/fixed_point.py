"""Weights as integers: a pure function of a base and a set of updates, on every machine the same bits.

A weight w is an int32 W, w = W * 2^-shift; shift is 28 unless a tensor's base holds larger values
than that allows. Updates are integers, sums are modulo 2^32: no order, no batching, no thread count
and no other code can make two replicas differ, and taking all updates back gives the base again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runnel.errors import ConfigError
from runnel.hashing import digest
from runnel.kernels import perturbation
from runnel.kernels.perturb_signatures import Direction, Directions
from runnel.kernels.perturbation import FixedStep, direction
from runnel.optim.seed_updates import UNIT_SHIFT, Codes, Entries, SeedUpdate, round_shift
from runnel.optim.weight_changes import Changes
from runnel.types import Digest

Task = Callable[[], None]
Key = tuple[int, int]

_LARGEST = 1 << 30
_CHUNK = 1 << 20
_ROOM = 3 << 29  # three quarters of what an int32 holds


def one_after_the_other(tasks: Sequence[Task]) -> None:
    """Runs independent tasks in this thread."""
    for task in tasks:
        task()


@dataclass(frozen=True, slots=True)
class Spread:
    """Who does the work on a tensor.

    Attributes:
        slices: into how many each tensor is cut, at most; the number never changes a bit.
        run: runs independent tasks and returns when all are done; a thread pool's, for example. The
            compiled code releases the interpreter lock.
    """

    slices: int = 1
    run: Callable[[Sequence[Task]], None] = one_after_the_other


class Probe(NamedTuple):
    """A point beside the weights: `amount` units of 2^-28 along a direction; negative for its mirror.

    Attributes:
        counter: the direction's word c2, mostly the step.
        slot: its word c3.
        amount: epsilon * 2^28.
    """

    counter: int
    slot: int
    amount: int

    @property
    def mirror(self) -> Probe:
        """The point on the other side."""
        return self._replace(amount=-self.amount)


@dataclass(frozen=True, slots=True, eq=False)
class MasterTensor:
    """One tensor's integers.

    Attributes:
        name: of the parameter.
        shape: its shape.
        shift: the exponent of its unit 2^-shift.
        values: int32 [n], in C order.
    """

    name: str
    shape: tuple[int, ...]
    shift: int
    values: npt.NDArray[np.int32]


class MasterWeights:
    """All tensors of a run, their ids given by the order of their names, and the run's key.

    Attributes:
        tensors: by name.
        key: of the run.
        spread: who does the work.
        ids: of the tensors, by name.
        changes: what happened to the integers; whoever writes to them directly says so there.
    """

    def __init__(
        self, tensors: Iterable[MasterTensor], key: Key, *, spread: Spread | None = None
    ) -> None:
        self.tensors = tuple(sorted(tensors, key=lambda tensor: tensor.name))
        self.key, self.spread = key, spread or Spread()
        self.ids = {tensor.name: number for number, tensor in enumerate(self.tensors)}
        self.changes = Changes()
        self._flat: npt.NDArray[np.int32] | None = None

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], key: Key, *, spread: Spread | None = None
    ) -> MasterWeights:
        """The integers nearest to floating-point arrays (ties to even), each with the finest shift it allows.

        Raises:
            ConfigError: a value is NaN or infinite, or a tensor holds 2^30 or more.
        """
        shapes = {name: np.shape(array) for name, array in arrays.items()}
        return cls.read(shapes, arrays.__getitem__, key, spread=spread)

    @classmethod
    def read(
        cls,
        shapes: Mapping[str, tuple[int, ...]],
        values: Callable[[str], npt.NDArray[Any]],
        key: Key,
        *,
        spread: Spread | None = None,
    ) -> MasterWeights:
        """The same from whatever gives the values of a tensor, which is asked for one after the other.

        All integers are in one array, see `flat`.

        Raises:
            ConfigError: a value is NaN or infinite, or a tensor holds 2^30 or more.
        """
        flat = np.empty(sum(map(math.prod, shapes.values())), np.int32)
        tensors, end = list[MasterTensor](), 0
        for name in sorted(shapes):
            start, end = end, end + math.prod(shapes[name])
            shift = _put(name, values(name), flat[start:end])
            tensors.append(MasterTensor(name, shapes[name], shift, flat[start:end]))
        made = cls(tensors, key, spread=spread)
        made._flat = flat
        return made

    def flat(self) -> npt.NDArray[np.int32]:
        """All integers, one tensor after the other: a copy, unless `read` put them there."""
        if self._flat is not None:
            return self._flat
        return np.concatenate([tensor.values for tensor in self.tensors])

    def digest(self) -> Digest:
        """The name of this state: of every name, shape, shift and integer. Reads all weights."""
        parts: list[Any] = [b"runnel.fixed.1"]
        for tensor in self.tensors:
            label = f"{tensor.name}\0{list(tensor.shape)}\0{tensor.shift}\0".encode()
            parts += [len(label).to_bytes(4, "little"), label, _little_endian(tensor.values)]
        return digest(*parts)

    def copy(self) -> MasterWeights:
        """The same weights in memory of their own."""
        copies = [
            MasterTensor(one.name, one.shape, one.shift, one.values.copy()) for one in self.tensors
        ]
        return MasterWeights(copies, self.key, spread=self.spread)

    def apply(self, updates: Iterable[SeedUpdate]) -> None:
        """Adds all updates in one pass over the weights: about 0.1 ns per weight and direction.

        Raises:
            ValueError: an update names a tensor that is not there.
        """
        self.add(Entries.of(updates))

    def add(self, entries: Entries) -> None:
        """The same for updates that are columns already; see `apply`."""
        self._require_known(entries)
        with self.changes.adding(entries):
            for number, tensor in enumerate(self.tensors):
                self._add(number, tensor, entries)

    def point(self, number: int, probe: Probe | None) -> tuple[Direction, FixedStep]:
        """Where a probe lies beside tensor `number`; epsilon is rounded to the tensor's unit."""
        counter, slot, amount = probe or Probe(0, 0, 0)
        shift = self.tensors[number].shift
        rounded = int(round_shift(np.array([amount], np.int64), UNIT_SHIFT - shift)[0])
        return direction(number, counter, slot, self.key), FixedStep(rounded, shift)

    def terms(self, number: int, entries: Entries) -> tuple[Codes, Directions]:
        """What entries add to tensor `number`: int32 [K] times as many directions, uint32 [K, 5]."""
        coefficients, counters, slots = entries.of_tensor(number, self.tensors[number].shift)
        where = np.empty((coefficients.size, perturbation.WORDS), np.uint32)
        where[:, 0], where[:, 1], where[:, 2] = number, counters, slots
        where[:, 3:] = self.key
        return coefficients, where

    def materialise(
        self,
        number: int,
        out: npt.NDArray[Any],
        probe: Probe | None = None,
        *,
        after: Sequence[SeedUpdate] = (),
    ) -> None:
        """Tensor `number` as floating point, at the weights themselves or at a probe beside them.

        Args:
            number: the tensor's id.
            out: float32, float16, or uint16 for bfloat16's bits, [n].
            probe: where; epsilon is rounded to the tensor's unit.
            after: updates that a copy of this one tensor takes first; the weights stay as they are.
        """
        tensor = self.tensors[number]
        if after:
            tensor = replace(tensor, values=tensor.values.copy())
            entries = Entries.of(after)
            self._require_known(entries)
            self._add(number, tensor, entries)
        where, step = self.point(number, probe)
        self.spread.run(
            [
                partial(
                    perturbation.materialise,
                    tensor.values[part],
                    out[part],
                    where,
                    step=step,
                    first_tile=tile,
                )
                for part, tile in perturbation.slices(tensor.values.size, self.spread.slices)
            ]
        )

    def _require_known(self, entries: Entries) -> None:
        if entries.tensors.size and entries.tensors.max() >= len(self.tensors):
            raise ValueError(
                f"an update is for tensor {entries.tensors.max()}, there are {len(self.tensors)}"
            )

    def _add(self, number: int, tensor: MasterTensor, entries: Entries) -> None:
        coefficients, where = self.terms(number, entries)
        if not coefficients.size or not tensor.values.size:
            return
        self.spread.run(
            [
                partial(
                    perturbation.apply, tensor.values[part], coefficients, where, first_tile=tile
                )
                for part, tile in perturbation.slices(tensor.values.size, self.spread.slices)
            ]
        )

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """All weights as float32, by name and in shape."""
        found = {}
        for number, tensor in enumerate(self.tensors):
            flat = np.empty(tensor.values.size, np.float32)
            self.materialise(number, flat)
            found[tensor.name] = flat.reshape(tensor.shape)
        return found

    def require_room(self) -> None:
        """Checks that no weight has come near the end of its range, where it would wrap around.

        One pass of reading: for every pinned state, not for every step.

        Raises:
            ConfigError: a tensor has; all replicas see it at the same step.
        """
        for tensor in self.tensors:
            if tensor.values.size and _magnitude(tensor.values) >= _ROOM:
                raise ConfigError(
                    f"parameter {tensor.name!r} has grown to {_magnitude(tensor.values) * 2.0**-tensor.shift:.3g},"
                    f" expected below {_ROOM * 2.0**-tensor.shift:.3g}: use a smaller learning rate"
                )


def _put(name: str, array: npt.NDArray[Any], out: npt.NDArray[np.int32]) -> int:
    """Writes the integers of a tensor; their shift."""
    flat = np.ascontiguousarray(array).reshape(-1)
    largest = float(max(-flat.min(), flat.max())) if flat.size else 0.0
    if not np.isfinite(largest):
        raise ConfigError(f"parameter {name!r} holds NaN or infinity: load weights that are finite")
    shift = UNIT_SHIFT
    while shift >= 0 and round(largest * 2**shift) >= _LARGEST:
        shift -= 1
    if shift < 0:
        raise ConfigError(
            f"parameter {name!r} holds {largest:.3g}, expected below {_LARGEST}: scale it down or freeze it"
        )
    for start in range(0, flat.size, _CHUNK):
        wide = flat[start : start + _CHUNK].astype(np.float64) * 2.0**shift
        out[start : start + _CHUNK] = np.rint(wide)
    return shift


def _magnitude(values: npt.NDArray[np.int32]) -> int:
    return max(-int(values.min()), int(values.max()))


def _little_endian(values: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    return values.astype("<i4", copy=False).view(np.uint8)
