"""A child process of `benchmarks.stall`: a peer whose inner steps take a fixed time, driven by lines of JSON."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from time import sleep
from typing import Any

import torch
from torch import nn

from benchmarks.processes import answer_calls
from runnel.clock import SystemClock
from runnel.errors import BugError
from runnel.node.events import Event, RoundCommitted, RoundDecided
from runnel.node.place import invited, local
from runnel.node.session import Peer

WIDTH = 1024
_JOIN_S = 120.0
_SAMPLE_S = 0.02
_MOVE = 1e-4


class PacedTrainer:
    """A stack of linear layers whose training is a fixed time and a small random move.

    Four trainings would share two processors with four peers, and each would slow the others; steps
    of a fixed time are what peers with machines of their own have.
    """

    def __init__(self, home: Path, host: str, layers: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._home, self._host = home, host
        self._model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
        self._generator = torch.Generator().manual_seed(os.getpid())
        self._peer: Peer | None = None
        self._clock = SystemClock()
        self._events: list[Event] = []
        self._rounds_at: list[tuple[float, int]] = []

    def found(self, *, settings: list[str]) -> dict[str, Any]:
        """Founds a run."""
        place = local(*settings, home=self._home, host=self._host)
        self._peer = Peer(place, model=self._model, on_event=self._take)
        return {"invite": self._peer.invite, "parameters": self._numel()}

    def join(self, *, invite: str) -> dict[str, Any]:
        """Joins a run."""
        place = invited(invite, home=self._home, host=self._host)
        self._peer = Peer(place, model=self._model, on_event=self._take)
        return {}

    def gather(self, *, members: int, step_s: float) -> dict[str, Any]:
        """Trains until so many are members and this peer has contributed."""
        began_s = self._clock.monotonic_s()
        while len(self._require().node.mailbox.chain.members) < members or not self._contributed():
            self._step(step_s)
            if self._clock.monotonic_s() - began_s > _JOIN_S:
                raise BugError(f"fewer than {members} members after {_JOIN_S:g} s")
        return {}

    def train(self, *, seconds: float, step_s: float) -> dict[str, Any]:
        """Trains for `seconds`: where the time went, and what became of the rounds."""
        peer = self._require()
        self._events.clear()
        before = peer.status()
        began_s, stalled_s, steps = self._clock.monotonic_s(), 0.0, 0
        while self._clock.monotonic_s() - began_s < seconds:
            stalled_s += self._step(step_s)
            steps += 1
        took_s, after = self._clock.monotonic_s() - began_s, peer.status()
        events = list(self._events)
        decided = [e for e in events if isinstance(e, RoundDecided)]
        shares = [e for e in events if isinstance(e, RoundCommitted)]
        return {
            "seconds": took_s,
            "steps": steps,
            "stalled_s": stalled_s,
            "rounds": [e.round for e in decided if e.kind == "record"],
            "aborts": sum(e.kind == "abort" for e in decided),
            "shares": len(shares),
            "slices": sum(e.slices for e in shares),
            "withheld": sum(e.withheld for e in shares),
            "included": sum(e.included for e in decided),
            "uplink_mbit": shares[-1].uplink_mbit if shares else 0.0,
            "deadline_s": decided[-1].deadline_s if decided else 0.0,
            "sent_bytes": after["sent_bytes"] - before["sent_bytes"],
            "received_bytes": after["received_bytes"] - before["received_bytes"],
            "peer": after["peer"],
        }

    def count(self, *, rounds: int, step_s: float) -> dict[str, Any]:
        """Trains through so many rounds: bytes sent, in all and at short intervals.

        Each of `rounds_at` and `samples` is a time in seconds and the bytes sent until then: at the
        end of each round, and every few milliseconds.
        """
        self._rounds_at.clear()
        samples, done = list[tuple[float, int]](), threading.Event()
        sampler = threading.Thread(target=self._sample, args=(samples, done))
        sampler.start()
        try:
            while len(self._rounds_at) <= rounds:
                self._step(step_s)
        finally:
            done.set()
            sampler.join()
        return {"rounds_at": list(self._rounds_at), "samples": samples, "sizes": self._sizes()}

    def _sample(self, samples: list[tuple[float, int]], done: threading.Event) -> None:
        while not done.wait(_SAMPLE_S):
            samples.append((self._clock.monotonic_s(), self._require().status()["sent_bytes"]))

    def _take(self, event: Event) -> None:
        self._events.append(event)
        if isinstance(event, RoundDecided) and event.kind == "record" and self._peer is not None:
            sent = self._peer.status()["sent_bytes"]
            self._rounds_at.append((self._clock.monotonic_s(), sent))

    def _sizes(self) -> list[int]:
        return list(self._require().node.plan.sizes)

    def close(self) -> dict[str, Any]:
        """Leaves."""
        self._require().leave()
        return {}

    def _step(self, step_s: float) -> float:
        """One inner step; the seconds that the peer took of it."""
        began_s = self._clock.monotonic_s()
        with torch.no_grad():
            for parameter in self._model.parameters():
                noise = torch.empty(64).normal_(generator=self._generator)
                parameter.view(-1, 64).add_(noise, alpha=_MOVE)
        sleep(max(0.0, step_s - (self._clock.monotonic_s() - began_s)))
        done_s = self._clock.monotonic_s()
        self._require().step(1.0)
        return self._clock.monotonic_s() - done_s

    def _contributed(self) -> bool:
        return any(isinstance(event, RoundCommitted) for event in self._events)

    def _numel(self) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    def _require(self) -> Peer:
        if self._peer is None:
            raise BugError("commands in the wrong order")
        return self._peer


def main(arguments: list[str]) -> int:
    """``HOME HOST LAYERS``."""
    home, host, layers = arguments
    logging.basicConfig(level=os.environ.get("RUNNEL_LOG", "WARNING").upper())
    answer_calls(lambda: PacedTrainer(Path(home), host, int(layers)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
