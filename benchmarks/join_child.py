"""A child process of `benchmarks.join`: a peer of a run with a model of 10 million parameters, driven by lines of JSON.

Its steps are those of a trainer whose arithmetic is elsewhere: a small batch, then a pause.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import process_time, sleep
from typing import Any

import torch

from benchmarks.processes import answer_calls
from runnel.clock import SystemClock
from runnel.errors import BugError
from runnel.node.config import MachineConfig
from runnel.node.dataset_exchange import publish_corpus
from runnel.node.entrance import enter
from runnel.node.events import Event, MergeApplied
from runnel.node.manifest import RunSpec, make_spec, parse_overrides
from runnel.node.peer import PeerNode
from runnel.node.place import Local, Place, invited
from runnel.node.run_model import build_model
from runnel.node.session import Peer
from runnel.node.text_source import own_corpus
from runnel.optim.inner import inner_optimizer

_HOST = "127.0.0.1"


class JoinPeer:
    """The run's model, its optimizer, and perhaps a peer."""

    def __init__(self, home: Path, pause_s: float) -> None:
        torch.set_num_threads(1)
        self._home, self._pause_s = home, pause_s
        self._clock = SystemClock()
        self._peer: Peer | None = None
        self._included = 0

    def found(self, *, settings: Sequence[str]) -> dict[str, Any]:
        """Founds a run on this machine and serves its text."""
        spec = _spec(settings)
        text = own_corpus(spec)
        machine = MachineConfig.at(self._home, host=_HOST)
        peer = self._enter(Local(spec=spec, machine=machine, data_root=text.root))
        publish_corpus(peer.node.shelf, text)
        return {"invite": peer.invite}

    def join(self, *, invite: str) -> dict[str, Any]:
        """Joins a run."""
        self._enter(invited(invite, home=self._home, host=_HOST))
        return {}

    def step_alone(self, *, settings: Sequence[str]) -> dict[str, Any]:
        """One step without a run; when it ended, by this machine's monotonic clock, and what it cost."""
        self._build(_spec(settings))
        self._step()
        parameters = sum(p.numel() for p in self._model.parameters())
        return {
            "stepped_s": self._clock.monotonic_s(),
            "cpu_s": process_time(),
            "parameters": parameters,
        }

    def train(self, *, seconds: float) -> dict[str, Any]:
        """Steps for some seconds; when, in seconds since 1970, and of what time how much went into the peer's part of them."""
        peer = self._peer
        if peer is None:
            raise BugError("commands in the wrong order")
        began_s = now_s = self._clock.unix_s()
        steps, stalled_s = 0, 0.0
        while now_s < began_s + seconds:
            loss = self._step()
            handed_s = self._clock.monotonic_s()
            peer.step(loss)
            stalled_s += self._clock.monotonic_s() - handed_s
            steps += 1
            sleep(self._pause_s)
            now_s = self._clock.unix_s()
        return {
            "began_s": began_s,
            "ended_s": now_s,
            "steps": steps,
            "stalled_s": stalled_s,
            "included": self._included,
            "members": len(peer.node.mailbox.chain.members),
        }

    def leave(self) -> dict[str, Any]:
        """Leaves."""
        if self._peer is not None:
            self._peer.leave()
        return {}

    def _enter(self, place: Place) -> Peer:
        entrance = enter(place)
        self._build(entrance.spec)
        node = PeerNode.attach(entrance, self._model)
        self._peer = Peer.on(node, self._model, self._optimizer, self._take)
        return self._peer

    def _build(self, spec: RunSpec) -> None:
        self._model = build_model(spec)
        named = self._model.named_parameters()
        self._optimizer = inner_optimizer(spec.inner.optimizer, named, lr=spec.inner.lr)
        self._shape = (spec.data.batch_size, spec.model.context + 1)

    def _step(self) -> torch.Tensor:
        loss = self._model.loss(torch.randint(0, 256, self._shape))
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()

    def _take(self, event: Event) -> None:
        if isinstance(event, MergeApplied):
            self._included += event.included


def _spec(settings: Sequence[str]) -> RunSpec:
    return make_spec(parse_overrides(["run.name=join", *settings]), source="benchmarks.join")


def main(arguments: list[str]) -> int:
    """``HOME PAUSE_S``."""
    home, pause_s = arguments
    logging.basicConfig(level=os.environ.get("RUNNEL_LOG", "WARNING").upper())
    answer_calls(lambda: JoinPeer(Path(home), float(pause_s)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
