"""States of fragments on disk: some in full, those in between as the results that lead to them.

A state is parameters and momentum after a record, 8 bytes a value; what this peer owes is another 4.
Writing all that in each round would be most of a peer's work on its disk. So a fragment is written
in full around the records whose states newcomers fetch (pins), and whenever its change does not
follow from results and this peer's contribution alone; else a key says up to which record the
results on disk are to be applied again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runnel.dht.wire import pack, unpack
from runnel.errors import InputFileError, PeerError
from runnel.hashing import digest
from runnel.node.chain import Chain
from runnel.node.keepsakes import Disk
from runnel.node.pins import is_pin
from runnel.node.records import Record, RecordKind
from runnel.node.rounds import slice_bounds
from runnel.node.storage_keys import Updates
from runnel.optim.exchange import Array, RoundResults, StateStore, raw
from runnel.types import Digest

State = tuple[Array, Array]
NameAfter = Callable[[State, "Step", int], Digest]
"""What the record of a round calls the state after it, from that and the number of the round before (-1: none)."""

_MAX_KEY_BYTES = 256
_ADVICE = "move this peer's folder away and join again"


@dataclass(frozen=True, slots=True)
class StateKey:
    """What the key of a fragment names: its state is that after record `number` (-1: at genesis).

    On disk is the one after record `base`, and what this peer owed then under the name `residual`.
    """

    number: int
    base: int
    residual: str

    def encode(self) -> bytes:
        """For the log."""
        return pack([self.number, self.base, self.residual])

    @staticmethod
    def decode(fragment: int, data: bytes) -> StateKey:
        """From the log.

        Raises:
            InputFileError: it is damaged.
        """
        try:
            number, base, residual = unpack(data, max_bytes=_MAX_KEY_BYTES)
        except (PeerError, TypeError, ValueError) as error:
            raise InputFileError(
                f"the saved state of fragment {fragment} is damaged: {_ADVICE}"
            ) from error
        return StateKey(number, base, residual)


@dataclass(frozen=True, slots=True)
class Step:
    """A round that changed a fragment; `final` if it was one of those that close the run."""

    record: Record
    final: bool

    def turn(self, fragments: int) -> int:
        """Which round of its fragment it is, from 0 on, the failed ones counted."""
        return self.record.number // fragments


def state_key(fragment: int) -> str:
    """The key in the log."""
    return f"state/{fragment}"


def state_name(fragment: int, number: int) -> str:
    """The blob of a fragment's shared state after record `number`: parameters, then momentum."""
    return f"state-{fragment}-{number}"


def steps_of(chain: Chain, path: Sequence[Digest], fragment: int, fragments: int) -> Iterator[Step]:
    """The rounds of `path` that changed a fragment, newest first."""
    for index in range(len(path) - 1, 0, -1):
        number = index - 1
        if number % fragments == fragment:
            record = chain.at(path, index)
            if record.kind is RecordKind.ROUND:
                yield Step(record, chain.record(chain.base_of(number, path)).closing)


def newest_step(
    chain: Chain, path: Sequence[Digest], fragment: int, fragments: int
) -> tuple[Step | None, int]:
    """The newest round of `path` that changed a fragment, and the number of the one before it (-1: none)."""
    steps = steps_of(chain, path, fragment, fragments)
    newest, earlier = next(steps, None), next(steps, None)
    return newest, earlier.record.number if earlier else -1


def steps_since(
    steps: Iterator[Step], is_base: Callable[[int], bool]
) -> tuple[int, tuple[Step, ...]]:
    """The newest of `steps` whose record is a base, by number (-1: genesis), and those after it in order."""
    since: list[Step] = []
    for step in steps:
        if is_base(step.record.number):
            return step.record.number, tuple(reversed(since))
        since.append(step)
    return -1, tuple(reversed(since))


class SavedStates:
    """The states of one store's fragments on disk. For the codec thread."""

    def __init__(
        self,
        store: StateStore,
        disk: Disk,
        results_of: Callable[[Step], tuple[Sequence[bytes | memoryview], bool]],
        name_after: NameAfter | None = None,
        *,
        every: int,
    ) -> None:
        """See the class; records name whole states if there is no `name_after`.

        `results_of` gives a round's results and whether they are averaged plainly; there is a pin in
        each `every` records.
        """
        self._store, self._disk, self._results_of, self._every = store, disk, results_of, every
        self._name_after = name_after
        self._keys = [StateKey(-1, -1, "")] * len(store.sizes)

    def keep(self, changed: Mapping[int, tuple[int, bool]]) -> Updates:
        """Durably keeps what changed; what to write together with the new head.

        `changed` has by fragment the record its state comes from, and whether results alone led there.
        """
        updates: Updates = {}
        before = max(key.number for key in self._keys)
        newest = max(changed.get(f, (key.number,))[0] for f, key in enumerate(self._keys))
        pinned = is_pin(newest, before, self._every)
        for fragment, key in enumerate(self._keys):
            number, plain = changed.get(fragment, (key.number, True))
            # a blob of that name would be of a branch that was given up
            light = plain and not self._disk.has_blob(state_name(fragment, number))
            if fragment in changed and light and not (pinned or self._is_near_pin(number)):
                self._keys[fragment] = StateKey(number, key.base, key.residual)
                updates[state_key(fragment)] = self._keys[fragment].encode()
            elif fragment in changed or (pinned and key.base != number):
                updates[state_key(fragment)] = self._write(fragment, number)
        return updates

    def keep_all(self, numbers: Sequence[int]) -> Updates:
        """Durably keeps everything; `numbers[f]` is the record that fragment f comes from."""
        return {
            state_key(fragment): self._write(fragment, number)
            for fragment, number in enumerate(numbers)
        }

    def number(self, fragment: int) -> int:
        """The record that the state of a fragment comes from."""
        return self._keys[fragment].number

    def read(self, chain: Chain, path: Sequence[Digest], fragment: int) -> State:
        """The state of a fragment at the end of a path.

        Raises:
            InputFileError: the disk does not have what leads there, or it is of another path.
        """
        steps = steps_of(chain, path, fragment, len(self._store.sizes))
        base, since = steps_since(steps, lambda n: self._disk.has_blob(state_name(fragment, n)))
        state = self._read_full(fragment, base)
        self._replay(state, since)
        self._check(fragment, state, chain, path)
        return state

    def load(self, fragment: int, value: bytes, chain: Chain) -> tuple[Step, ...]:
        """Puts a fragment's saved state into the store; the rounds that what is owed does not know of yet.

        Raises:
            InputFileError: the disk does not have what leads there, or it is not what was decided.
        """
        key = StateKey.decode(fragment, value)
        steps = steps_of(chain, chain.path, fragment, len(self._store.sizes))
        base, since = steps_since(steps, lambda number: number <= key.base)
        state = self._read_full(fragment, key.base)
        self._replay(state, since)
        owed = np.frombuffer(self._disk.read_blob(key.residual), dtype=np.float32)
        self._store.load(fragment, *state, owed)
        self._keys[fragment] = key
        if base != key.base:
            raise _elsewhere(fragment, key.number)
        self._check(fragment, self._store.shared(fragment), chain, chain.path)
        return since

    def _check(self, fragment: int, state: State, chain: Chain, path: Sequence[Digest]) -> None:
        newest, before = newest_step(chain, path, fragment, len(self._store.sizes))
        if newest is None:
            return
        name_after = self._name_after or (lambda state, *_: self._store.root_of(state))
        if name_after(state, newest, before) != newest.record.state_root:
            raise _elsewhere(fragment, newest.record.number)

    def _is_near_pin(self, number: int) -> bool:
        """Whether the state after the next pin may still be this one."""
        return -number % self._every < len(self._store.sizes)

    def _replay(self, state: State, since: Sequence[Step]) -> None:
        self._store.replay(state, (self._results(state[0].size, step) for step in since))

    def _results(self, size: int, step: Step) -> RoundResults:
        bounds = slice_bounds(size, len(step.record.slices))
        turn = step.turn(len(self._store.sizes))
        return RoundResults(bounds, *self._results_of(step), turn=turn)

    def _write(self, fragment: int, number: int) -> bytes:
        store = self._store
        values = tuple(raw(part) for part in store.shared(fragment))
        self._disk.write_blob(state_name(fragment, number), values, large=True)
        owed = raw(store.residual(fragment))
        # a name of its own for each content: the old file stays until the key names the new one
        residual = f"residual-{fragment}-{number}-{digest(owed)[:8].hex()}"
        self._disk.write_blob(residual, [owed], large=True)
        self._keys[fragment] = StateKey(number, number, residual)
        return self._keys[fragment].encode()

    def _read_full(self, fragment: int, number: int) -> State:
        data = np.frombuffer(self._disk.read_blob(state_name(fragment, number)), dtype=np.float32)
        words, rest = self._store.shared_sizes[fragment]
        if data.size != words + rest:
            raise InputFileError(
                f"the saved state of fragment {fragment} has {data.size} values, expected"
                f" {words + rest}: {_ADVICE}"
            )
        return data[:words].copy(), data[words:].copy()


def _elsewhere(fragment: int, number: int) -> InputFileError:
    return InputFileError(
        f"the saved state of fragment {fragment} does not lead to the one of round {number}: {_ADVICE}"
    )
