"""The outer store with its disk: one peer's state through contributions, results and records.

Runs in the codec thread. Contributions are kept before they are committed to, results before they are
voted on; the head and what leads to its states change in one write (`node/saved_states.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from runnel.errors import BugError, InputFileError, PeerError, RunMismatchError
from runnel.hashing import digest
from runnel.node.actions import Handover, Prepare, Reduce, RoundKey
from runnel.node.chain import Chain, Fork
from runnel.node.commitments import MAX_NORM
from runnel.node.keepsakes import (
    Codecs,
    Contribution,
    Contributions,
    Disk,
    Results,
    read_drift_value,
    round_key,
)
from runnel.node.mailbox import DecidedMerge, HandedOver
from runnel.node.moves import Landing, Moves, rounds_by_fragment, warn_of_forgotten
from runnel.node.owed import owed_key
from runnel.node.records import Record, RecordKind, SliceResult
from runnel.node.rounds import slice_bounds
from runnel.node.saved_states import SavedStates, Step, steps_of
from runnel.node.storage_keys import Updates
from runnel.node.window_trace import WindowNames
from runnel.optim.codecs import codec_named
from runnel.optim.store import Outcome, OuterStore
from runnel.protocols import Float32
from runnel.types import Decision, Digest, PeerId, Verdict
from runnel.verification.screening import check_norm_claim

_KEPT_CODEC = "int8"
"""What is kept of roundings, to be read after a crash: four times less to write than what they are."""

_HELD_FRAGMENTS = 8
"""Results of so many whole fragments may be in memory."""


class Vault:
    """Ties an `OuterStore` to a disk and to the chain's records for one peer."""

    def __init__(
        self,
        store: OuterStore,
        disk: Disk,
        me: PeerId,
        *,
        snapshot_every: int,
        final_averaging: bool = True,
    ) -> None:
        self.store = store
        codecs = Codecs(sent=store.codec, kept=codec_named(_KEPT_CODEC))
        self.contributions = Contributions(disk, codecs)
        held = _HELD_FRAGMENTS * store.result_bytes(max(store.sizes))
        self.results = Results(disk, codecs, max_held_bytes=held)
        self.states = SavedStates(store, disk, self._results_of, every=snapshot_every)
        self._me, self._final_averaging = me, final_averaging
        self._names = WindowNames()
        self._landing: Landing | None = None

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
        counted = self.store.counted(want.fragment)
        window = self._names.of(want.fragment, handed.end, handed.snapshot, counted)
        bounds = slice_bounds(self.store.sizes[want.fragment], want.num_slices)
        rounding = self.contributions.rounding(bounds, self.store.take_rooms)
        encoded = self.store.encode(
            want.key,
            want.fragment,
            handed.snapshot,
            version=handed.version,
            bounds=bounds,
            keep=rounding.add,
        )
        if encoded is None:
            return None
        if math.hypot(*encoded.norms) > MAX_NORM:
            self.store.forget(want.key)
            raise ValueError(
                f"the model moved by more than {MAX_NORM:g}: its training has diverged"
            )
        contribution = Contribution.of(want.fragment, encoded.payloads)
        updates = self.contributions.keep(want.key, contribution, rounding.kept)
        return Handover(
            want.key,
            contribution.root,
            encoded.norms,
            handed.tokens,
            handed.steps,
            handed.loss,
            sum(map(len, encoded.payloads)),
            updates,
            start=self.store.start(want.key, bounds),
            window=window,
        )

    def judge(self, payload: bytes | memoryview, numel: int, claimed: float) -> Verdict:
        """Whether a payload slice is one of finite values and has the norm its sender declared."""
        try:
            decoded = self.store.codec.norm(payload, numel)
        except PeerError as error:
            return Verdict(Decision.REJECT, "format", str(error))
        return check_norm_claim(claimed, decoded)

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
        reduced = self.store.reduce(
            payloads, weights, norms, numel=high - low, own=own, key=action.key
        )
        root = digest(reduced.payload)
        self.results.keep(root, reduced.payload, reduced.loss)
        return SliceResult(root, action.reducer, action.included), len(reduced.payload)

    def prepare(self, action: Prepare) -> Digest:
        """The name of the fragment's state after these results."""
        return self._prepare(action.key.number, action.slices, final=action.final)

    # -- the chain's steps

    def follow(
        self, chain: Chain, fork: Fork, path: Sequence[Digest]
    ) -> tuple[list[DecidedMerge], Updates]:
        """Gives up and adopts records; what the trainer must merge and what to write with the head.

        `path` is the path followed afterwards; the chain itself may have moved on meanwhile.

        Raises:
            RunMismatchError: our state after a record is not the one its quorum signed.
        """
        moves = Moves()
        lost = rounds_by_fragment(fork.given_up, self.fragments)
        taken = [record for record in fork.adopted if record.kind is RecordKind.ROUND]
        landing = self._landing
        if landing is not None and path[-1] == landing.record:
            merges = self._leap(chain, lost, taken, path, landing.states, moves)
        else:
            meeting = path[: len(path) - len(fork.adopted)]
            merges = [self._give_up(chain, lost[f], meeting, moves) for f in sorted(lost)]
            merges += [self._adopt(chain, record, path, moves) for record in taken]
        warn_of_forgotten(fork.given_up, self._me, self.contributions.rounds())
        if landing is not None and len(path) - 2 >= landing.number:
            self._landing = None
        for key in self.contributions.rounds():
            if key.number <= len(path) - 2 or key.base not in path[-64:]:
                self.store.forget(key)
                self.contributions.release(key)
        for record in taken:
            for piece in record.slices:
                self.results.release(piece.root)
        return merges, moves.updates | self.states.keep(moves.changed)

    def _prepare(self, number: int, slices: tuple[SliceResult, ...], *, final: bool) -> Digest:
        turn, fragment = divmod(number, self.fragments)
        bounds = slice_bounds(self.store.sizes[fragment], len(slices))
        held = self._held(slices)
        if len(held) != len(slices):
            raise BugError(f"round {number} is to be prepared without all of its results")
        tag, averaging = (number, slices), final and self._final_averaging
        return self.store.prepare(tag, fragment, bounds, held, turn=turn, final=averaging)

    def _adopt(
        self, chain: Chain, record: Record, path: Sequence[Digest], moves: Moves
    ) -> DecidedMerge:
        outcome, key = self._outcome(chain, record, path[: record.number + 1])
        root = self._prepare(record.number, record.slices, final=outcome.final)
        if root != record.state_root:
            raise RunMismatchError(
                f"after round {record.number} our state is {root[:4].hex()}, the swarm's"
                f" {record.state_root[:4].hex()}: move this peer's folder away and join again"
            )
        in_trainer = self._take_out(outcome, key, moves)
        merge = self.store.adopt((record.number, record.slices), outcome)
        plain = in_trainer or not any(outcome.included)
        moves.to(record.number, merge, plain=plain)
        norms = [
            self._norm(piece, bounds)
            for piece, bounds in zip(record.slices, outcome.bounds, strict=True)
        ]
        tokens = self._own_tokens(record, key)
        return DecidedMerge(
            record.number,
            merge,
            any(outcome.included),
            math.hypot(*norms),
            tokens,
            plain=plain,
            progress=record.progress,
        )

    def _norm(self, piece: SliceResult, bounds: tuple[int, int]) -> float:
        payload = self.results.get(piece.root)
        return self.store.norm_of_result(payload, bounds[1] - bounds[0]) if payload else 0.0

    def _take_out(self, outcome: Outcome, key: RoundKey, moves: Moves) -> bool:
        """Whether this peer's contribution is still in its trainer's values; notes what is taken out."""
        if any(outcome.included):
            moves.updates[owed_key(outcome.fragment)] = None
        handed = self.store.handed(key)
        if handed is None or handed.snapshot is None:
            return False
        moves.updates |= self.contributions.taken_out(key, outcome.fragment, outcome.included)
        return True

    def land(self, landing: Landing) -> None:
        """Takes what a step to a record further on needs in place of results."""
        self._landing = landing

    def _leap(
        self,
        chain: Chain,
        lost: Mapping[int, Sequence[Record]],
        taken: Sequence[Record],
        path: Sequence[Digest],
        states: Mapping[int, tuple[Float32, Float32]],
        moves: Moves,
    ) -> list[DecidedMerge]:
        """Gives up and takes up all these records at once, fragment by fragment."""
        outcomes: dict[int, list[Outcome]] = {fragment: [] for fragment in lost}
        tokens = {fragment: -self._tokens_of(chain, records) for fragment, records in lost.items()}
        for record in taken:
            outcome, key = self._outcome(chain, record, path[: record.number + 1])
            self._take_out(outcome, key, moves)
            outcomes.setdefault(outcome.fragment, []).append(outcome)
            own = self._own_tokens(record, key)
            tokens[outcome.fragment] = tokens.get(outcome.fragment, 0) + own
        merges = []
        for fragment in sorted(outcomes):
            number = self._newest(chain, path, fragment)
            again = self._outcomes(chain, lost.get(fragment, ()))
            # what was not fetched has no round on the path after the fork: the disk has it
            theta, momentum = states.get(fragment) or self.states.read(chain, path, fragment)
            merge = self.store.leap(fragment, theta, momentum, outcomes[fragment], lost=again)
            moves.to(number, merge, plain=False)
            included = any(any(outcome.included) for outcome in outcomes[fragment])
            progress = chain.record(path[-1]).progress
            owned = tokens[fragment]
            merges.append(DecidedMerge(number, merge, included, tokens=owned, progress=progress))
        return merges

    def _give_up(
        self, chain: Chain, lost: Sequence[Record], meeting: Sequence[Digest], moves: Moves
    ) -> DecidedMerge:
        """Takes a fragment back over all these records at once: states in between need not be there."""
        fragment = lost[0].number % self.fragments
        tokens = self._tokens_of(chain, lost)
        state = self.states.read(chain, meeting, fragment)
        merge = self.store.leap(fragment, *state, [], lost=self._outcomes(chain, lost))
        moves.to(self._newest(chain, meeting, fragment), merge, plain=False)
        return DecidedMerge(lost[0].number, merge, included=False, tokens=-tokens)

    def _outcomes(self, chain: Chain, lost: Iterable[Record]) -> Iterator[Outcome]:
        for record in lost:
            yield self._outcome(chain, record, chain.lineage(record.parent))[0]

    def _tokens_of(self, chain: Chain, records: Iterable[Record]) -> int:
        """Behind this peer's shares in these records."""
        keys = ((record, chain.lineage(record.parent)) for record in records)
        return sum(
            self._own_tokens(record, RoundKey(record.number, chain.base_of(record.number, path)))
            for record, path in keys
        )

    def _own_tokens(self, record: Record, key: RoundKey) -> int:
        """Behind this peer's share in a record; 0 for what it gave from a folder that is gone."""
        index = record.share_of(self._me)
        if key not in self.contributions:
            return 0
        included = any(index in piece.included for piece in record.slices)
        return record.shares[index].tokens if included else 0

    def _newest(self, chain: Chain, path: Sequence[Digest], fragment: int) -> int:
        """The record of a path that a fragment's state comes from; -1 is genesis."""
        steps = steps_of(chain, path, fragment, self.fragments)
        return next((step.record.number for step in steps), -1)

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
        losses = tuple(
            self.results.loss_at_hand(p.root) if p.reducer == self._me else None
            for p in record.slices
        )
        return Outcome(key, fragment, bounds, kept.payloads, included, losses, final), key

    # -- on disk

    def write_all(self, numbers: Sequence[int]) -> Updates:
        """Durably keeps the whole state; `numbers[f]` is the record that fragment f comes from (-1: genesis)."""
        updates: Updates = {f"drift/{fragment}": None for fragment in range(self.fragments)}
        return updates | self.states.keep_all(numbers)

    def resume(
        self, stored: Mapping[str, bytes], chain: Chain, is_open: Callable[[RoundKey], bool]
    ) -> Updates:
        """Reads everything back after a restart; returns what to write in one step.

        What was handed over and still in the trainer's parameters goes to the residual, as those
        are gone.
        """
        rows = [(*key.partition("/")[::2], value) for key, value in sorted(stored.items())]
        for kind, rest, _ in rows:
            if kind == "result":
                self.results.recall(Digest(bytes.fromhex(rest)))
            elif kind == "kept":
                self.contributions.recall(round_key(rest))
        for kind, rest, value in rows:
            if kind == "state":
                for step in self.states.load(int(rest), value, chain):
                    self._settle_again(chain, step.record)
        for kind, rest, value in rows:
            if kind == "kept":
                self._resume_contribution(round_key(rest), is_open)
            elif kind == "drift":
                self._resume_drift(int(rest), value)
        return self.write_all([self.states.number(f) for f in range(self.fragments)])

    def _settle_again(self, chain: Chain, record: Record) -> None:
        outcome, key = self._outcome(chain, record, chain.path)
        taken = any(outcome.included)
        nothing = np.zeros(0, dtype=np.float32)
        drift = self.contributions.drift(key, outcome.bounds) if taken else nothing
        self.store.settle_again(outcome, drift)

    def _results_of(self, step: Step) -> tuple[list[bytes | memoryview], bool]:
        """A round's results, and whether its step is a plain averaging."""
        held = self._held(step.record.slices)
        if len(held) != len(step.record.slices):
            raise InputFileError(
                f"the results of round {step.record.number} are not on the disk any more, expected"
                " them behind the saved state: move this peer's folder away and join again"
            )
        return held, step.final and self._final_averaging

    def _held(self, slices: Sequence[SliceResult]) -> list[bytes | memoryview]:
        payloads = (self.results.get(piece.root) for piece in slices)
        return [payload for payload in payloads if payload is not None]

    def _resume_contribution(self, key: RoundKey, is_open: Callable[[RoundKey], bool]) -> None:
        contribution = self.contributions.get(key) if is_open(key) else None
        if contribution is not None:
            nothing = np.zeros(1, dtype=np.float32)  # its drift is recalled by fragment
            self.store.recall(key, contribution.fragment, contribution.payloads, nothing)

    def _resume_drift(self, fragment: int, value: bytes) -> None:
        key, included = read_drift_value(value)
        residual = self.store.residual(fragment)
        bounds = slice_bounds(residual.size, len(included))
        drift = self.contributions.drift(key, bounds)
        for (low, high), gone in zip(bounds, included, strict=True):
            if not gone:
                residual[low:high] += drift[low:high]
