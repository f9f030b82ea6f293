"""FedKSeed: a fixed pool of K seeds, so that a fine-tune is K numbers whatever its length.

Source: *Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost
under 18 Kilobytes*; Pro is its section on non-uniform sampling. Local steps walk along seeds of the
pool: j ~ p, w = w - lr * g * z_j. A round adds the peers' scalars to the pool's accumulators, and the
model is the base minus the sum of A_j * z_j. Everything that peers share is an integer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from runnel.optim.byte_scale import LARGEST_CODE, ByteScale, unit_of
from runnel.optim.fixed_point import Probe
from runnel.optim.seed_updates import Codes, SeedUpdate, Words

POOL_COUNTER = 0xFFFFFFFF
"""The word c2 of all directions of a pool; the slot is the candidate's number."""

MAX_CANDIDATES = 1 << 16

_LARGEST = (1 << 31) - 1
_EVEN = 1 << 16
_MAGNITUDE_BITS = 16
_BYTES_PER_STEP = 3

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LocalStep:
    """What a peer did in one local step: the candidate it took and the code of its scalar."""

    candidate: int
    code: int


@dataclass(frozen=True, slots=True, eq=False)
class SeedPool:
    """K seeds and what has been added up for each. With the base it is all that a newcomer needs.

    Attributes:
        coefficients: int32 [K], in units of 2^-28: the model is base + sum of these * z.
        magnitudes: int64 [K], sums of |scalar| in units of 2^-16, for Pro.
        visits: int64 [K], how many scalars each sum holds.
        scale: of the next round's bytes.
        round_number: of the next round.
    """

    coefficients: Codes
    magnitudes: Int64
    visits: Int64
    scale: ByteScale
    round_number: int = 0

    @classmethod
    def empty(cls, size: int) -> SeedPool:
        """A pool before its first round.

        Raises:
            ValueError: not 1 to 65,536 candidates.
        """
        if not 0 < size <= MAX_CANDIDATES:
            raise ValueError(f"{size} candidates, expected 1 to {MAX_CANDIDATES}")
        zeros = np.zeros(size, np.int64)
        return cls(np.zeros(size, np.int32), zeros, zeros.copy(), ByteScale())

    def weights_of_candidates(self, *, pro: bool) -> Int64:
        """How likely each candidate is to be drawn, as integers: all alike, or Pro's.

        Pro: softmax(minmax(mean |g_j|)), the mean over all for those not seen yet. Rounded so that
        machines whose exponential differs in a last digit draw alike.
        """
        seen = self.visits > 0
        if not pro or not seen.any():
            return np.full(self.visits.size, _EVEN, np.int64)
        overall = int(self.magnitudes.sum()) / int(self.visits.sum())
        means = np.where(seen, self.magnitudes / np.maximum(self.visits, 1), overall)
        low, high = float(means.min()), float(means.max())
        share = (means - low) / (high - low) if high > low else np.zeros_like(means)
        table = np.array([round(math.exp(k / 256) * _EVEN) for k in range(257)], np.int64)
        return table[np.rint(share * 256).astype(np.int64)]

    def draw(self, seed: bytes, count: int, *, pro: bool) -> Words:
        """Candidates for `count` local steps, uint32 [count]: a function of the pool and a public seed."""
        ends = np.cumsum(self.weights_of_candidates(pro=pro)).astype(np.uint64)
        words = np.frombuffer(blake3(b"runnel.pool.1" + seed).digest(length=8 * count), "<u8")
        drawn: Words = np.searchsorted(ends, words % ends[-1], side="right").astype(np.uint32)
        return drawn

    def local_update(self, step: LocalStep, *, lr: float) -> SeedUpdate:
        """What one local step changes in the peer's own copy of the weights."""
        return self._update([step.candidate], [step.code], unit_of(lr, self.scale.exponent, 1))

    def take_round(
        self, steps: Mapping[int, Sequence[LocalStep]], *, lr: float
    ) -> tuple[tuple[SeedUpdate, ...], SeedPool]:
        """The updates of a round and the pool after it, from the accepted steps by peer.

        Peers have equal weight, and each contributes the sum of its steps. The updates take back what
        the touched candidates had and put there what they have now: a tensor with a coarser unit
        rounds a candidate's sum, not each round's share, so that `whole` gives the same bits.

        Raises:
            ConfigError: the learning rate is far too large, see `unit_of`.
            ValueError: a candidate or a code out of range.
        """
        flat = [step for peer in sorted(steps) for step in steps[peer]]
        kept = self.scale.clipped([step.code for step in flat])
        candidates = np.array([step.candidate for step in flat], np.int64)
        if candidates.size and candidates.max() >= self.visits.size:
            raise ValueError(f"candidate {candidates.max()}, expected below {self.visits.size}")
        sums, visits, magnitudes = (np.zeros(self.visits.size, np.int64) for _ in range(3))
        np.add.at(sums, candidates, np.array(kept, np.int64))
        np.add.at(visits, candidates, 1)
        step_size = self.scale.value * 2.0**_MAGNITUDE_BITS / 32
        sizes = [round(abs(code) * step_size) for code in kept]
        np.add.at(magnitudes, candidates, np.array(sizes, np.int64))
        unit = unit_of(lr, self.scale.exponent, len(steps)) if flat else 0
        touched = np.flatnonzero(sums)
        coefficients = np.clip(self.coefficients - unit * sums, -_LARGEST, _LARGEST)
        after = SeedPool(
            coefficients.astype(np.int32),
            self.magnitudes + magnitudes,
            self.visits + visits,
            self.scale.after(kept),
            self.round_number + 1,
        )
        before = self._update(touched, self.coefficients[touched], 1)
        return (before, self._update(touched, -after.coefficients[touched], 1)), after

    def whole(self) -> SeedUpdate:
        """All rounds as one update of the base: K directions, one pass over the weights."""
        return SeedUpdate(
            step=0,
            counter=POOL_COUNTER,
            unit=1,
            slots=np.arange(self.coefficients.size, dtype=np.uint32),
            codes=-self.coefficients,
        )

    def _update(self, candidates: npt.ArrayLike, codes: npt.ArrayLike, unit: int) -> SeedUpdate:
        return SeedUpdate(
            step=self.round_number,
            counter=POOL_COUNTER,
            unit=unit,
            slots=np.asarray(candidates).astype(np.uint32),
            codes=np.asarray(codes).astype(np.int32),
        )


def pool_probe(candidate: int, amount: int) -> Probe:
    """The point beside a peer's weights for one local step."""
    return Probe(POOL_COUNTER, candidate, amount)


def pack_steps(steps: Sequence[LocalStep]) -> bytes:
    """Three bytes per local step: the candidate, little-endian, and the code."""
    return b"".join(
        step.candidate.to_bytes(2, "little") + step.code.to_bytes(1, "little", signed=True)
        for step in steps
    )


def unpack_steps(payload: bytes, *, max_steps: int) -> tuple[LocalStep, ...]:
    """The steps that a peer sent.

    Raises:
        ValueError: a length that no steps have, more than `max_steps`, or the code -128.
    """
    if len(payload) % _BYTES_PER_STEP or len(payload) > _BYTES_PER_STEP * max_steps:
        raise ValueError(
            f"{len(payload)} bytes, expected three for each of up to {max_steps} steps"
        )
    steps = []
    for start in range(0, len(payload), _BYTES_PER_STEP):
        code = int.from_bytes(payload[start + 2 : start + 3], "little", signed=True)
        if code < -LARGEST_CODE:
            raise ValueError(f"code {code}, expected -127 to 127")
        steps.append(LocalStep(int.from_bytes(payload[start : start + 2], "little"), code))
    return tuple(steps)
