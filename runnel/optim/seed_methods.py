"""What tells the methods of shared-seed runs apart: their contributions, and what a round makes of them.

A method is values and pure functions. Its state is what all replicas share beside the weights; it has
a fixed size, so that a newcomer knows how much to fetch.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from runnel.errors import ConfigError, PeerError
from runnel.optim.byte_scale import MAX_EXPONENT, ByteScale
from runnel.optim.fedkseed import SeedPool, unpack_steps
from runnel.optim.ferret import BlockScalars, round_updates
from runnel.optim.just_one_byte import ByteState, take_step, unpack_codes
from runnel.optim.seed_rounds import FULL_PROGRESS
from runnel.optim.seed_updates import SeedUpdate

Updates = tuple[SeedUpdate, ...]

MOST_MEMBERS = 16
"""A step grows with so many members at most: from somewhere on its length is no matter of noise."""

_SCALE = struct.Struct("<iB64s")
_STEP = struct.Struct("<Q")
_BLOCK = struct.Struct("<hH")
_KEPT = 64


@dataclass(frozen=True, slots=True)
class LearningRate:
    """A learning rate that falls along a line, so that every machine computes the same one.

    Attributes:
        highest: at the start of a run.
        final_share: what is left of it at the end; 1 stays.
    """

    highest: float
    final_share: float = 1.0

    def at(self, progress: int) -> float:
        """After this share of the run, in millionths."""
        return self.highest * (1.0 - (1.0 - self.final_share) * (progress / FULL_PROGRESS))


class SeedMethod(Protocol):
    """A method of shared-seed tuning."""

    @property
    def state_bytes(self) -> int:
        """Size of a packed state."""
        ...

    def first(self) -> Any:
        """The state before the first round."""
        ...

    def pack(self, state: Any) -> bytes:
        """The state as `state_bytes` bytes."""
        ...

    def unpack(self, data: bytes) -> Any:
        """The state that these bytes stand for; PeerError if none does."""
        ...

    def problem(self, payload: bytes) -> str:
        """What is wrong with a contribution, or nothing."""
        ...

    def take(self, state: Any, shares: Mapping[int, bytes], progress: int) -> tuple[Updates, Any]:
        """The updates of a round and the state after it, from sound contributions by seat."""
        ...


@dataclass(frozen=True, slots=True)
class OneByteMethod:
    """JustOneByte with `probes` bytes per contribution.

    With `per_member` the learning rate is for one member's scalars: steps of more members, whose mean has less
    noise, are longer by their number, up to `MOST_MEMBERS`.
    """

    probes: int
    lr: LearningRate
    per_member: bool = False

    @property
    def state_bytes(self) -> int:
        """See `SeedMethod`."""
        return _STEP.size + _SCALE.size

    def first(self) -> ByteState:
        """See `SeedMethod`."""
        return ByteState()

    def pack(self, state: ByteState) -> bytes:
        """See `SeedMethod`."""
        return _STEP.pack(state.step) + _pack_scale(state.scale)

    def unpack(self, data: bytes) -> ByteState:
        """See `SeedMethod`."""
        return ByteState(_STEP.unpack_from(data)[0], _unpack_scale(data[_STEP.size :]))

    def problem(self, payload: bytes) -> str:
        """See `SeedMethod`."""
        if len(payload) != self.probes:
            return f"{len(payload)} bytes for {self.probes} probes"
        return ""

    def take(
        self, state: ByteState, shares: Mapping[int, bytes], progress: int
    ) -> tuple[Updates, ByteState]:
        """See `SeedMethod`."""
        codes: dict[int, int] = {}
        for seat, payload in shares.items():
            codes |= unpack_codes(payload, peer=seat)
        members = min(len(shares), MOST_MEMBERS) if self.per_member else 1
        update, after = take_step(state, codes, lr=members * self.lr.at(progress))
        return (update,), after


@dataclass(frozen=True, slots=True)
class PoolMethod:
    """FedKSeed with `local_steps` steps per contribution, along seeds of a pool of `candidates`."""

    candidates: int
    local_steps: int
    lr: LearningRate

    @property
    def state_bytes(self) -> int:
        """See `SeedMethod`."""
        return _STEP.size + _SCALE.size + 20 * self.candidates

    def first(self) -> SeedPool:
        """See `SeedMethod`."""
        return SeedPool.empty(self.candidates)

    def pack(self, state: SeedPool) -> bytes:
        """See `SeedMethod`."""
        columns = [
            state.magnitudes.astype("<i8").tobytes(),
            state.visits.astype("<i8").tobytes(),
            state.coefficients.astype("<i4").tobytes(),
        ]
        return b"".join([_STEP.pack(state.round_number), _pack_scale(state.scale), *columns])

    def unpack(self, data: bytes) -> SeedPool:
        """See `SeedMethod`."""
        count, start = self.candidates, _STEP.size + _SCALE.size
        wide = np.frombuffer(data, "<i8", 2 * count, start).astype(np.int64)
        coefficients = np.frombuffer(data, "<i4", count, start + 16 * count).astype(np.int32)
        scale = _unpack_scale(data[_STEP.size : start])
        number = _STEP.unpack_from(data)[0]
        return SeedPool(coefficients, wide[:count], wide[count:], scale, number)

    def problem(self, payload: bytes) -> str:
        """See `SeedMethod`."""
        try:
            steps = unpack_steps(payload, max_steps=self.local_steps)
        except ValueError as error:
            return str(error)
        if not steps:
            return "no local step"
        outside = [step.candidate for step in steps if step.candidate >= self.candidates]
        return f"candidate {outside[0]} of {self.candidates}" if outside else ""

    def take(
        self, state: SeedPool, shares: Mapping[int, bytes], progress: int
    ) -> tuple[Updates, SeedPool]:
        """See `SeedMethod`."""
        steps = {
            seat: unpack_steps(payload, max_steps=self.local_steps)
            for seat, payload in shares.items()
        }
        return state.take_round(steps, lr=self.lr.at(progress))


@dataclass(frozen=True, slots=True)
class BlockMethod:
    """Ferret: projections of what local steps changed, block by block (`blocks` parameter tensors)."""

    blocks: int
    directions: int
    lr: LearningRate

    @property
    def state_bytes(self) -> int:
        """See `SeedMethod`."""
        return _STEP.size

    def first(self) -> int:
        """See `SeedMethod`. The state is the number of the next round."""
        return 0

    def pack(self, state: int) -> bytes:
        """See `SeedMethod`."""
        return _STEP.pack(state)

    def unpack(self, data: bytes) -> int:
        """See `SeedMethod`."""
        number: int = _STEP.unpack_from(data)[0]
        return number

    def problem(self, payload: bytes) -> str:
        """See `SeedMethod`."""
        try:
            blocks = unpack_blocks(payload)
        except ValueError as error:
            return str(error)
        if len(blocks) != self.blocks:
            return f"{len(blocks)} blocks of {self.blocks}"
        longest = max(len(block.codes) for block in blocks)
        return f"{longest} directions of {self.directions}" if longest > self.directions else ""

    def take(self, state: int, shares: Mapping[int, bytes], progress: int) -> tuple[Updates, int]:
        """See `SeedMethod`."""
        blocks = {seat: unpack_blocks(payload) for seat, payload in shares.items()}
        updates = round_updates(blocks, round_number=state, lr=self.lr.at(progress))
        return updates or (SeedUpdate.nothing(state),), state + 1


def pack_blocks(blocks: Sequence[BlockScalars]) -> bytes:
    """Four bytes per block, the exponent and the number of codes, then the codes."""
    return b"".join(_BLOCK.pack(block.exponent, len(block.codes)) + block.codes for block in blocks)


def unpack_blocks(payload: bytes) -> tuple[BlockScalars, ...]:
    """The blocks that a peer sent.

    Raises:
        ValueError: these bytes are no blocks, an exponent is out of range, or a code is -128.
    """
    blocks, at = [], 0
    while at < len(payload):
        if at + _BLOCK.size > len(payload):
            raise ValueError("a block that is cut off")
        exponent, count = _BLOCK.unpack_from(payload, at)
        at += _BLOCK.size
        codes = payload[at : at + count]
        at += count
        if len(codes) != count:
            raise ValueError("a block that is cut off")
        if abs(exponent) > MAX_EXPONENT or b"\x80" in codes:
            raise ValueError("an exponent or a code out of range")
        blocks.append(BlockScalars(exponent, codes))
    return tuple(blocks)


def _pack_scale(scale: ByteScale) -> bytes:
    return _SCALE.pack(scale.exponent, len(scale.recent), bytes(scale.recent))


def _unpack_scale(data: bytes) -> ByteScale:
    exponent, count, recent = _SCALE.unpack_from(data)
    if abs(exponent) > MAX_EXPONENT or count > _KEPT or any(recent[count:]):
        raise PeerError("malformed", "a state whose scale is out of range")
    return ByteScale(exponent, tuple(recent[:count]))


def largest_payload(method: SeedMethod) -> int:
    """Bytes of the largest sound contribution.

    Raises:
        ConfigError: the method is none of these.
    """
    match method:
        case OneByteMethod(probes=probes):
            return probes
        case PoolMethod(local_steps=steps):
            return 3 * steps
        case BlockMethod(blocks=blocks, directions=directions):
            return blocks * (_BLOCK.size + directions)
    raise ConfigError(f"no method of shared seeds: {method}")


def most_directions(method: SeedMethod, contributions: int) -> int:
    """How many directions of the whole model a log of so many contributions has, at most.

    Raises:
        ConfigError: the method is none of these.
    """
    match method:
        case OneByteMethod(probes=probes):
            return probes * contributions
        case PoolMethod(candidates=candidates, local_steps=steps):
            return 2 * min(candidates, steps * contributions)
        case BlockMethod(directions=directions):
            return directions * contributions
    raise ConfigError(f"no method of shared seeds: {method}")
