"""A child process of `benchmarks.footprint`: trains one model, with or without a peer, driven by lines of JSON."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.processes import answer_calls
from runnel.errors import BugError
from runnel.node.place import invited, local
from runnel.node.session import Peer

_WIDTH = 1024
_BATCH = 4
_LIMIT_S = 400.0


class FootprintTrainer:
    """A stack of linear layers, AdamW, and perhaps a peer."""

    def __init__(self, home: Path, layers: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._home = home
        self._model = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(layers)))
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        self._peer: Peer | None = None

    def found(self, *, settings: list[str]) -> dict[str, Any]:
        """Founds a run on this machine."""
        place = local(*settings, home=self._home)
        self._peer = Peer(place, model=self._model, optimizer=self._optimizer)
        return {"invite": self._peer.invite}

    def join(self, *, invite: str) -> dict[str, Any]:
        """Joins a run on this machine."""
        place = invited(invite, home=self._home, host="127.0.0.1")
        self._peer = Peer(place, model=self._model, optimizer=self._optimizer)
        return {}

    def train(self, *, steps: int, rounds: int) -> dict[str, Any]:
        """Trains for `steps`, and until the peer has seen `rounds` decided; how large the process became."""
        done, peer = 0, self._peer
        began_s = 0.0 if peer is None else peer.node.clock.monotonic_s()
        while done < steps or (peer is not None and peer.node.mailbox.chain.number < rounds):
            values = torch.randn(_BATCH, _WIDTH)
            loss = (self._model(values) - values).square().mean()
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            done += 1
            if peer is not None:
                peer.step(loss)
                if peer.node.clock.monotonic_s() - began_s > _LIMIT_S:
                    raise BugError(
                        f"{peer.node.mailbox.chain.number} rounds in {_LIMIT_S:g} s, expected {rounds}"
                    )
        members = len(peer.node.mailbox.chain.members) if peer is not None else 0
        return {
            "peak_bytes": peak_bytes(),
            "parameters": sum(p.numel() for p in self._model.parameters()),
            "members": members,
            "steps": done,
        }

    def tune(self, *, settings: list[str], steps: int) -> dict[str, Any]:
        """Forward passes, or so many steps of a run of shared seeds if there are `settings`."""
        values = torch.randn(_BATCH, _WIDTH)

        def loss() -> torch.Tensor:
            error: torch.Tensor = (self._model(values) - values).square().mean()
            return error

        if settings:
            self._peer = Peer(local(*settings, home=self._home), model=self._model)
        for _ in range(steps):
            if self._peer is not None:
                self._peer.spsa_step(loss)
            else:
                with torch.no_grad():
                    loss()
        return {
            "peak_bytes": peak_bytes(),
            "parameters": sum(p.numel() for p in self._model.parameters()),
        }

    def close(self) -> dict[str, Any]:
        """Leaves."""
        if self._peer is not None:
            self._peer.leave()
        return {}


def peak_bytes() -> int:
    """The most memory this process ever had (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BugError("/proc/self/status does not tell VmHWM")


def main(arguments: list[str]) -> int:
    """``HOME LAYERS``."""
    home, layers = arguments
    logging.basicConfig(level=os.environ.get("RUNNEL_LOG", "WARNING").upper())
    answer_calls(lambda: FootprintTrainer(Path(home), int(layers)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
