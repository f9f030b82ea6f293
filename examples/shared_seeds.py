"""Fine-tuning without gradients: peers exchange a byte per direction, and a fine-tune is some kilobytes.

A small model is pretrained on one function, then tuned on another one, with its first layer frozen as
with adapters. The run starts on this machine; the same loop joins others when `runnel.local(...)` is
replaced by an invite ("runnel:..."). Run it with ``python examples/shared_seeds.py``; it takes some
seconds.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

import runnel


def make_dataset(shift: float) -> TensorDataset:
    """1,024 points of a smooth function, the same each time."""
    points = torch.rand(1024, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2
    heights = torch.sin(points[:, :1] + shift) * torch.cos(points[:, 1:])
    return TensorDataset(points, heights)


def pretrained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    points, heights = make_dataset(0.0).tensors
    for _ in range(300):
        nn.functional.mse_loss(model(points), heights).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def loss_on(model: nn.Module, dataset: TensorDataset) -> float:
    points, heights = dataset.tensors
    return nn.functional.mse_loss(model(points), heights).item()


def main() -> None:
    model, dataset = pretrained(), make_dataset(0.7)
    model[0].requires_grad_(requires_grad=False)  # type: ignore[index]  # a Sequential
    model.eval()  # a loss must give the same at the same weights
    print(f"before the run, loss {loss_on(model, dataset):.4f}")

    place = runnel.local("seeds.method=spsa", "seeds.lr=3e-3", "seeds.probes=8", "end.rounds=80")
    peer = runnel.Peer(place, model=model)  # line 1: no optimizer
    shown = -1
    for points, heights in peer.batches(dataset, batch_size=128):  # line 2

        def loss_fn(points: torch.Tensor = points, heights: torch.Tensor = heights) -> torch.Tensor:
            return nn.functional.mse_loss(model(points), heights)

        loss = peer.spsa_step(loss_fn)  # line 3
        if peer.round // 20 != shown:
            shown = peer.round // 20
            print(f"round {peer.round:3d}  {peer.progress:4.0%} done  loss {loss:.4f}")
    peer.leave()

    print(f"the run is over after round {peer.round}, loss {loss_on(model, dataset):.4f}")


if __name__ == "__main__":
    main()
