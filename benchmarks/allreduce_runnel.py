"""One peer's side of an all-reduce by runnel: a real peer of a real run, whose trainer is this benchmark.

The whole of a model is one fragment; the outer step has learning rate 1 and no momentum, so that the
outer parameters move by exactly the mean. What is timed goes from the hand-over of the trainer's
values to the merge in the trainer's mailbox: encoding, durable contribution, commitments, the agreed
set, slices with their proofs, durable results, the new state and its hash, votes, certificate.
"""

from __future__ import annotations

from pathlib import Path
from time import sleep
from typing import Any, TypeVar

import torch
from torch import nn

from benchmarks.allreduce_vectors import name_of, relative_error, vector_of
from runnel.clock import SystemClock
from runnel.errors import BugError
from runnel.node.actions import WantHandover
from runnel.node.assembly import Assembly, assemble
from runnel.node.config import MachineConfig
from runnel.node.entrance import Entrance, enter
from runnel.node.invite import Invite
from runnel.node.mailbox import DecidedMerge, HandedOver
from runnel.node.peer import PeerNode
from runnel.node.place import Joined, local
from runnel.protocols import Float32

_WAIT_S = 120.0
_T = TypeVar("_T")
_SETTINGS = (
    "outer.fragments=1",
    "outer.lr=1.0",
    "outer.optimizer=sgd",
    "outer.aggregator=weighted-mean",
    "rounds.open=1",
    "rounds.stall_s=3600.0",
)


class RunnelPeer:
    """Peer number `index`; runs follow each other in one process."""

    def __init__(self, index: int, folder: Path) -> None:
        self._index, self._folder = index, folder
        self._node: PeerNode | None = None
        self._parts: Assembly | None = None
        self._entrance: Entrance | None = None
        self._version, self._number = 0, -1
        self._due: HandedOver | None = None
        self._before: Float32 | None = None

    def open(self, *, codec: str, numel: int, invite: str) -> dict[str, Any]:
        """Founds a run with `codec` both ways, or joins one."""
        home = self._folder / f"runnel-{self._index}-{codec}"
        place = (
            Joined(invite=Invite.parse(invite), machine=MachineConfig.at(home, host="127.0.0.1"))
            if invite
            else local(*_SETTINGS, f"outer.codec={codec}", f"outer.result_codec={codec}", home=home)
        )
        entrance = self._entrance = enter(place)
        parts = self._parts = assemble(entrance, _Vector(numel))
        self._node, self._version = PeerNode(entrance, parts), 0
        self._node.begin()
        return {"invite": "" if invite else self._node.make_invite()}

    def warm_up(self, *, members: int) -> dict[str, Any]:
        """Takes part in rounds until all are members."""
        node = self._require(self._node)
        deadline_s = node.clock.monotonic_s() + _WAIT_S
        while len(node.mailbox.chain.members) < members:
            if node.clock.monotonic_s() > deadline_s:
                raise BugError(f"only {len(node.mailbox.chain.members)} members after {_WAIT_S} s")
            node.mailbox.check()
            node.mailbox.wait(lambda: bool(node.mailbox.wants()), 0.2)
            for want in node.mailbox.wants()[:1]:
                if len(node.mailbox.chain.members) < members:
                    node.mailbox.hand_over(self._share(want))
            self._take(node.mailbox.take_merges(lambda _: True))
        return {}

    def prepare(self) -> dict[str, Any]:
        """Makes the values to hand over: what this peer owes the others is then its vector.

        A contribution is what the trainer learned and what earlier encodings lost; the latter is
        taken off here, so that rounds do not differ.
        """
        node, parts = self._require(self._node), self._require(self._parts)
        if not node.mailbox.wait(lambda: bool(node.mailbox.wants()), _WAIT_S):
            raise BugError("no round has opened")
        self._take(node.mailbox.take_merges(lambda _: True))
        self._number += 1
        share = self._share(node.mailbox.wants()[0])
        share.snapshot[:] += parts.store.residual(0)
        share.snapshot[:] -= vector_of(self._folder, self._index, self._number)
        self._before = parts.store.parameters(0).copy()
        self._due = share
        return {}

    def run(self, *, at_s: float) -> dict[str, Any]:
        """One all-reduce, begun at `at_s` of the machine's monotonic clock."""
        node, share = self._require(self._node), self._require(self._due)
        _sleep_until(at_s)
        began_s = node.clock.monotonic_s()
        node.mailbox.hand_over(share)
        arrived: list[DecidedMerge] = []

        def has_arrived() -> bool:
            arrived.extend(node.mailbox.take_merges(lambda _: True))
            return bool(arrived)

        done = node.mailbox.wait(has_arrived, _WAIT_S)
        ended_s = node.clock.monotonic_s()
        node.mailbox.check()
        if not done or not all(decided.included for decided in arrived):
            raise BugError("the round went by without this peer's vector")
        self._take(tuple(arrived))
        return {"began_s": began_s, "ended_s": ended_s}

    def check(self) -> dict[str, Any]:
        """How far the result is from the true mean, and a name of its bits."""
        after, before = self._require(self._parts).store.parameters(0), self._require(self._before)
        return {
            "relative_error": relative_error(self._folder, before - after, self._number),
            "bits": name_of(after),
        }

    def close(self) -> dict[str, Any]:
        """Leaves the run."""
        if self._node is not None:
            self._node.close()
        self._node = self._parts = self._entrance = self._due = self._before = None
        return {}

    def _share(self, want: WantHandover) -> HandedOver:
        """An empty contribution: the trainer's values are the outer ones."""
        values = self._require(self._parts).store.parameters(0).copy()
        return HandedOver(
            want=want, snapshot=values, version=self._version, tokens=1, steps=1, loss=0.0
        )

    def _take(self, merges: tuple[DecidedMerge, ...]) -> None:
        for decided in merges:
            self._version = decided.merge.version

    @staticmethod
    def _require(part: _T | None) -> _T:
        if part is None:
            raise BugError("commands in the wrong order")
        return part


class _Vector(nn.Module):
    """A model of one parameter, zeros."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(numel))


def _sleep_until(at_s: float) -> None:
    sleep(max(0.0, at_s - SystemClock().monotonic_s()))
