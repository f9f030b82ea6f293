"""The outer store with its disk: one peer's state through contributions, results and records.

Runs in the codec thread. Contributions are kept before they are committed to, results before they are
voted on; shared state, residual and head change in one write.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runnel.dht.wire import pack, unpack
from runnel.errors import BugError, InputFileError, PeerError, RunMismatchError
from runnel.hashing import digest
from runnel.kernels import norm
from runnel.node.actions import Handover, Prepare, Reduce, RoundKey
from runnel.node.chain import Chain, Fork
from runnel.node.keepsakes import (
    Contribution,
    Contributions,
    Disk,
    Results,
    round_key,
    state_name,
)
from runnel.node.mailbox import DecidedMerge, HandedOver
from runnel.node.records import Record, RecordKind, SliceResult
from runnel.node.rounds import slice_bounds
from runnel.node.storage_keys import Updates
from runnel.optim.store import Array, Outcome, OuterStore, raw
from runnel.protocols import Float32
from runnel.types import Decision, Digest, PeerId, Verdict
from runnel.verification.screening import check_finite, check_norm_claim

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Landing:
    """A record further on, its number, and the states that change up to it.

    States are parameters and momentum, by fragment.
    """

    record: Digest
    number: int
    states: Mapping[int, tuple[Float32, Float32]]


class Vault:
    """Ties an `OuterStore` to a disk and to the chain's records for one peer."""

    def __init__(
        self, store: OuterStore, disk: Disk, me: PeerId, *, final_averaging: bool = True
    ) -> None:
        self.store = store
        self.contributions = Contributions(disk)
        self.results = Results(disk)
        self._disk, self._me = disk, me
        self._final_averaging = final_averaging
        self._landing: Landing | None = None
        self._numbers = [-1] * len(store.sizes)

    @property
    def fragments(self) -> int:
        """How many fragments there are."""
        return len(self.store.sizes)

    def state_roots(self) -> list[Digest]:
        """The names of all fragments' shared states."""
        return [self.store.root(fragment) for fragment in range(self.fragments)]

    # -- a round

    def contribute(self, handed: HandedOver) -> Handover | None:
        """Encodes and durably keeps a contribution; None if the trainer has merges to apply first.

        Raises:
            ValueError: the values are not finite.
        """
        want = handed.want
        bounds = slice_bounds(self.store.sizes[want.fragment], want.num_slices)
        encoded = self.store.encode(
            want.key, want.fragment, handed.snapshot, version=handed.version, bounds=bounds
        )
        if encoded is None:
            return None
        contribution = Contribution.of(want.fragment, encoded.payloads)
        updates = self.contributions.keep(want.key, contribution, encoded.drift)
        return Handover(
            want.key,
            contribution.root,
            encoded.norms,
            handed.tokens,
            handed.steps,
            handed.loss,
            sum(map(len, encoded.payloads)),
            updates,
        )

    def judge(self, payload: bytes | memoryview, numel: int, claimed: float) -> Verdict:
        """Whether a payload slice decodes, is finite and has the norm its sender declared."""
        values = np.empty(numel, dtype=np.float32)
        try:
            self.store.codec.decode(payload, values)
        except PeerError as error:
            return Verdict(Decision.REJECT, "format", str(error))
        finite = check_finite(values)
        return check_norm_claim(claimed, norm(values)) if finite.accepted else finite

    def reduce(
        self, action: Reduce, payloads: Sequence[bytes | memoryview]
    ) -> tuple[SliceResult, int]:
        """Aggregates and durably keeps a slice; the result and its size in bytes."""
        senders = action.senders
        numel = self.store.sizes[action.key.number % self.fragments]
        low, high = slice_bounds(numel, len(senders[0].slice_norms))[action.slice_index]
        weights = np.array([c.tokens for c in senders], dtype=np.float32)
        norms = np.array([float(np.hypot.reduce(c.slice_norms)) for c in senders], dtype=np.float32)
        own = next((i for i, c in enumerate(senders) if c.peer == self._me), -1)
        reduced = self.store.reduce(payloads, weights, norms, numel=high - low, own=own)
        root = digest(reduced.payload)
        self.results.keep(root, reduced.payload, reduced.loss)
        return SliceResult(root, self._me, action.included), len(reduced.payload)

    def prepare(self, action: Prepare) -> Digest:
        """The name of the fragment's state after these results."""
        return self._prepare(action.key.number, action.slices, final=action.final)

    # -- the chain's steps

    def follow(
        self, chain: Chain, fork: Fork, path: Sequence[Digest]
    ) -> tuple[list[DecidedMerge], Updates]:
        """Gives up and adopts records in order; what the trainer must merge and what to write with the head.

        `path` is the path followed afterwards; the chain itself may have moved on meanwhile.

        Raises:
            RunMismatchError: our state after a record is not the one its quorum signed.
        """
        updates: Updates = {}
        lost = [record for record in fork.given_up if record.kind is RecordKind.ROUND]
        taken = [record for record in fork.adopted if record.kind is RecordKind.ROUND]
        merges = [self._give_up(chain, record) for record in lost]
        landing = self._landing
        if landing is not None and path[-1] == landing.record:
            merges += self._leap(chain, taken, path, landing.states, updates)
        else:
            merges += [self._adopt(chain, record, path, updates) for record in taken]
        if landing is not None and len(path) - 2 >= landing.number:
            self._landing = None
        for key in self.contributions.rounds():
            if key.number <= len(path) - 2 or key.base not in path[-64:]:
                self.store.forget(key)
                self.contributions.release(key)
        for record in taken:
            for piece in record.slices:
                self.results.release(piece.root)
        for fragment in {merge.merge.fragment for merge in merges}:
            self._write_state(fragment, updates)
        return merges, updates

    def _prepare(self, number: int, slices: tuple[SliceResult, ...], *, final: bool) -> Digest:
        fragment = number % self.fragments
        bounds = slice_bounds(self.store.sizes[fragment], len(slices))
        payloads = [self.results.get(piece.root) for piece in slices]
        held = [payload for payload in payloads if payload is not None]
        if len(held) != len(payloads):
            raise BugError(f"round {number} is to be prepared without all of its results")
        averaging = final and self._final_averaging
        return self.store.prepare((number, slices), fragment, bounds, held, final=averaging)

    def _adopt(
        self, chain: Chain, record: Record, path: Sequence[Digest], updates: Updates
    ) -> DecidedMerge:
        outcome, key = self._outcome(chain, record, path[: record.number + 1])
        root = self._prepare(record.number, record.slices, final=outcome.final)
        if root != record.state_root:
            raise RunMismatchError(
                f"after round {record.number} our state is {root[:4].hex()}, the swarm's"
                f" {record.state_root[:4].hex()}: move this peer's folder away and join again"
            )
        handed = self.store.handed(key)
        if handed is not None and handed.snapshot is not None:
            updates |= self.contributions.taken_out(key, outcome.fragment, outcome.included)
        merge = self.store.adopt((record.number, record.slices), outcome)
        self._numbers[outcome.fragment] = record.number
        return DecidedMerge(record.number, merge, any(outcome.included))

    def land(self, landing: Landing) -> None:
        """Takes what a step to a record further on needs in place of results."""
        self._landing = landing

    def _leap(
        self,
        chain: Chain,
        taken: Sequence[Record],
        path: Sequence[Digest],
        states: Mapping[int, tuple[Float32, Float32]],
        updates: Updates,
    ) -> list[DecidedMerge]:
        """Takes up all these records at once, fragment by fragment."""
        outcomes: dict[int, list[Outcome]] = {}
        for record in taken:
            outcome, key = self._outcome(chain, record, path[: record.number + 1])
            handed = self.store.handed(key)
            if handed is not None and handed.snapshot is not None:
                updates |= self.contributions.taken_out(key, outcome.fragment, outcome.included)
            outcomes.setdefault(outcome.fragment, []).append(outcome)
        numbers = {record.number % self.fragments: record.number for record in taken}
        for fragment, number in numbers.items():
            self._numbers[fragment] = number
        return [
            DecidedMerge(
                numbers[fragment],
                self.store.leap(fragment, *states[fragment], outcomes[fragment]),
                any(any(outcome.included) for outcome in outcomes[fragment]),
            )
            for fragment in sorted(outcomes)
        ]

    def _give_up(self, chain: Chain, record: Record) -> DecidedMerge:
        path = chain.lineage(record.parent)
        outcome, _ = self._outcome(chain, record, path)
        before = _last_before(chain, record, path, self.fragments)
        theta, momentum = self.read_state(outcome.fragment, before)
        merge = self.store.give_up(outcome, theta, momentum)
        self._numbers[outcome.fragment] = before
        return DecidedMerge(record.number, merge, included=False)

    def _outcome(
        self, chain: Chain, record: Record, path: Sequence[Digest]
    ) -> tuple[Outcome, RoundKey]:
        base = chain.base_of(record.number, path)
        key, fragment = RoundKey(record.number, base), record.number % self.fragments
        bounds = slice_bounds(self.store.sizes[fragment], len(record.slices))
        kept, final = self.contributions.get(key), chain.record(base).closing
        if kept is None:  # what this peer gave from a folder that is gone needs no settling
            none = [None] * len(bounds)
            return Outcome(
                key, fragment, bounds, (), (False,) * len(bounds), tuple(none), final
            ), key
        share = record.share_of(self._me)
        included = tuple(share in piece.included for piece in record.slices)
        losses = tuple(self._loss(p.root) if p.reducer == self._me else None for p in record.slices)
        return Outcome(key, fragment, bounds, kept.payloads, included, losses, final), key

    def _loss(self, root: Digest) -> Array | None:
        """What our encoding of a result lost; a rounding that is gone from disk is no reason to stop."""
        try:
            return self.results.loss(root)
        except InputFileError as error:
            logger.warning("%s; going on without this rounding", error)
            return None

    # -- on disk

    def write_all(self, numbers: Sequence[int]) -> Updates:
        """Durably keeps the whole state; `numbers[f]` is the record that fragment f comes from (-1: genesis)."""
        updates: Updates = {}
        self._numbers = list(numbers)
        for fragment in range(self.fragments):
            self._write_state(fragment, updates)
            updates[f"drift/{fragment}"] = None
        return updates

    def read_state(self, fragment: int, number: int) -> tuple[Float32, Float32]:
        """Parameters and momentum of a fragment after record `number` (-1: at genesis)."""
        data = np.frombuffer(self._disk.read_blob(state_name(fragment, number)), dtype=np.float32)
        numel = self.store.sizes[fragment]
        if data.size != 2 * numel:
            raise InputFileError(
                f"the saved state of fragment {fragment} has {data.size} values, expected {2 * numel}:"
                " move this peer's folder away and join again"
            )
        return data[:numel].copy(), data[numel:].copy()

    def resume(self, stored: Mapping[str, bytes], is_open: Callable[[RoundKey], bool]) -> Updates:
        """Reads everything back after a restart; returns what to write in one step.

        What was handed over and still in the trainer's parameters goes to the residual, as those
        are gone.
        """
        for key, value in sorted(stored.items()):
            kind, _, rest = key.partition("/")
            if kind == "state":
                self._resume_state(int(rest), value)
            elif kind == "result":
                self.results.recall(Digest(bytes.fromhex(rest)))
        for key, value in sorted(stored.items()):
            kind, _, rest = key.partition("/")
            if kind == "kept":
                self._resume_contribution(round_key(rest), is_open)
            elif kind == "drift":
                self._resume_drift(int(rest), value)
        return self.write_all(self._numbers)

    def _write_state(self, fragment: int, updates: Updates) -> None:
        store, number = self.store, self._numbers[fragment]
        theta, momentum = raw(store.parameters(fragment)), raw(store.momentum(fragment))
        self._disk.write_blob(state_name(fragment, number), [theta, momentum])
        owed = raw(store.residual(fragment))
        # a name of its own for each content: the old file stays until the key names the new one
        residual = f"residual-{fragment}-{number}-{digest(owed)[:8].hex()}"
        self._disk.write_blob(residual, [owed])
        updates[f"state/{fragment}"] = pack([number, residual])

    def _resume_state(self, fragment: int, value: bytes) -> None:
        number, residual = unpack(value, max_bytes=256)
        theta, momentum = self.read_state(fragment, number)
        owed = np.frombuffer(self._disk.read_blob(residual), dtype=np.float32)
        self.store.load(fragment, theta, momentum, owed)
        self._numbers[fragment] = number

    def _resume_contribution(self, key: RoundKey, is_open: Callable[[RoundKey], bool]) -> None:
        self.contributions.recall(key)
        contribution = self.contributions.get(key) if is_open(key) else None
        if contribution is not None:
            nothing = np.zeros(1, dtype=np.float32)  # its drift is recalled by fragment
            self.store.recall(key, contribution.fragment, contribution.payloads, nothing)

    def _resume_drift(self, fragment: int, value: bytes) -> None:
        drift, included = self.contributions.read_drift(value)
        bounds = slice_bounds(self.store.sizes[fragment], len(included))
        for (low, high), gone in zip(bounds, included, strict=True):
            if not gone:
                self.store.residual(fragment)[low:high] += drift[low:high]


def _last_before(chain: Chain, record: Record, path: Sequence[Digest], fragments: int) -> int:
    """Number of the record that last changed the fragment before `record`, on its own path; -1 if none."""
    fragment = record.number % fragments
    for name in reversed(path):
        earlier = chain.record(name)
        if earlier.kind is RecordKind.ROUND and earlier.number % fragments == fragment:
            return earlier.number
    return -1
