"""How long an inner step of a run's own model takes on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from runnel.clock import SystemClock
from runnel.optim import inner_optimizer

if TYPE_CHECKING:
    from runnel.node.manifest_spec import RunSpec
    from runnel.node.run_model import LanguageModel

_STEPS = 3


def measure_step(model: LanguageModel, spec: RunSpec) -> float:
    """Seconds of an inner step, the best of a few on random tokens. The model is changed by them."""
    inner, clock = spec.inner, SystemClock()
    optimizer = inner_optimizer(inner.optimizer, model.named_parameters(), lr=inner.lr)
    shape = (spec.data.batch_size, spec.model.context + 1)
    batch = torch.randint(spec.model.vocab, shape, generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(_STEPS):
        began_s = clock.monotonic_s()
        model.loss(batch).backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()
        optimizer.zero_grad()
        times.append(clock.monotonic_s() - began_s)
    return min(times)
