"""The outer store on disk. Runs in the codec thread.

Contributions are kept before they are committed to, results before they are voted on, state and
residual with each step of the chain.

A blob is written first and named by a key afterwards; the key's write is the moment it counts. Blobs
that no key names are left over from a crash and removed at the next start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runnel.dht.wire import pack, unpack
from runnel.errors import BugError, InputFileError, PeerError, RunMismatchError
from runnel.hashing import digest, merkle_path, merkle_root
from runnel.kernels import norm
from runnel.node.actions import Handover, Prepare, Reduce, RoundKey
from runnel.node.chain import Chain, Fork
from runnel.node.mailbox import DecidedMerge, HandedOver
from runnel.node.records import Record, RecordKind, SliceResult
from runnel.node.rounds import slice_bounds
from runnel.node.storage_keys import Updates
from runnel.optim.store import Array, Outcome, OuterStore, raw
from runnel.protocols import Float32
from runnel.types import Decision, Digest, PeerId, Verdict
from runnel.verification.screening import check_finite, check_norm_claim


class Disk(Protocol):
    """Durable keys and blobs; `DurableLog` is the real one."""

    def write_blob(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        """Durably writes a file whose content is checked when read."""
        ...

    def read_blob(self, name: str) -> bytes:
        """The content; InputFileError if it is missing or damaged."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """A contribution of ours, as it was committed: payloads by slice and the drift behind them."""

    fragment: int
    payloads: tuple[bytes, ...]


class Vault:
    """Ties an `OuterStore` to a disk and to the chain's records for one peer."""

    def __init__(
        self,
        store: OuterStore,
        disk: Disk,
        me: PeerId,
        *,
        keep_rounds: int,
        final_averaging: bool = True,
    ) -> None:
        """`keep_rounds` is how many decided rounds' payloads and results stay to be served or taken back."""
        self.store = store
        self._disk, self._me, self._keep_rounds = disk, me, keep_rounds
        self._final_averaging = final_averaging
        self._kept: dict[RoundKey, Kept] = {}
        self._results: dict[Digest, bytes] = {}
        self._losses: dict[Digest, Array] = {}
        self._drift_of: dict[int, RoundKey] = {}
        self._numbers = [-1] * len(store.sizes)

    @property
    def fragments(self) -> int:
        """How many fragments there are."""
        return len(self.store.sizes)

    # -- contributions

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
        kept = Kept(want.fragment, encoded.payloads)
        name = _contribution_name(want.key)
        head = pack([want.fragment, [len(payload) for payload in kept.payloads]])
        self._disk.write_blob(
            name,
            [
                len(head).to_bytes(4, "big"),
                head,
                *kept.payloads,
                raw(encoded.drift),
            ],
        )
        self._kept[want.key] = kept
        self._drift_of[want.fragment] = want.key
        updates: Updates = {
            f"kept/{want.key.number}/{want.key.base.hex()}": b"",
            f"drift/{want.fragment}": pack([name, [False] * len(bounds)]),
        }
        return Handover(
            want.key,
            merkle_root([digest(payload) for payload in kept.payloads]),
            encoded.norms,
            handed.tokens,
            handed.steps,
            handed.loss,
            sum(map(len, kept.payloads)),
            updates,
        )

    def payload(self, key: RoundKey, index: int) -> tuple[bytes, tuple[Digest, ...]]:
        """One slice of a kept contribution and its Merkle path."""
        payloads = self._kept[key].payloads
        return payloads[index], merkle_path([digest(payload) for payload in payloads], index)

    def has_payload(self, key: RoundKey) -> bool:
        """Whether our contribution to a round is kept."""
        return key in self._kept

    # -- results

    def state_roots(self) -> list[Digest]:
        """The names of all fragments' shared states."""
        return [self.store.root(fragment) for fragment in range(self.fragments)]

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
        fragment = action.key.number % self.fragments
        low, high = slice_bounds(self.store.sizes[fragment], len(senders[0].slice_norms))[
            action.slice_index
        ]
        weights = np.array([c.tokens for c in senders], dtype=np.float32)
        norms = np.array([float(np.hypot.reduce(c.slice_norms)) for c in senders], dtype=np.float32)
        own = next((i for i, c in enumerate(senders) if c.peer == self._me), -1)
        reduced = self.store.reduce(payloads, weights, norms, numel=high - low, own=own)
        root = digest(reduced.payload)
        self._losses[root] = reduced.loss
        self.keep_result(root, reduced.payload)
        return SliceResult(root, self._me, action.included), len(reduced.payload)

    def keep_result(self, root: Digest, payload: bytes) -> None:
        """Durably keeps a result's bytes."""
        self._disk.write_blob(_result_name(root), [payload])
        self._results[root] = payload

    def result(self, root: Digest) -> bytes | None:
        """A kept result's bytes."""
        return self._results.get(root)

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
        merges += [self._adopt(chain, record, path, updates) for record in taken]
        for key in list(self._kept):
            if key.number <= len(path) - 2 or key.base not in path[-64:]:
                self.store.forget(key)
        for fragment in {merge.merge.fragment for merge in merges}:
            self._write_state(fragment, updates)
        return merges, updates

    def _prepare(self, number: int, slices: tuple[SliceResult, ...], *, final: bool) -> Digest:
        fragment = number % self.fragments
        bounds = slice_bounds(self.store.sizes[fragment], len(slices))
        payloads = [self._results[piece.root] for piece in slices]
        averaging = final and self._final_averaging
        return self.store.prepare((number, slices), fragment, bounds, payloads, final=averaging)

    def _adopt(
        self, chain: Chain, record: Record, path: Sequence[Digest], updates: Updates
    ) -> DecidedMerge:
        outcome = self._outcome(chain, record, path[: record.number + 1])
        root = self._prepare(record.number, record.slices, final=outcome.final)
        if root != record.state_root:
            raise RunMismatchError(
                f"after round {record.number} our state is {root[:4].hex()}, the swarm's"
                f" {record.state_root[:4].hex()}: move this peer's folder away and join again"
            )
        handed = self.store.handed(outcome.key)
        live = handed is not None and handed.snapshot is not None
        merge = self.store.adopt((record.number, record.slices), outcome)
        if live and self._drift_of.get(outcome.fragment) == outcome.key:
            name = _contribution_name(self._drift_of[outcome.fragment])
            updates[f"drift/{outcome.fragment}"] = pack([name, list(outcome.included)])
        self._numbers[outcome.fragment] = record.number
        return DecidedMerge(record.number, merge, any(outcome.included))

    def _give_up(self, chain: Chain, record: Record) -> DecidedMerge:
        path = chain.lineage(record.parent)
        outcome = self._outcome(chain, record, path)
        before = _last_before(chain, record, path, self.fragments)
        theta, momentum = self.read_state(outcome.fragment, before)
        merge = self.store.give_up(outcome, theta, momentum)
        self._numbers[outcome.fragment] = before
        return DecidedMerge(record.number, merge, included=False)

    def _outcome(self, chain: Chain, record: Record, path: Sequence[Digest]) -> Outcome:
        base = chain.base_of(record.number, path)
        key, fragment = RoundKey(record.number, base), record.number % self.fragments
        share = record.share_of(self._me)
        kept = self._kept.get(key)
        included = tuple(share in piece.included for piece in record.slices)
        if any(included) and kept is None:
            raise BugError(
                f"round {record.number} includes a contribution of ours that is not kept"
            )
        return Outcome(
            key,
            fragment,
            slice_bounds(self.store.sizes[fragment], len(record.slices)),
            kept.payloads if kept else (),
            included,
            tuple(
                self._losses.get(p.root) if p.reducer == self._me else None for p in record.slices
            ),
            final=chain.record(base).closing,
        )

    def _write_state(self, fragment: int, updates: Updates) -> None:
        store, number = self.store, self._numbers[fragment]
        theta, momentum = raw(store.parameters(fragment)), raw(store.momentum(fragment))
        self._disk.write_blob(state_name(fragment, number), [theta, momentum])
        owed = raw(store.residual(fragment))
        # a name of its own for each content: the old file stays until the key names the new one
        residual = f"residual-{fragment}-{digest(owed)[:8].hex()}"
        self._disk.write_blob(residual, [owed])
        updates[f"state/{fragment}"] = pack([number, residual])

    # -- reading back

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
                f"the saved state of fragment {fragment} has {data.size} values, not {2 * numel}"
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
                number, residual = unpack(value, max_bytes=256)
                theta, momentum = self.read_state(int(rest), number)
                kept = self._disk.read_blob(residual) if residual else None
                owed = np.frombuffer(kept, dtype=np.float32) if kept else None
                self.store.load(int(rest), theta, momentum, owed)
                self._numbers[int(rest)] = number
            elif kind == "result":
                self._results[Digest(bytes.fromhex(rest))] = self._disk.read_blob(f"result-{rest}")
        for key in stored:
            if key.startswith("kept/"):
                _, number, base = key.split("/")
                self._recall(RoundKey(int(number), Digest(bytes.fromhex(base))), is_open)
        for key, value in stored.items():
            if key.startswith("drift/"):
                self._recall_drift(int(key[6:]), *unpack(value, max_bytes=4096))
        return self.write_all(self._numbers)

    def _recall(self, key: RoundKey, is_open: Callable[[RoundKey], bool]) -> None:
        fragment, payloads, _ = _read_contribution(self._disk.read_blob(_contribution_name(key)))
        self._kept[key] = Kept(fragment, payloads)
        if is_open(key):
            self.store.recall(key, fragment, payloads, np.zeros(1, dtype=np.float32))

    def _recall_drift(self, fragment: int, name: str, included: list[bool]) -> None:
        _, _, drift = _read_contribution(self._disk.read_blob(name))
        bounds = slice_bounds(self.store.sizes[fragment], len(included))
        for (low, high), gone in zip(bounds, included, strict=True):
            if not gone:
                self.store.residual(fragment)[low:high] += drift[low:high]

    # -- letting go

    def expire(
        self, stored: Mapping[str, bytes], chain: Chain, pins: Sequence[int]
    ) -> tuple[Updates, set[str]]:
        """What no longer needs to be kept: deletions of keys, and the names of all blobs still needed."""
        oldest = min([*pins, chain.number]) - self._keep_rounds
        updates: Updates = {}
        needed = {
            state_name(
                f,
                record.number if (record := chain.last_update(f, self.fragments, upto=pin)) else -1,
            )
            for pin in (*pins, chain.number)
            for f in range(self.fragments)
        }
        recent = {
            p.root for name in chain.path[max(0, oldest + 1) :] for p in chain.record(name).slices
        }
        open_roots = set(self._results) - self._decided_before(chain, oldest)
        for key, value in stored.items():
            kind, _, rest = key.partition("/")
            if kind == "result":
                root = Digest(bytes.fromhex(rest))
                if root in recent or root in open_roots:
                    needed.add(f"result-{rest}")
                else:
                    updates[key] = None
                    self._results.pop(root, None)
                    self._losses.pop(root, None)
            elif kind == "kept":
                number, base = rest.split("/")
                round_key = RoundKey(int(number), Digest(bytes.fromhex(base)))
                if int(number) > oldest:
                    needed.add(_contribution_name(round_key))
                else:
                    updates[key] = None
                    self._kept.pop(round_key, None)
            elif kind == "drift":
                needed.add(unpack(value, max_bytes=4096)[0])
            elif kind == "state":
                needed.add(unpack(value, max_bytes=256)[1])
        return updates, needed

    def _decided_before(self, chain: Chain, oldest: int) -> set[Digest]:
        early = chain.path[: max(0, oldest + 1)]
        return {piece.root for name in early for piece in chain.record(name).slices}


def _last_before(chain: Chain, record: Record, path: Sequence[Digest], fragments: int) -> int:
    """Number of the record that last changed the fragment before `record`, on its own path; -1 if none."""
    for name in reversed(path):
        earlier = chain.record(name)
        if (
            earlier.kind is RecordKind.ROUND
            and earlier.number % fragments == record.number % fragments
        ):
            return earlier.number
    return -1


def _read_contribution(data: bytes) -> tuple[int, tuple[bytes, ...], Float32]:
    size = int.from_bytes(data[:4], "big")
    fragment, lengths = unpack(data[4 : 4 + size], max_bytes=4096)
    place, payloads = 4 + size, []
    for length in lengths:
        payloads.append(data[place : place + length])
        place += length
    return fragment, tuple(payloads), np.frombuffer(data[place:], dtype=np.float32)


def _contribution_name(key: RoundKey) -> str:
    return f"contribution-{key.number}-{key.base[:8].hex()}"


def _result_name(root: Digest) -> str:
    return f"result-{root.hex()}"


def state_name(fragment: int, number: int) -> str:
    """The blob of a fragment's shared state after record `number`: parameters, then momentum."""
    return f"state-{fragment}-{number}"
