"""When each fragment is due, and the learning rate over a run: pure functions of numbers.

P fragments are due in turn, each once in H inner steps: fragment p at steps t with
t = o_p + (H - o_{P-1}) modulo H, where o_p = round(p * H / P), halves up (*Streaming DiLoCo*,
section 3.2). The shift by H - o_{P-1} lets round 0 have a full share of steps behind it, and puts
the last fragment of each cycle exactly on a multiple of H. Where windows are public, all o_p are 0:
every fragment is due when a window of H steps is over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from runnel.errors import ConfigError

WARMUP_START = 0.1
"""Share of the peak learning rate at progress 0: with 0 the first window would learn nothing."""


@dataclass(frozen=True, slots=True)
class WindowSchedule:
    """Round r commits fragment r mod P after `commit_step` (r) inner steps.

    Attributes:
        fragments: P, at least 1.
        every_steps: H, inner steps between two commits of one fragment; at least P.
        together: all fragments are due at one step.

    Raises:
        ConfigError: a number out of range.
    """

    fragments: int
    every_steps: int
    together: bool = False

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.fragments < 1 or self.every_steps < self.fragments:
            raise ConfigError(
                f"fragments is {self.fragments} and every_steps {self.every_steps}, expected"
                " 1 <= fragments <= every_steps so that two fragments are never due at one step"
            )

    def fragment(self, round_index: int) -> int:
        """The fragment that round `round_index` (from 0) exchanges."""
        return round_index % self.fragments

    def offset(self, fragment: int) -> int:
        """o_p: where in its cycle of H steps a fragment is due; strictly ascending from 0, or all 0."""
        if self.together:
            return 0
        return (2 * fragment * self.every_steps + self.fragments) // (2 * self.fragments)

    def commit_step(self, round_index: int) -> int:
        """Inner steps since the start of the run before round `round_index` commits.

        Round P - 1 commits after exactly H steps, round 2 * P - 1 after 2 * H.
        """
        cycle, fragment = divmod(round_index, self.fragments)
        shift = self.every_steps - self.offset(self.fragments - 1)
        return cycle * self.every_steps + self.offset(fragment) + shift

    def steps_before(self, round_index: int) -> int:
        """Inner steps between the commit of the round before (or the start) and this one.

        Above 0 but for fragments that are due together with the one before. A peer that joins at round r counts from there: it needs no step counter of the run.
        """
        before = self.commit_step(round_index - 1) if round_index else 0
        return self.commit_step(round_index) - before

    def due(self, step: int) -> int | None:
        """The fragment due after `step` inner steps (from 1), the first of several; or None."""
        shift = self.every_steps - self.offset(self.fragments - 1)
        position = (step - shift) % self.every_steps
        nearest = (position * self.fragments + self.every_steps // 2) // self.every_steps
        for fragment in (nearest - 1, nearest, nearest + 1):
            if 0 <= fragment < self.fragments and self.offset(fragment) == position:
                return fragment if step >= shift else None
        return None


def lr_factor(progress: float, *, warmup_share: float, final_share: float) -> float:
    """The learning rate as a share of its peak: linear warm-up, then half a cosine.

    ::

        progress < warmup_share:   0.1 + 0.9 * progress / warmup_share
        else, x = (progress - warmup_share) / (1 - warmup_share):
                                   final + (1 - final) * (1 + cos(pi * x)) / 2

    It scales local steps only, so peers need not agree on its last bit.

    Args:
        progress: share of the run that is decided; clipped to 0..1, so that late steps run at
            `final_share`.
        warmup_share: share of the run that warms up, 0..1.
        final_share: the factor at the end, 0..1.

    Raises:
        ConfigError: a share out of range, or a progress that is not a number.
    """
    if math.isnan(progress) or not 0 <= warmup_share <= 1 or not 0 <= final_share <= 1:
        raise ConfigError(
            f"progress {progress}, warmup_share {warmup_share}, final_share {final_share}:"
            " expected a number and two shares from 0 to 1"
        )
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup_share:
        return WARMUP_START + (1 - WARMUP_START) * progress / warmup_share
    decayed = (progress - warmup_share) / (1 - warmup_share) if warmup_share < 1 else 0.0
    return final_share + (1 - final_share) * (1 + math.cos(math.pi * decayed)) / 2
