"""Ferret: local first-order steps, projected block by block onto directions that everybody knows.

Source: *Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models*. A block is one
parameter tensor. A peer takes local steps with any optimizer; with delta_b = weights - what its
parameters hold then, block b sends K_b scalars alpha_k = <delta_b, z_k>, one byte each under a scale
of the block's own. Everybody reconstructs (1 / K_b) * sum of alpha_k * z_k, which for signs is unbiased
with relative variance (d_b - 1) / K_b, and goes `lr` times its mean over the peers. (The authors'
code draws z from a truncated normal and multiplies by d_b / K_b, about a third of unbiased; we follow
the unbiased formula.) K_b = max(2, K * |delta_b| / max |delta|).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median_low

import numpy as np

from runnel.errors import ConfigError
from runnel.kernels import norm, perturbation
from runnel.kernels.perturb_signatures import PART_TILES, Directions, Float64
from runnel.kernels.perturbation import direction
from runnel.optim.byte_scale import LARGEST_CODE, MAX_EXPONENT, code_of, exponent_for, unit_of
from runnel.optim.fixed_point import Key, Spread
from runnel.optim.seed_updates import Codes, SeedUpdate
from runnel.protocols import Float32

MAX_DIRECTIONS = 1 << 16
"""Directions of a block and peer: slots are peer number * 65,536 + k."""

MIN_DIRECTIONS = 2

Projecting = Callable[[int, Float32, Directions], Float64 | None]
"""(tensor id, delta, directions [K, 5]): the parts of the projections, or None, which leaves them to the CPU."""

_FIVE_TIMES = 9  # quarters of a doubling


@dataclass(frozen=True, slots=True)
class BlockScalars:
    """A block's share of a contribution.

    Attributes:
        exponent: of its scale, -400 to 400.
        codes: int8 [K_b] as bytes: scalar k is the projection on slot peer * 65,536 + k.
    """

    exponent: int
    codes: bytes


def budgets(norms: Sequence[float], directions: int) -> tuple[int, ...]:
    """K_b for blocks whose deltas have these norms; a block that did not move gets 0.

    Raises:
        ConfigError: `directions` is not between 2 and 65,536.
    """
    if not MIN_DIRECTIONS <= directions <= MAX_DIRECTIONS:
        raise ConfigError(f"{directions} directions, expected {MIN_DIRECTIONS} to {MAX_DIRECTIONS}")
    largest = max(norms, default=0.0)
    return tuple(
        max(MIN_DIRECTIONS, round(directions * one / largest)) if one > 0 else 0 for one in norms
    )


@dataclass(frozen=True, slots=True)
class Sketch:
    """How one peer projects what it learned in one round.

    Attributes:
        round_number: the directions' word c2.
        peer: its number in the record of the round.
        key: of the run.
        directions: K.
    """

    round_number: int
    peer: int
    key: Key
    directions: int

    def contribution(
        self,
        deltas: Iterable[tuple[int, Float32]],
        *,
        spread: Spread | None = None,
        elsewhere: Projecting | None = None,
    ) -> tuple[BlockScalars, ...]:
        """A peer's scalars for all blocks, from (tensor id, delta float32 [n]) by rising id.

        Holds all deltas; costs one pass over each block per four to eight of its directions, of the CPU
        unless `elsewhere` projects the block.

        Raises:
            ConfigError: a delta is NaN or infinite.
        """
        held = list(deltas)
        norms = [norm(delta) for _, delta in held]
        if not np.isfinite(norms).all():
            bad = held[int(np.flatnonzero(~np.isfinite(norms))[0])][0]
            raise ConfigError(
                f"local steps made tensor {bad} NaN or infinite: use a smaller inner learning rate"
            )
        counts = budgets(norms, self.directions)

        def project(number: int, delta: Float32, where: Directions) -> Float64:
            parts = elsewhere(number, delta, where) if elsewhere else None
            return _parts(delta, where, spread or Spread()) if parts is None else parts

        return tuple(
            self._scalars(number, delta, count, project)
            for (number, delta), count in zip(held, counts, strict=True)
        )

    def slots(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        """The directions' words c3, uint32 [count]."""
        return np.arange(count, dtype=np.uint32) + np.uint32(self.peer * MAX_DIRECTIONS)

    def _scalars(
        self,
        number: int,
        delta: Float32,
        count: int,
        project: Callable[[int, Float32, Directions], Float64],
    ) -> BlockScalars:
        if not count:
            return BlockScalars(0, b"")
        where = np.repeat(direction(number, self.round_number, 0, self.key)[None], count, axis=0)
        where[:, 2] = self.slots(count)
        scalars = perturbation.add_parts(project(number, delta, where)).tolist()
        exponent = exponent_for(median_low(abs(scalar) for scalar in scalars))
        codes = [code_of(scalar, exponent) or 0 for scalar in scalars]
        return BlockScalars(exponent, np.array(codes, np.int8).tobytes())


def _parts(delta: Float32, where: Directions, spread: Spread) -> Float64:
    cuts = perturbation.slices(delta.size, spread.slices, tiles=PART_TILES)
    shares = [np.zeros((0, len(where)))] * len(cuts)

    def task(place: int) -> None:
        part, tile = cuts[place]
        shares[place] = perturbation.project_parts(delta[part], where, first_tile=tile)

    spread.run([partial(task, place) for place in range(len(cuts))])
    return np.concatenate(shares)


def round_updates(
    contributions: Mapping[int, Sequence[BlockScalars]], *, round_number: int, lr: float
) -> tuple[SeedUpdate, ...]:
    """The updates of a round from the accepted contributions by peer number; blocks by tensor id.

    A block whose scale is more than five times the middle one of all peers is scaled down to that.

    Raises:
        ConfigError: the learning rate is far too large, see `unit_of`.
        ValueError: a contribution with other blocks than the rest, an exponent or codes out of range.
    """
    blocks = {len(contribution) for contribution in contributions.values()}
    if len(blocks) > 1:
        raise ValueError(f"contributions of {sorted(blocks)} blocks, expected one number")
    highest = [
        _FIVE_TIMES + median_low(block.exponent for block in row if block.codes)
        if any(block.codes for block in row)
        else 0
        for row in zip(*contributions.values(), strict=True)
    ]
    updates = []
    for peer in sorted(contributions):
        for number, block in enumerate(contributions[peer]):
            codes = np.frombuffer(block.codes, np.int8).astype(np.int32)
            _check(block, codes)
            if not codes.any():
                continue
            slots = np.arange(codes.size, dtype=np.uint32) + np.uint32(peer * MAX_DIRECTIONS)
            updates.append(
                SeedUpdate(
                    step=round_number,
                    counter=round_number,
                    unit=unit_of(
                        lr, min(block.exponent, highest[number]), codes.size * len(contributions)
                    ),
                    slots=slots,
                    codes=codes,
                    tensor=number,
                )
            )
    return tuple(updates)


def _check(block: BlockScalars, codes: Codes) -> None:
    if not -MAX_EXPONENT <= block.exponent <= MAX_EXPONENT:
        raise ValueError(f"exponent {block.exponent}, expected +-{MAX_EXPONENT}")
    if codes.size > MAX_DIRECTIONS or (codes.size and codes.min() < -LARGEST_CODE):
        raise ValueError(
            f"{codes.size} codes, expected at most {MAX_DIRECTIONS}, each from -127 to 127"
        )
