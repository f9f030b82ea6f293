"""A child process of `benchmarks.spsa_swarm`: one peer that tunes by shared seeds, driven by lines of JSON."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.processes import answer_calls
from runnel.clock import SystemClock
from runnel.errors import BugError
from runnel.node.events import Event, PeerReady
from runnel.node.gpt import Gpt, GptConfig
from runnel.node.messages import Commit, encode
from runnel.node.place import invited, local
from runnel.node.session import Peer
from runnel.optim.fixed_point_model import FixedPointModel, master_of
from runnel.optim.just_one_byte import ByteState, probes_of, take_step
from runnel.optim.spsa_loss import differences, epsilon_amount

_CONTEXT = 128
_PATIENCE_S = 120.0
_POLL_S = 0.005


class SeedPeer:
    """A model, a loss that times itself, and perhaps a peer."""

    def __init__(self, home: Path, layers: int, batch: int) -> None:
        """With no layers the model is a vector of a million weights, and its loss costs next to nothing."""
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._home, self._clock = home, SystemClock()
        self._model, self._loss = _task(layers, batch)
        self._peer: Peer | None = None
        self._events: list[Event] = []
        self._forward_s: list[float] = []

    def found(self, *, settings: list[str]) -> dict[str, Any]:
        """Founds a run on this machine."""
        place = local("seeds.method=spsa", *settings, home=self._home)
        self._peer = Peer(place, model=self._model, on_event=self._take)
        return {"invite": self._peer.invite}

    def join(self, *, invite: str, newest: int) -> dict[str, Any]:
        """Joins a run; how long it took from a started network to the weights after round `newest`."""
        place = invited(invite, home=self._home, host="127.0.0.1")
        self._peer = peer = Peer(place, model=self._model, on_event=self._take)
        began_s = self._clock.monotonic_s()
        while peer.round < newest:
            if self._clock.monotonic_s() > began_s + _PATIENCE_S:
                raise BugError(f"at round {peer.round} after {_PATIENCE_S:g} s")
            sleep(_POLL_S)
        (ready,) = [event for event in self._events if isinstance(event, PeerReady)]
        return {"seconds": ready.seconds + self._clock.monotonic_s() - began_s}

    def alone(self, *, steps: int, probes: int) -> dict[str, Any]:
        """The same steps in this process, without a network: seconds of each, and of what is no forward pass."""
        bound = FixedPointModel(self._model, master_of(self._model, (1, 2)))
        state, amount, walls = ByteState(), epsilon_amount(1e-3), list[float]()
        self._forward_s = []
        for _ in range(steps):
            began_s = self._clock.monotonic_s()
            places = probes_of(state, 0, probes, amount)
            found = differences(bound, self._timed, places)
            codes = {
                probe.slot: state.scale.code_of(one.scalar) or 0
                for probe, one in zip(places, found, strict=True)
            }
            update, state = take_step(state, codes, lr=1e-5)
            bound.apply([update])
            walls.append(self._clock.monotonic_s() - began_s)
        return {
            "step_s": median(walls),
            "pair_s": 2 * median(self._forward_s),
            "perturb_s": (sum(walls) - sum(self._forward_s)) / steps,
        }

    def tune(self, *, steps: int) -> dict[str, Any]:
        """Steps of the swarm; seconds of each and of its forward passes, bytes sent, rounds that passed."""
        peer, walls, forwards = self._found(), list[float](), list[float]()
        first, sent = peer.round, self._control_bytes()
        began_s = self._clock.monotonic_s()
        for _ in range(steps):
            step_s, self._forward_s = self._clock.monotonic_s(), []
            peer.spsa_step(self._timed)
            walls.append(self._clock.monotonic_s() - step_s)
            forwards.append(sum(self._forward_s))
        return {
            "seconds": self._clock.monotonic_s() - began_s,
            "walls": walls,
            "forwards": forwards,
            "rounds": peer.round - first,
            "control_bytes": self._control_bytes() - sent,
            "members": len(peer.node.mailbox.chain.members),
            "commit_bytes": self._commit_bytes(),
        }

    def root(self) -> dict[str, Any]:
        """Of what name the weights are, and after which round."""
        peer = self._found()
        return {"round": peer.round, "root": peer.node.store.root(0).hex()}

    def leave(self) -> dict[str, Any]:
        """Leaves."""
        if self._peer is not None:
            self._peer.leave()
        return {}

    def _found(self) -> Peer:
        if self._peer is None:
            raise BugError("commands in the wrong order")
        return self._peer

    def _timed(self) -> Tensor:
        began_s = self._clock.monotonic_s()
        value = self._loss()
        self._forward_s.append(self._clock.monotonic_s() - began_s)
        return value

    def _control_bytes(self) -> int:
        return self._found().node._entrance.network.transport.traffic.sent("control")

    def _commit_bytes(self) -> float:
        node = self._found().node
        commits = node._parts.protocol.state.saved.commits
        return median(len(encode(node.run_id, Commit(one))) for one in commits.values())

    def _take(self, event: Event) -> None:
        self._events.append(event)


def _task(layers: int, batch: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    if not layers:
        square = nn.Linear(1000, 1000, bias=False)
        first = square.weight
        return square, lambda: first[0].square().sum()
    gpt = Gpt(GptConfig(layers=layers, heads=6, width=384, context=_CONTEXT, vocab=256, seed=0))
    tokens = torch.randint(
        0, 256, (batch, _CONTEXT + 1), generator=torch.Generator().manual_seed(1)
    )
    return gpt, lambda: gpt.loss(tokens)


def main(arguments: list[str]) -> int:
    """``HOME LAYERS BATCH``."""
    home, layers, batch = arguments
    logging.basicConfig(level=os.environ.get("RUNNEL_LOG", "WARNING").upper())
    answer_calls(lambda: SeedPeer(Path(home), int(layers), int(batch)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
