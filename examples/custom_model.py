"""A torch model of your own in a run of its own: three lines more than the loop you have.

The run starts on this machine, with no other peer and no invite; the same loop joins others when
`runnel.local(...)` is replaced by an invite ("runnel:..."). `peer.invite` is what you would send to
friends. Run it with ``python examples/custom_model.py``; it takes some seconds.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

import runnel


def make_dataset() -> TensorDataset:
    """1,024 points of a smooth function, the same each time."""
    points = torch.rand(1024, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2
    heights = torch.sin(points[:, :1]) * torch.cos(points[:, 1:])
    return TensorDataset(points, heights)


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    dataset = make_dataset()

    # The settings are those of run.toml: here a short run that waits for its rounds.
    place = runnel.local("end.rounds=24", "outer.every_steps=40", "outer.wait_s=5")
    peer = runnel.Peer(place, model=model, optimizer=optimizer)  # line 1
    shown = -1
    for points, heights in peer.batches(dataset, batch_size=32):  # line 2
        loss = nn.functional.mse_loss(model(points), heights)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        peer.step(loss)  # line 3
        if peer.round // 4 != shown:
            shown = peer.round // 4
            print(f"round {peer.round:2d}  {peer.progress:4.0%} done  loss {loss.item():.4f}")
    peer.take_last_state()
    peer.leave()

    with torch.no_grad():
        points, heights = dataset.tensors
        final = nn.functional.mse_loss(model(points), heights).item()
    print(f"the run is over after round {peer.round}, loss {final:.4f}")


if __name__ == "__main__":
    main()
