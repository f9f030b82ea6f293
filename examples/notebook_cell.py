"""What to paste into a notebook: a peer inside a running event loop.

Jupyter runs every cell inside an asyncio loop. `runnel.Peer` does not mind: its network has a thread
and a loop of its own, it forks nothing, and it leaves signal handlers alone. Here `asyncio.run` stands
for Jupyter and `cell` for the cell: plain calls, nothing to await, no patch of asyncio. At the end of
a cell, ``peer`` alone shows a table.
"""

from __future__ import annotations

import asyncio

import torch
from torch import nn

import runnel


def cell() -> str:
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(512, 8)
    dataset = torch.utils.data.TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))

    run = runnel.local("end.rounds=16", "outer.every_steps=16", "outer.wait_s=5")
    peer = runnel.Peer(run, model=model, optimizer=optimizer)
    print(peer)
    loss = torch.tensor(0.0)
    for features, targets in peer.batches(dataset, batch_size=16):
        loss = nn.functional.mse_loss(model(features), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        peer.step(loss)
    peer.leave()
    print(peer, f"- loss {loss.item():.6f}")
    return peer._repr_html_()  # what Jupyter shows of the cell's last line


async def main() -> None:
    assert asyncio.get_running_loop().is_running()
    picture = cell()
    await asyncio.sleep(0)  # the loop is as it was
    print(f"Jupyter would show a table of {picture.count('<tr>')} rows")


if __name__ == "__main__":
    asyncio.run(main())  # noqa: TID251 - Jupyter has its own
