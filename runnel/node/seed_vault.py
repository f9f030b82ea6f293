"""A shared-seed run's weights with their disk: one peer's state through results and records.

Runs in the codec thread. Contributions are a few bytes and are kept with the commitments that carry
them; one that no round took is gone, as nothing was learned yet by giving it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from runnel.errors import BugError, InputFileError, RunMismatchError
from runnel.hashing import digest
from runnel.node.actions import Handover, Prepare, Reduce, RoundKey
from runnel.node.chain import Chain, Fork
from runnel.node.keepsakes import Codecs, Contributions, Disk, Results
from runnel.node.mailbox import DecidedMerge, HandedOver
from runnel.node.moves import Landing, Moves
from runnel.node.pins import named_part
from runnel.node.records import Record, RecordKind, SliceResult
from runnel.node.saved_states import SavedStates, State, Step, newest_step, steps_of
from runnel.node.seed_entries import EntryFile
from runnel.node.spot_rounds import SpotRound
from runnel.node.storage_keys import Updates
from runnel.optim.codecs import codec_named
from runnel.optim.exchange import Merge
from runnel.optim.seed_rounds import RoundEntry
from runnel.optim.seed_store import Part, SeedStore
from runnel.types import Decision, Digest, PeerId, Verdict

_HELD_BYTES = 1 << 22
_MOST_REDUCED = 8
"""Rounds whose commitments are remembered until they are decided."""

Secret = Callable[[Digest], bytes]
_NOTHING = np.zeros(0, dtype=np.float32)


class SeedVault:
    """Ties a `SeedStore` to a disk and to the chain's records for one peer; see `Keeper`."""

    fragments = 1

    def __init__(
        self,
        store: SeedStore,
        disk: Disk,
        me: PeerId,
        entries: EntryFile,
        *,
        snapshot_every: int,
        secret: Secret | None = None,
    ) -> None:
        """`entries` keeps what rounds took for as long as the run lasts.

        `secret` gives, for a decided record, what the choice of scalars to look at again follows from;
        None looks at none.
        """
        self.store, self.entries = store, entries
        plain = codec_named("fp32")
        codecs = Codecs(sent=plain, kept=plain)
        self.contributions = Contributions(disk, codecs)
        self.results = Results(disk, codecs, max_held_bytes=_HELD_BYTES)
        self.states = SavedStates(
            store, disk, self._results_of, self._name_after, every=snapshot_every
        )
        self._me, self._every = me, snapshot_every
        self._landing: Landing | None = None
        self._secret = secret
        self._reduced: OrderedDict[Digest, Reduce] = OrderedDict()

    def state_roots(self) -> list[Digest]:
        """The name of the whole state."""
        return [self.store.root(0)]

    # -- a round

    def contribute(self, handed: HandedOver) -> Handover | None:
        """Takes what the trainer found; None if the weights have changed since it began to look.

        Raises:
            ValueError: it is no contribution of this run's method.
        """
        if handed.version != self.store.mark:
            return None
        payload = handed.snapshot.tobytes()
        problem = self.store.method.problem(payload)
        if problem:
            raise ValueError(problem)
        return Handover(
            handed.want.key,
            digest(payload),
            (0.0,),
            handed.tokens,
            handed.steps,
            handed.loss,
            len(payload),
            {},
            carried=payload,
        )

    def judge(self, _payload: bytes | memoryview, _numel: int, _claimed: float) -> Verdict:
        """Nobody sends slices here."""
        return Verdict(Decision.REJECT, "format", "contributions travel in commitments")

    def reduce(
        self, action: Reduce, payloads: Sequence[bytes | memoryview]
    ) -> tuple[SliceResult, int]:
        """Makes and durably keeps the entry of a round: the same bytes on every member."""
        shares = dict(zip(action.seats, map(bytes, payloads), strict=True))
        entry = RoundEntry(action.progress, shares).encode()
        root = digest(entry)
        self.results.keep(root, entry)
        if self._secret is not None:
            self._reduced[root] = action
            if len(self._reduced) > _MOST_REDUCED:
                self._reduced.popitem(last=False)
        return SliceResult(root, action.reducer, action.included), len(entry)

    def prepare(self, action: Prepare) -> Digest:
        """The name of the state after this result."""
        part = self._part(action.key.number, self.states.number(0), final=action.final)
        return self._prepare(action.key.number, action.slices, part)

    # -- the chain's steps

    def follow(
        self, chain: Chain, fork: Fork, path: Sequence[Digest]
    ) -> tuple[list[DecidedMerge], Updates]:
        """Gives up and adopts records; what to tell the trainer and what to write with the head.

        Raises:
            RunMismatchError: our state after a record is not the one its quorum signed.
        """
        moves, before = Moves(), self.store.version
        lost = [record for record in fork.given_up if record.kind is RecordKind.ROUND]
        taken = [record for record in fork.adopted if record.kind is RecordKind.ROUND]
        landing, merges = self._landing, list[DecidedMerge]()
        if lost:
            self.entries.give_up(min(record.number for record in lost))
        if landing is not None and path[-1] == landing.record:
            self._load(chain, path, landing, moves)
            merges = [self._merge(taken[-1].number if taken else len(path) - 2, taken)]
        else:
            if lost:
                meeting = path[: len(path) - len(fork.adopted)]
                self.store.load(0, *self.states.read(chain, meeting, 0))
                self._moved(moves, self._newest(chain, meeting), plain=False)
            merges = self._adopt_all(chain, path, taken, moves)
        if self.store.version == before:
            self.store.retract()  # an abort: what was tried is not decided
        if landing is not None and len(path) - 2 >= landing.number:
            self._landing = None
        for record in taken:
            for piece in record.slices:
                self.results.release(piece.root)
        number = len(path) - 2
        if number % self._every == 0:
            self.store.weights.require_room()
        return merges, moves.updates | self.states.keep(moves.changed)

    def land(self, landing: Landing) -> None:
        """Takes the state after a record further on in place of results."""
        self._landing = landing

    def _adopt_all(
        self, chain: Chain, path: Sequence[Digest], taken: Sequence[Record], moves: Moves
    ) -> list[DecidedMerge]:
        """Several cost one pass over the weights and one name: whoever was away follows them together."""
        newest, before = newest_step(chain, path, 0, 1)
        if not taken or newest is None:
            return []
        part = self._part(newest.record.number, before, final=newest.final)
        if len(taken) == 1:
            return [self._adopt(taken[0], part, moves)]
        entries = [self._entry(record.slices[0].root) for record in taken]
        _require_root(taken[-1], self.store.advance(entries, part))
        for record in taken:
            self.entries.append(record.number, self._entry(record.slices[0].root))
            self._moved(moves, record.number, plain=True)
        return [self._merge(record.number, [record]) for record in taken]

    def _adopt(self, record: Record, part: Part | None, moves: Moves) -> DecidedMerge:
        _require_root(record, self._prepare(record.number, record.slices, part))
        self.store.adopt((record.number, record.slices))
        self.entries.append(record.number, self._entry(record.slices[0].root))
        self._moved(moves, record.number, plain=True)
        merge = self._merge(record.number, [record])
        return replace(merge, contributions=self._contributions(record))

    def _contributions(self, record: Record) -> SpotRound | None:
        """What the record took, if this peer saw it signed."""
        action = self._reduced.pop(record.slices[0].root, None)
        if action is None or self._secret is None or action.key.number != record.number:
            return None
        return SpotRound(
            number=record.number,
            version=self.store.version - 1,
            progress=action.progress,
            commitments=action.senders,
            seats=action.seats,
            secret=self._secret(record.hash),
        )

    def _load(self, chain: Chain, path: Sequence[Digest], landing: Landing, moves: Moves) -> None:
        self.entries.may_lack = True
        state = landing.states.get(0) or self.states.read(chain, path, 0)
        self.store.load(0, *state)
        self._moved(moves, self._newest(chain, path), plain=False)

    def _moved(self, moves: Moves, number: int, *, plain: bool) -> None:
        moves.to(number, Merge(0, self.store.version, _NOTHING, _NOTHING), plain=plain)

    def _merge(self, number: int, taken: Sequence[Record]) -> DecidedMerge:
        """What the trainer is told: there are new weights, and whether its share is in them."""
        included = any(self._me == share.peer for record in taken for share in record.shares)
        return DecidedMerge(number, Merge(0, self.store.version, _NOTHING, _NOTHING), included)

    def _prepare(self, number: int, slices: tuple[SliceResult, ...], part: Part | None) -> Digest:
        return self.store.prepare((number, slices), self._entry(slices[0].root), part)

    def _part(self, number: int, before: int, *, final: bool) -> Part | None:
        return named_part(self.store.sizes[0], number, before, every=self._every, final=final)

    def _name_after(self, state: State, step: Step, before: int) -> Digest:
        return self.store.root_of(state, self._part(step.record.number, before, final=step.final))

    def _entry(self, root: Digest) -> bytes | memoryview:
        payload = self.results.get(root)
        if payload is None:
            raise BugError("a round is to be prepared without its result")
        return payload

    @staticmethod
    def _newest(chain: Chain, path: Sequence[Digest]) -> int:
        """The record of a path that the state comes from; -1 is genesis."""
        return next((step.record.number for step in steps_of(chain, path, 0, 1)), -1)

    # -- on disk

    def write_all(self, numbers: Sequence[int]) -> Updates:
        """Durably keeps the whole state, which comes from record `numbers[0]` (-1: genesis)."""
        return self.states.keep_all(numbers)

    def resume(
        self, stored: Mapping[str, bytes], chain: Chain, _is_open: Callable[[RoundKey], bool]
    ) -> Updates:
        """Reads everything back after a restart; returns what to write in one step."""
        for key in sorted(stored):
            kind, _, rest = key.partition("/")
            if kind == "result":
                self.results.recall(Digest(bytes.fromhex(rest)))
        for key, value in sorted(stored.items()):
            kind, _, rest = key.partition("/")
            if kind == "state":
                self.states.load(int(rest), value, chain)
        self.entries.mend(chain, chain.path, self._held)
        return self.write_all([self.states.number(0)])

    def _held(self, root: Digest) -> bytes | None:
        try:
            payload = self.results.get(root)
        except InputFileError:  # the history has a gap then, and says so when it is exported
            return None
        return None if payload is None else bytes(payload)

    def _results_of(self, step: Step) -> tuple[list[bytes | memoryview], bool]:
        """A round's result."""
        payload = self.results.get(step.record.slices[0].root)
        if payload is None:
            raise InputFileError(
                f"the result of round {step.record.number} is not on the disk any more, expected it"
                " behind the saved state: move this peer's folder away and join again"
            )
        return [payload], False


def _require_root(record: Record, root: Digest) -> None:
    if root != record.state_root:
        raise RunMismatchError(
            f"after round {record.number} our state is {root[:4].hex()}, the swarm's"
            f" {record.state_root[:4].hex()}: move this peer's folder away and join again"
        )
