"""A child process of `benchmarks.join`: one peer with a model of 10 million parameters, driven by lines of JSON.

Its steps are those of a trainer whose arithmetic is elsewhere: a small batch, then a pause.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from time import process_time, sleep
from typing import Any

import torch
from torch import nn

from benchmarks.processes import answer_calls
from runnel.clock import SystemClock
from runnel.errors import BugError
from runnel.node.events import Event, MergeApplied, StateFetched
from runnel.node.place import Place, invited, local
from runnel.node.session import Peer

_LAYERS, _WIDTH = 10, 1000
_BATCH = 4
_PART_S = 200.0


class JoinPeer:
    """A stack of linear layers, AdamW, and perhaps a peer."""

    def __init__(self, home: Path, pause_s: float) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._home, self._pause_s = home, pause_s
        self._clock = SystemClock()
        self._peer: Peer | None = None
        self._fetched: StateFetched | None = None
        self._included = 0
        self._model: nn.Module = nn.Identity()
        self._optimizer: torch.optim.Optimizer | None = None
        self._at_s = {"imported": self._clock.monotonic_s()}

    def found(self, *, settings: list[str]) -> dict[str, Any]:
        """Founds a run on this machine."""
        self._build()
        return {"invite": self._enter(local(*settings, home=self._home)).invite}

    def join(self, *, invite: str) -> dict[str, Any]:
        """Joins a run, or goes without one, and takes the first step; when what was done, and who gave what.

        Times are of the machine's monotonic clock.
        """
        self._build()
        if invite:
            self._enter(invited(invite, home=self._home, host="127.0.0.1"))
            self._at_s["joined"] = self._clock.monotonic_s()
        self._step()
        self._at_s["stepped"] = self._clock.monotonic_s()
        fetched = self._fetched
        return {
            "at_s": self._at_s,
            "cpu_s": process_time(),
            "parameters": sum(p.numel() for p in self._model.parameters()),
            "bytes_by_donor": {} if fetched is None else dict(fetched.bytes_by_donor),
            "fetch_s": 0.0 if fetched is None else fetched.seconds,
        }

    def train(self, *, seconds: float) -> dict[str, Any]:
        """Steps for some seconds; of what time how much went into the peer's part of them."""
        began_s = now_s = self._clock.monotonic_s()
        steps, stalled_s = 0, 0.0
        while now_s < began_s + seconds:
            stalled_s += self._step()
            steps += 1
            sleep(self._pause_s)
            now_s = self._clock.monotonic_s()
        members = 0 if self._peer is None else len(self._peer.node.mailbox.chain.members)
        return {
            "began_s": began_s,
            "ended_s": now_s,
            "steps": steps,
            "stalled_s": stalled_s,
            "included": self._included,
            "members": members,
        }

    def take_part(self) -> dict[str, Any]:
        """Trains until a decided round holds something of this peer's."""
        peer, deadline_s = self._peer, self._clock.monotonic_s() + _PART_S
        if peer is None:
            raise BugError("commands in the wrong order")
        while not self._included:
            if self._clock.monotonic_s() > deadline_s:
                raise BugError(f"no part in a decided round in {_PART_S:g} s")
            self.train(seconds=self._pause_s)
        return {"round": peer.round}

    def leave(self) -> dict[str, Any]:
        """Leaves."""
        if self._peer is not None:
            self._peer.leave()
        return {}

    def _build(self) -> None:
        self._model = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS)))
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-5)
        self._at_s["built"] = self._clock.monotonic_s()

    def _enter(self, place: Place) -> Peer:
        self._peer = Peer(place, model=self._model, optimizer=self._optimizer, on_event=self._take)
        return self._peer

    def _step(self) -> float:
        """One inner step; seconds in the peer's part of it."""
        values = torch.randn(_BATCH, _WIDTH)
        loss = (self._model(values) - values).square().mean()
        loss.backward()
        assert self._optimizer is not None  # built before
        self._optimizer.step()
        self._optimizer.zero_grad()
        began_s = self._clock.monotonic_s()
        if self._peer is not None:
            self._peer.step(loss)
        return self._clock.monotonic_s() - began_s

    def _take(self, event: Event) -> None:
        if isinstance(event, StateFetched):
            self._fetched = event
        elif isinstance(event, MergeApplied):
            self._included += event.included


def main(arguments: list[str]) -> int:
    """``HOME PAUSE_S``."""
    home, pause_s = arguments
    logging.basicConfig(level=os.environ.get("RUNNEL_LOG", "WARNING").upper())
    answer_calls(lambda: JoinPeer(Path(home), float(pause_s)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
