"""A peer of a chaos run: an author's program whose every step can be accounted for afterwards.

Its model is a small regression and a ledger with a cell for each peer. In each inner step a peer
lowers its own cell by one `UNIT`, which nobody else touches: what the chain says of a peer's shares
then tells, to the last bit of rounding, where its cell must stand. See `runnel.tools.chaos_ledger`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import runnel
from runnel.node.place import Place
from runnel.tools.chaos_ledger import CELLS, LEDGER, UNIT
from runnel.tools.cli_errors import exit_code_of
from runnel.tools.cli_run import show_invite
from runnel.tools.cli_signals import stop_on_signals

_INPUTS, _HIDDEN, _ROWS, _BATCH = 32, 256, 512, 16
_STEP_S = 0.05


class Accountable(nn.Module):
    """A regression with one hidden layer, and the ledger, which takes no part in it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(_INPUTS, _HIDDEN), nn.Linear(_HIDDEN, 1)
        self.ledger = nn.Parameter(torch.zeros(CELLS))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[batch, inputs] to [batch, 1]."""
        result: torch.Tensor = self.out(torch.tanh(self.hidden(inputs)))
        return result


def train(place: Place, slot: int, stop: threading.Event, *, invites: bool) -> None:
    """Trains until `stop`, then leaves in order."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    model = Accountable()
    assert any(name == LEDGER for name, _ in model.named_parameters())
    optimizer = torch.optim.SGD([*model.hidden.parameters(), *model.out.parameters()], lr=0.02)
    inputs = torch.randn(_ROWS, _INPUTS, generator=torch.Generator().manual_seed(2))
    dataset = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
    with runnel.Peer(place, model=model, optimizer=optimizer) as peer:
        if invites:
            show_invite(peer.invite)
        for batch, wanted in peer.batches(dataset, batch_size=_BATCH):
            loss = nn.functional.mse_loss(model(batch), wanted)
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                model.ledger[slot] -= UNIT
            peer.step(loss)
            if stop.is_set():
                break
            time.sleep(_STEP_S)  # the processors are for everybody


def main(argv: Sequence[str] | None = None) -> int:
    """``launch SETTINGS`` or ``join INVITE``, with ``--home`` and ``--host``; the exit code.

    SETTINGS is a file with one to a line. The home's name ends in the number of the peer's own cell.
    """
    options = _parser().parse_args(argv)
    level = os.environ.get("RUNNEL_LOG", "INFO").upper()
    logging.basicConfig(
        level=level, format="%(asctime)s.%(msecs)03d %(message)s", datefmt="%H:%M:%S"
    )
    home, stop = options.home, threading.Event()
    slot = int(home.name.rpartition("-")[2])
    if options.do == "launch":
        settings = Path(options.what).read_text(encoding="utf-8").splitlines()
        place: Place = runnel.local(*settings, home=home, host=options.host)
    else:
        place = runnel.invited(options.what, home=home, host=options.host)

    def run() -> int:
        with stop_on_signals(stop):
            train(place, slot, stop, invites=options.do == "launch")
        return 0

    return exit_code_of(run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos_peer")
    parser.add_argument("do", choices=("launch", "join"))
    parser.add_argument("what")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    return parser


if __name__ == "__main__":
    sys.exit(main())
