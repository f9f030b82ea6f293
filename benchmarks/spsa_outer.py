"""Streaming outer steps on the task of `benchmarks.spsa`: what methods that share seeds stand beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.simulated_rounds import SimulatedRounds
from benchmarks.spsa_task import Halves, batch_of, cosine, losses, validation_loss
from runnel.node.manifest_sections import OuterSection
from runnel.optim import plan_model

Floats = npt.NDArray[np.float32]
FRAGMENTS, OVERLAP = 4, 2


class _Replica(nn.Module):
    """One peer's weights, by the task's names."""

    def __init__(self, base: Mapping[str, Floats]) -> None:
        super().__init__()
        self._names = tuple(base)
        for name, value in base.items():
            self.register_parameter(_safe(name), nn.Parameter(torch.from_numpy(value.copy())))

    def loss(self, batch: Tensor) -> Tensor:
        """A scalar, of tokens int64 [B, T + 1]."""
        held = {name: self.get_parameter(_safe(name))[None] for name in self._names}
        return losses(held, batch[None])[0]

    def arrays(self) -> dict[str, Floats]:
        """The weights (not copies)."""
        return {name: self.get_parameter(_safe(name)).detach().numpy() for name in self._names}


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where all methods begin: pretrained weights, the text, a seed; and by how much their steps are divided."""

    base: Mapping[str, Floats]
    text: Halves
    seed: int
    share: int


@dataclass(frozen=True, slots=True)
class OuterRun:
    """Peers that each take `steps` steps of AdamW on `batch` sequences."""

    begin: Beginning
    peers: int
    batch: int
    steps: int

    def curve(self, every: int, lr: float) -> Iterator[tuple[int, float]]:
        """Bytes that a peer has sent on average, and the loss then of the outer weights, after each window.

        Args:
            every: steps between two rounds of a fragment.
            lr: at the start; half a cosine from there.
        """
        steps, peers = self.steps, self.peers
        models = [_Replica(self.begin.base) for _ in range(peers)]
        every_steps = min(every, steps)
        outer = OuterSection(
            fragments=FRAGMENTS,
            every_steps=every_steps,
            overlap_steps=min(OVERLAP, every_steps - 1),
        )
        windows = steps // every_steps
        plan = plan_model(models[0], FRAGMENTS)
        rounds = SimulatedRounds(models, plan, outer, windows * FRAGMENTS)
        optimizers = [
            torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99)) for model in models
        ]
        for step in range(windows * every_steps):
            for peer, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
                optimizer.param_groups[0]["lr"] = cosine(lr, step, windows * every_steps)
                batch = batch_of(self.begin.text.second, self.batch, self.begin.seed, peer, step)
                model.loss(batch).backward()  # type: ignore[no-untyped-call]  # torch
                optimizer.step()
                optimizer.zero_grad()
            rounds.after_step(step + 1, tokens=self.batch * every_steps)
            if (step + 1) % every_steps == 0 and step + 1 < windows * every_steps:
                yield _seen(rounds, models[0], self.begin.text)
        rounds.finish()
        rounds.write_outer(0)
        yield _seen(rounds, models[0], self.begin.text)


def _seen(rounds: SimulatedRounds, model: _Replica, text: Halves) -> tuple[int, float]:
    sent = int(np.mean(rounds.sent_bytes))
    return sent, round(validation_loss(model.arrays(), text), 4)


def _safe(name: str) -> str:
    """As a module may call a parameter."""
    return "w_" + name.replace(".", "_")
