"""Two processes that train one model together and end with the same parameters, bit for bit.

The first process starts a run and passes its invite to the second one, which is this same file with
the invite as its argument; on two machines you would send it by chat. The second peer begins with
other random values and gets those of the run when it joins. Both print the hash of their parameters
at the end. Run it with ``python examples/two_peers.py``.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile

import torch
from torch import nn
from torch.utils.data import TensorDataset

import runnel


def train(peer: runnel.Peer, model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """The loop of both peers; the hash of the parameters that the run ended with."""
    inputs = torch.randn(2048, 8, generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(inputs, inputs.prod(dim=1, keepdim=True).tanh())
    for features, targets in peer.batches(dataset, batch_size=16):  # each peer draws other samples
        loss = nn.functional.mse_loss(model(features), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        peer.step(loss)
    peer.take_last_state()
    values = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def main(invite: str | None = None) -> None:
    torch.manual_seed(0 if invite is None else 1)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if invite is not None:
        with tempfile.TemporaryDirectory() as home:  # on another machine the invite alone is enough
            place = runnel.invited(invite, home=home, host="127.0.0.1")
            with runnel.Peer(place, model=model, optimizer=optimizer) as peer:
                print("second peer has the run's parameters", flush=True)
                print("second peer ends with", train(peer, model, optimizer), flush=True)
        return
    run = runnel.local(
        "end.rounds=24", "outer.every_steps=16", "outer.wait_s=5", "rounds.deadline_ceiling_s=5"
    )
    with runnel.Peer(run, model=model, optimizer=optimizer) as peer:
        print("invite:", peer.invite, flush=True)
        command = [sys.executable, __file__, peer.invite]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
            assert second.stdout is not None
            print(second.stdout.readline(), end="")  # it may join at any time; here at the start
            print("first peer ends with ", train(peer, model, optimizer), flush=True)
            peer.leave()
            print(second.stdout.read(), end="")
    print("members at the end:", len(peer.status()["members"]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
