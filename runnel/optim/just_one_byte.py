"""JustOneByte: every peer evaluates its own direction on its own data, and sends one byte.

Source: *Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model
Finetuning Using Shared Randomness*. The scale, the clip and the integers are ours. With n accepted
codes c_i of a step, g_i = (L(w + epsilon z_i) - L(w - epsilon z_i)) / (2 epsilon)::

    c_i = clip(round(32 * g_i / s), -127, 127)
    w = w - (lr * s / (32 * n)) * sum of c_i * z_i

A step is a pure function of the state before it, the codes and the learning rate; whoever proposes a
step computes its integer unit once, and everybody else compares (see `units_agree`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from runnel.optim.byte_scale import ByteScale, unit_of
from runnel.optim.fixed_point import Probe
from runnel.optim.seed_updates import SeedUpdate

MAX_PROBES = 64
"""Probes of a peer in one step: slots are peer number * 64 + probe number."""


@dataclass(frozen=True, slots=True)
class ByteState:
    """Where a run stands, beside its weights: what a newcomer needs with base and log.

    Attributes:
        step: the number of the next step.
        scale: of its bytes.
    """

    step: int = 0
    scale: ByteScale = field(default_factory=ByteScale)


def probes_of(state: ByteState, peer: int, count: int, amount: int) -> tuple[Probe, ...]:
    """The points that a peer evaluates in the next step.

    Args:
        state: before the step.
        peer: its number, as the record of the step will write it.
        count: how many directions, 1 to 64; all at the same weights.
        amount: epsilon, see `epsilon_amount`.
    """
    if not 0 < count <= MAX_PROBES:
        raise ValueError(f"{count} probes, expected 1 to {MAX_PROBES}")
    return tuple(Probe(state.step, peer * MAX_PROBES + number, amount) for number in range(count))


def pack_codes(codes: Sequence[int | None]) -> bytes:
    """A byte per probe; -128 stands for a scalar that was no number."""
    return np.array([-128 if code is None else code for code in codes], np.int8).tobytes()


def unpack_codes(payload: bytes, *, peer: int) -> dict[int, int]:
    """Codes by slot, from what a peer sent; those that were no number are left out.

    Raises:
        ValueError: no byte, or more than 64.
    """
    if not 0 < len(payload) <= MAX_PROBES:
        raise ValueError(f"{len(payload)} bytes, expected 1 to {MAX_PROBES}, one per probe")
    codes = np.frombuffer(payload, np.int8).tolist()
    return {peer * MAX_PROBES + k: code for k, code in enumerate(codes) if code != -128}


def take_step(
    state: ByteState, codes: Mapping[int, int], *, lr: float
) -> tuple[SeedUpdate, ByteState]:
    """The update of a step and the state after it, from the accepted codes by slot, in any order.

    Without any code the step changes nothing, and counts.

    Raises:
        ConfigError: the learning rate is far too large, see `unit_of`.
        ValueError: a code beyond +-127.
    """
    slots = sorted(codes)
    kept = state.scale.clipped([codes[slot] for slot in slots])
    unit = unit_of(lr, state.scale.exponent, len(slots)) if slots else 0
    update = SeedUpdate(
        step=state.step,
        counter=state.step,
        unit=unit,
        slots=np.array(slots, np.uint32),
        codes=np.array(kept, np.int32),
    )
    return update, ByteState(state.step + 1, state.scale.after(kept))


def units_agree(proposed: int, own: int) -> bool:
    """Whether a proposer's unit is what this peer computes: schedules may differ in a last digit."""
    return abs(proposed - own) <= 1 + (own >> 20)
