"""A learning-rate schedule that follows the run, not a step counter.

`peer.progress` goes from 0 to 1 over the whole run and is the same for all peers, so somebody who
joins in the middle neither warms up again nor trains on after the end. Any schedule that is a
function of a number from 0 to 1 can be driven by it: here a warm-up, then half a cosine. A run needs
an end for that ("end.rounds", "end.tokens" or "end.minutes").
"""

from __future__ import annotations

import math

import torch
from torch import nn

import runnel

PEAK = 1e-2


def learning_rate(progress: float, *, warmup: float = 0.2) -> float:
    """From a tenth of the peak up to it, then down to a tenth again."""
    if progress < warmup:
        return PEAK * (0.1 + 0.9 * progress / warmup)
    x = (progress - warmup) / (1 - warmup)
    return PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi * x)) / 2)


def main() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(1024, 4)
    dataset = torch.utils.data.TensorDataset(inputs, inputs.square().sum(dim=1, keepdim=True))
    model = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK)
    run = runnel.local("end.rounds=30", "outer.every_steps=40", "outer.wait_s=5")
    with runnel.Peer(run, model=model, optimizer=optimizer) as peer:
        shown = -1
        for features, targets in peer.batches(dataset, batch_size=32):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(peer.progress)
            loss = nn.functional.mse_loss(model(features), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            peer.step(loss, tokens=len(features))  # weight by samples instead of steps
            if peer.round // 5 != shown:
                shown = peer.round // 5
                rate = optimizer.param_groups[0]["lr"]
                print(
                    f"{peer.progress:4.0%} done  learning rate {rate:.4f}  loss {loss.item():.3f}"
                )
        print(f"{peer.progress:4.0%} done after round {peer.round}")


if __name__ == "__main__":
    main()
