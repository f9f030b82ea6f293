"""What a peer keeps of its rounds on disk and in memory: its contributions, and results of any reducer.

A blob is written first and named by a key afterwards; the key's write is the moment it counts. Blobs
that no key names are left over from a crash and are removed when states are pinned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np

from runnel.dht.wire import pack, unpack
from runnel.errors import InputFileError, PeerError
from runnel.hashing import digest, merkle_path, merkle_root
from runnel.node.actions import RoundKey
from runnel.node.storage_keys import Updates
from runnel.optim.exchange import Array, Payload
from runnel.optim.parts import Bounds, parts_of
from runnel.protocols import Codec, Float32
from runnel.types import Digest

logger = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 4096

TakeRooms = Callable[[Sequence[int]], list[memoryview]]
"""Gives memory for payloads of at most these sizes in bytes."""


class Disk(Protocol):
    """Durable blobs; `DurableLog` is the real one."""

    def write_blob(
        self, name: str, parts: Iterable[bytes | memoryview], *, large: bool = False
    ) -> None:
        """Durably writes a file whose content is checked when read; each part is used before the next is made."""
        ...

    def read_blob(self, name: str) -> bytes:
        """The content; InputFileError if it is missing or damaged."""
        ...

    def has_blob(self, name: str) -> bool:
        """Whether there is one."""
        ...


@dataclass(frozen=True, slots=True)
class Codecs:
    """How contributions are `sent`, and how what stays with this peer is `kept` on disk.

    The latter is read only after a crash, and then lacks what `kept` rounds off of a rounding.
    """

    sent: Codec
    kept: Codec


@dataclass(frozen=True, slots=True)
class Contribution:
    """What this peer committed to a round: payloads by slice, with their digests."""

    fragment: int
    payloads: tuple[Payload, ...]
    digests: tuple[Digest, ...]

    @staticmethod
    def of(fragment: int, payloads: tuple[Payload, ...]) -> Contribution:
        """Hashes each payload once."""
        return Contribution(fragment, payloads, tuple(digest(payload) for payload in payloads))

    @property
    def root(self) -> Digest:
        """What the commitment names."""
        return merkle_root(self.digests)


class Rounding:
    """What the payloads of a contribution do not hold, encoded to be kept."""

    def __init__(self, codec: Codec, rooms: Iterator[memoryview]) -> None:
        self._codec, self._rooms = codec, rooms
        self.kept: list[Payload] = []

    def add(self, part: Array) -> None:
        """Keeps the next part, which is overwritten."""
        self.kept.append(self._codec.encode_parts([part], part.size, next(self._rooms)))


class Contributions:
    """This peer's contributions by round, and which one's drift is still in its trainer's parameters."""

    def __init__(self, disk: Disk, codecs: Codecs) -> None:
        self._disk, self._codecs = disk, codecs
        self._kept: dict[RoundKey, Contribution | None] = {}
        self._newest: dict[int, RoundKey] = {}

    def rounding(self, bounds: Bounds, take_rooms: TakeRooms) -> Rounding:
        """Takes, part by part, what the payloads of a contribution with these slices do not hold."""
        kept = self._codecs.kept
        sizes = [kept.max_bytes(part.stop - part.start) for part in _parts_in(bounds)]
        return Rounding(kept, iter(take_rooms(sizes)))

    def keep(self, key: RoundKey, contribution: Contribution, unsent: Iterable[Payload]) -> Updates:
        """Durably keeps a contribution and what of the drift behind it the payloads do not hold.

        `unsent` is what a `rounding` kept. Returns the keys to write with the commitment.
        """
        name = contribution_name(key)
        head = pack([contribution.fragment, [len(payload) for payload in contribution.payloads]])
        size = len(head).to_bytes(4, "big")
        payloads: list[Payload] = [size, head, *contribution.payloads]
        self._disk.write_blob(name, chain(payloads, unsent), large=True)
        self._kept[key] = contribution
        self._newest[contribution.fragment] = key
        return {
            f"kept/{key.number}/{key.base.hex()}": b"",
            f"drift/{contribution.fragment}": _drift_value(
                key, [False] * len(contribution.payloads)
            ),
        }

    def taken_out(self, key: RoundKey, fragment: int, included: Sequence[bool]) -> Updates:
        """What to write when a record took slices of a contribution out of the trainer's parameters."""
        if self._newest.get(fragment) != key:
            return {}
        return {f"drift/{fragment}": _drift_value(key, included)}

    def __contains__(self, key: RoundKey) -> bool:
        return key in self._kept

    def get(self, key: RoundKey) -> Contribution | None:
        """The contribution to a round, if there was one and it is still kept; read back if need be."""
        held = self._kept.get(key)
        return self._read(key) if held is None and key in self._kept else held

    def release(self, key: RoundKey) -> None:
        """Lets go of a contribution's memory: its round is decided, the disk has it."""
        if key in self._kept:
            self._kept[key] = None

    def rounds(self) -> list[RoundKey]:
        """Rounds that have one."""
        return list(self._kept)

    def slice_with_path(self, key: RoundKey, index: int) -> tuple[Payload, tuple[Digest, ...]]:
        """One slice and its Merkle path."""
        contribution = self._kept.get(key) or self._read(key)
        return contribution.payloads[index], merkle_path(contribution.digests, index)

    def forget(self, key: RoundKey) -> None:
        """Drops a contribution from memory; its blob goes when nothing names it."""
        self._kept.pop(key, None)

    def recall(self, key: RoundKey) -> None:
        """Notes, after a restart, that the disk has a contribution to a round."""
        self._kept[key] = None

    def drift(self, key: RoundKey, bounds: Bounds) -> Float32:
        """What was in the trainer's values behind a contribution, but for the rounding of what was not sent."""
        _, payloads, rest = _parse(self._disk.read_blob(contribution_name(key)))
        drift = np.empty(bounds[-1][1], dtype=np.float32)
        _read_parts(self._codecs.kept, rest, drift, _parts_in(bounds))
        for (low, high), payload in zip(bounds, payloads, strict=True):
            self._codecs.sent.accumulate(payload, 1.0, drift[low:high])
        return drift

    def _read(self, key: RoundKey) -> Contribution:
        fragment, payloads, _ = _parse(self._disk.read_blob(contribution_name(key)))
        return Contribution.of(fragment, payloads)


class Results:
    """Results by digest, with what their encoding lost where this peer made them.

    Those of open rounds are in memory too; the others are read from disk when a latecomer asks.
    """

    def __init__(self, disk: Disk, codecs: Codecs, *, max_held_bytes: int) -> None:
        """At most `max_held_bytes` of payloads stay in memory: those of rounds given up would stay for ever."""
        self._disk, self._codecs, self._max_held_bytes = disk, codecs, max_held_bytes
        self._held_bytes = 0
        self._kept: dict[Digest, bytes | memoryview | None] = {}
        self._losses: dict[Digest, Array] = {}

    def keep(self, root: Digest, payload: bytes | memoryview, loss: Array | None = None) -> None:
        """Durably keeps a result's bytes and what its encoding lost."""
        self.forget(root)  # if it was here before
        if loss is not None:
            self._losses[root] = loss
            head = loss.size.to_bytes(8, "big")
            parts = (self._codecs.kept.encode(loss[part]) for part in parts_of(0, loss.size))
            self._disk.write_blob(loss_name(root), chain([head], parts), large=True)
        self._disk.write_blob(result_name(root), [payload], large=True)
        self._kept[root] = payload  # at the end: the oldest are let go of first
        self._held_bytes += len(payload)
        self._trim()

    def recall(self, root: Digest) -> None:
        """Notes, after a restart, that the disk has a result."""
        self._kept[root] = None

    def release(self, root: Digest) -> None:
        """Lets go of a result's memory: its round is decided, the disk has it."""
        self._losses.pop(root, None)
        held = self._kept.get(root)
        if held is not None:
            self._held_bytes -= len(held)
            self._kept[root] = None

    def __contains__(self, root: Digest) -> bool:
        return root in self._kept

    def get(self, root: Digest) -> bytes | memoryview | None:
        """A kept result's bytes; read back if need be."""
        held = self._kept.get(root)
        if held is None and root in self._kept:
            return self._disk.read_blob(result_name(root))
        return held

    def loss(self, root: Digest) -> Array | None:
        """What this peer's encoding of a result lost, in units of its residual; None if it owes nothing for it."""
        held = self._losses.get(root)
        if held is not None or not self._disk.has_blob(loss_name(root)):
            return held
        data = memoryview(self._disk.read_blob(loss_name(root)))
        loss = np.empty(int.from_bytes(data[:8], "big"), dtype=np.float32)
        _read_parts(self._codecs.kept, data[8:], loss, parts_of(0, loss.size))
        return loss

    def loss_at_hand(self, root: Digest) -> Array | None:
        """As `loss`; a rounding that is gone from disk is no reason to stop."""
        try:
            return self.loss(root)
        except InputFileError as error:
            logger.warning("%s; going on without this rounding", error)
            return None

    def at_rest(self) -> set[Digest]:
        """Those on disk alone: no open round has touched them since they were let go of."""
        return {root for root, payload in list(self._kept.items()) if payload is None}

    def forget(self, root: Digest) -> None:
        """Drops a result from memory; its blob goes when nothing names it."""
        self.release(root)
        self._kept.pop(root, None)

    def _trim(self) -> None:
        oldest = [root for root, payload in self._kept.items() if payload is not None]
        for root in oldest[:-1]:
            if self._held_bytes <= self._max_held_bytes:
                return
            self.release(root)


def contribution_name(key: RoundKey) -> str:
    """The blob of this peer's contribution to a round."""
    return f"contribution-{key.number}-{key.base[:8].hex()}"


def read_drift_value(value: bytes) -> tuple[RoundKey, list[bool]]:
    """The contribution whose drift a "drift" key names, and which slices of it are taken out already."""
    number, base, included = unpack(value, max_bytes=_MAX_HEAD_BYTES)
    return RoundKey(number, Digest(base)), included


def result_name(root: Digest) -> str:
    """The blob of a result."""
    return f"result-{root.hex()}"


def loss_name(root: Digest) -> str:
    """The blob of what this peer's encoding of a result lost."""
    return f"loss-{root.hex()}"


def round_key(rest: str) -> RoundKey:
    """The round that the end of a storage key names: ``NUMBER/BASE``."""
    number, base = rest.split("/")
    return RoundKey(int(number), Digest(bytes.fromhex(base)))


def _parts_in(bounds: Bounds) -> Iterator[slice]:
    return chain.from_iterable(parts_of(*span) for span in bounds)


def _drift_value(key: RoundKey, included: Sequence[bool]) -> bytes:
    return pack([key.number, key.base, list(included)])


def _read_parts(codec: Codec, data: bytes | memoryview, out: Array, parts: Iterable[slice]) -> None:
    """Decodes what was encoded part by part."""
    view, place = memoryview(data), 0
    try:
        for part in parts:
            size = codec.max_bytes(part.stop - part.start)
            codec.decode(view[place : place + size], out[part])
            place += size
    except PeerError as error:
        raise InputFileError(f"a saved rounding is damaged: {error}") from error


def _parse(data: bytes) -> tuple[int, tuple[bytes, ...], bytes]:
    size = int.from_bytes(data[:4], "big")
    fragment, lengths = unpack(data[4 : 4 + size], max_bytes=_MAX_HEAD_BYTES)
    place, payloads = 4 + size, []
    for length in lengths:
        payloads.append(data[place : place + length])
        place += length
    return fragment, tuple(payloads), data[place:]
