"""What a peer keeps of its rounds on disk and in memory: its contributions, and results of any reducer.

A blob is written first and named by a key afterwards; the key's write is the moment it counts. Blobs
that no key names are left over from a crash and are removed when states are pinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runnel.dht.wire import pack, unpack
from runnel.hashing import digest, merkle_path, merkle_root
from runnel.node.actions import RoundKey
from runnel.node.storage_keys import Updates
from runnel.optim.store import Array, raw
from runnel.protocols import Float32
from runnel.types import Digest

_MAX_HEAD_BYTES = 4096


class Disk(Protocol):
    """Durable blobs; `DurableLog` is the real one."""

    def write_blob(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        """Durably writes a file whose content is checked when read."""
        ...

    def read_blob(self, name: str) -> bytes:
        """The content; InputFileError if it is missing or damaged."""
        ...


@dataclass(frozen=True, slots=True)
class Contribution:
    """What this peer committed to a round: payloads by slice, with their digests."""

    fragment: int
    payloads: tuple[bytes, ...]
    digests: tuple[Digest, ...]

    @staticmethod
    def of(fragment: int, payloads: tuple[bytes, ...]) -> Contribution:
        """Hashes each payload once."""
        return Contribution(fragment, payloads, tuple(digest(payload) for payload in payloads))

    @property
    def root(self) -> Digest:
        """What the commitment names."""
        return merkle_root(self.digests)


class Contributions:
    """This peer's contributions by round, and which one's drift is still in its trainer's parameters."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._kept: dict[RoundKey, Contribution | None] = {}
        self._newest: dict[int, str] = {}

    def keep(self, key: RoundKey, contribution: Contribution, drift: Array) -> Updates:
        """Durably keeps a contribution and the drift behind it; the keys to write with the commitment."""
        name = contribution_name(key)
        head = pack([contribution.fragment, [len(payload) for payload in contribution.payloads]])
        size = len(head).to_bytes(4, "big")
        self._disk.write_blob(name, [size, head, *contribution.payloads, raw(drift)])
        self._kept[key] = contribution
        self._newest[contribution.fragment] = name
        return {
            f"kept/{key.number}/{key.base.hex()}": b"",
            f"drift/{contribution.fragment}": pack([name, [False] * len(contribution.payloads)]),
        }

    def taken_out(self, key: RoundKey, fragment: int, included: Sequence[bool]) -> Updates:
        """What to write when a record took slices of a contribution out of the trainer's parameters."""
        name = contribution_name(key)
        if self._newest.get(fragment) != name:
            return {}
        return {f"drift/{fragment}": pack([name, list(included)])}

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

    def slice_with_path(self, key: RoundKey, index: int) -> tuple[bytes, tuple[Digest, ...]]:
        """One slice and its Merkle path."""
        contribution = self._kept.get(key) or self._read(key)
        return contribution.payloads[index], merkle_path(contribution.digests, index)

    def forget(self, key: RoundKey) -> None:
        """Drops a contribution from memory; its blob goes when nothing names it."""
        self._kept.pop(key, None)

    def recall(self, key: RoundKey) -> None:
        """Notes, after a restart, that the disk has a contribution to a round."""
        self._kept[key] = None

    def read_drift(self, value: bytes) -> tuple[Float32, list[bool]]:
        """The drift that a "drift" key names, and which slices of it are taken out already."""
        name, included = unpack(value, max_bytes=_MAX_HEAD_BYTES)
        return _parse(self._disk.read_blob(name))[2], included

    def _read(self, key: RoundKey) -> Contribution:
        fragment, payloads, _ = _parse(self._disk.read_blob(contribution_name(key)))
        return Contribution.of(fragment, payloads)


class Results:
    """Results by digest, with what their encoding lost where this peer made them.

    Those of open rounds are in memory too; the others are read from disk when a latecomer asks.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._kept: dict[Digest, bytes | None] = {}

    def keep(self, root: Digest, payload: bytes, loss: Array | None = None) -> None:
        """Durably keeps a result's bytes and what its encoding lost."""
        if loss is not None:
            self._disk.write_blob(loss_name(root), [raw(loss)])
        self._disk.write_blob(result_name(root), [payload])
        self._kept[root] = payload

    def recall(self, root: Digest) -> None:
        """Notes, after a restart, that the disk has a result."""
        self._kept[root] = None

    def release(self, root: Digest) -> None:
        """Lets go of a result's memory: its round is decided, the disk has it."""
        if root in self._kept:
            self._kept[root] = None

    def __contains__(self, root: Digest) -> bool:
        return root in self._kept

    def get(self, root: Digest) -> bytes | None:
        """A kept result's bytes; read back if need be."""
        held = self._kept.get(root)
        if held is None and root in self._kept:
            return self._disk.read_blob(result_name(root))
        return held

    def loss(self, root: Digest) -> Array:
        """What this peer's encoding of a result lost, in units of its residual."""
        return np.frombuffer(self._disk.read_blob(loss_name(root)), dtype=np.float32)

    def roots(self) -> set[Digest]:
        """All kept ones."""
        return set(self._kept)

    def forget(self, root: Digest) -> None:
        """Drops a result from memory; its blob goes when nothing names it."""
        self._kept.pop(root, None)


def contribution_name(key: RoundKey) -> str:
    """The blob of this peer's contribution to a round."""
    return f"contribution-{key.number}-{key.base[:8].hex()}"


def result_name(root: Digest) -> str:
    """The blob of a result."""
    return f"result-{root.hex()}"


def loss_name(root: Digest) -> str:
    """The blob of what this peer's encoding of a result lost."""
    return f"loss-{root.hex()}"


def state_name(fragment: int, number: int) -> str:
    """The blob of a fragment's shared state after record `number`: parameters, then momentum."""
    return f"state-{fragment}-{number}"


def round_key(rest: str) -> RoundKey:
    """The round that the end of a storage key names: ``NUMBER/BASE``."""
    number, base = rest.split("/")
    return RoundKey(int(number), Digest(bytes.fromhex(base)))


def needed_blobs(stored: Mapping[str, bytes]) -> set[str]:
    """The blobs that durable keys name."""
    needed: set[str] = set()
    for key, value in stored.items():
        kind, _, rest = key.partition("/")
        if kind == "result":
            needed |= {f"result-{rest}", f"loss-{rest}"}
        elif kind == "kept":
            needed.add(contribution_name(round_key(rest)))
        elif kind == "drift":
            needed.add(unpack(value, max_bytes=_MAX_HEAD_BYTES)[0])
        elif kind == "state":
            number, residual = unpack(value, max_bytes=_MAX_HEAD_BYTES)
            needed |= {state_name(int(rest), number), residual}
    return needed


def _parse(data: bytes) -> tuple[int, tuple[bytes, ...], Float32]:
    size = int.from_bytes(data[:4], "big")
    fragment, lengths = unpack(data[4 : 4 + size], max_bytes=_MAX_HEAD_BYTES)
    place, payloads = 4 + size, []
    for length in lengths:
        payloads.append(data[place : place + length])
        place += length
    return fragment, tuple(payloads), np.frombuffer(data[place:], dtype=np.float32)
