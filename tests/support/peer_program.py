"""What an author writes: a model of their own, a loop, `runnel.Peer`. Run as a peer by tests/swarm.

    peer_program.py FOLDER [INVITE]

Without an invite it starts a run and prints its invite. Files in FOLDER steer it: while ``nan`` is
there its losses are NaN, and once ``finish`` is there its steps count for so many tokens that the run
ends. Then it prints the digest of its parameters and leaves.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import nn

import runnel
from runnel.hashing import digest

END_TOKENS = 10**12
SETTINGS = (
    f"end.tokens={END_TOKENS}",
    f"outer.max_weight_tokens={END_TOKENS}",
    "outer.every_steps=8",
    "outer.wait_s=5",
    "rounds.deadline_ceiling_s=6",
    "rounds.stall_s=6",
)


class Regression(nn.Module):
    """Two layers of different shapes, and a buffer that is not exchanged."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(24, 200), nn.Linear(200, 1)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1)
        result: torch.Tensor = self.out(torch.tanh(self.hidden(inputs)))
        return result


def main(folder: Path, invite: str) -> None:
    torch.manual_seed(1)
    torch.set_num_threads(1)
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    home = folder / "home"
    place = (
        runnel.invited(invite, home=home, host="127.0.0.1")
        if invite
        else runnel.local(*SETTINGS, home=home)
    )
    inputs = torch.randn(256, 24, generator=torch.Generator().manual_seed(2))
    dataset = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
    with runnel.Peer(place, model=model, optimizer=optimizer) as peer:
        if not invite:
            print(peer.invite, flush=True)
        for batch, wanted in peer.batches(dataset, batch_size=16):
            loss = nn.functional.mse_loss(model(batch), wanted)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            poisoned, finishing = (folder / "nan").exists(), (folder / "finish").exists()
            peer.step(float("nan") if poisoned else loss, tokens=END_TOKENS if finishing else 1)
            time.sleep(0.002)
        peer.take_last_state()
    values = [value.detach().numpy().tobytes() for value in model.parameters()]
    print("parameters", digest(*values).hex(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
