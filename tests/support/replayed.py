"""A simulated run with public windows, and all that its peers' windows can be computed again from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from runnel.dht.memory import MemoryNetwork
from runnel.node import taking_part
from runnel.node.commitments import Commitment
from runnel.node.manifest import RunSpec, make_spec, parse_overrides
from runnel.node.replay import Claim, KnownRound, Replica
from runnel.node.rounds import slice_bounds
from runnel.node.shares import PublicWindows
from runnel.node.vault import Vault
from runnel.optim.binding import ModelBinding, plan_model
from runnel.optim.inner import inner_optimizer, set_learning_rates
from runnel.optim.inner_state import InnerState
from runnel.protocols import Float32
from runnel.tools.sim_faults import Faults
from runnel.tools.sim_peer import Ground, temporary_folder
from runnel.tools.sim_runtime import SimLoop
from runnel.tools.sim_world import Course, World
from runnel.types import PeerId

PEERS, FRAGMENTS, EVERY = 2, 3, 6
STEP_S = 0.12
"""So short that some results come after the window that follows their round."""

_POINTS = torch.randn(512, 6, generator=torch.Generator().manual_seed(7))


def spec_of(*settings: str) -> RunSpec:
    given = [
        "run.name=replayed",
        "model.kind=custom",
        "outer.windows=public",
        f"outer.fragments={FRAGMENTS}",
        f"outer.every_steps={EVERY}",
        "end.rounds=15",
        *settings,
    ]
    return make_spec(parse_overrides(given), source="test")


class Student:
    """Learns sums with AdamW, from batches that its number and its step draw; implements `Learner`."""

    def __init__(self, index: int) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)]
        self.model = nn.Sequential(*layers)
        self.optimizer = inner_optimizer("adamw", self.model.named_parameters(), lr=0.02)
        self._index, self._steps = index, 0

    def step(self, progress: float) -> tuple[float, int]:
        """See `Learner.step`."""
        self._steps += 1
        return self.learn(self._steps, progress), 1

    def learn(self, step: int, progress: float) -> float:
        """Step number `step` of all of this peer's."""
        drawn = torch.Generator().manual_seed(1_000 * self._index + step)
        inputs = _POINTS[torch.randint(len(_POINTS), (16,), generator=drawn)]
        loss = functional.mse_loss(self.model(inputs), inputs.sum(1, keepdim=True))
        loss.backward()
        set_learning_rates(self.optimizer, 1.0 - 0.9 * progress)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


@dataclass
class Ended:
    """What a trainer had when a window of its was over: steps so far, values by fragment, optimizer's state."""

    first_round: int
    at_step: int
    values: dict[int, Float32]
    inner: InnerState


@dataclass
class Seen:
    """What a run left behind: by peer, and by round."""

    ended: dict[int, list[Ended]] = field(default_factory=dict)
    commitments: dict[PeerId, dict[int, Commitment]] = field(default_factory=dict)
    counted: dict[tuple[PeerId, int], tuple[Float32, ...]] = field(default_factory=dict)
    sent: dict[tuple[PeerId, int], Float32] = field(default_factory=dict)
    before: dict[int, Float32] = field(default_factory=dict)
    rounds: dict[PeerId, dict[int, KnownRound]] = field(default_factory=dict)
    peers: list[PeerId] = field(default_factory=list)
    course: Course = field(default_factory=Course)

    def claims(self, index: int) -> Iterator[tuple[Claim, Replica]]:
        """All windows of a peer that its commitments name, with a replica to compute each again."""
        me, ends = self.peers[index], self.ended[index]
        for begun, end in pairwise(ends):
            numbers = range(end.first_round, end.first_round + FRAGMENTS)
            made = [self.commitments[me].get(number) for number in numbers]
            commitments = [one for one in made if one is not None and one.window is not None]
            if len(commitments) < FRAGMENTS:
                continue
            yield (
                Claim(
                    commitments=commitments,
                    values=[begun.values[f] for f in range(FRAGMENTS)],
                    inner=begun.inner,
                    counted=[self.counted[me, c.round] for c in commitments],
                    rounds=self._known(me, commitments),
                ),
                replica_of(index, begun.at_step),
            )

    def _known(self, me: PeerId, commitments: Sequence[Commitment]) -> dict[int, KnownRound]:
        known = dict(self.rounds[me])
        for one in commitments:
            before = self.before[one.round]
            empty = KnownRound(before, before, None, (), (), 0)
            known.setdefault(one.round, empty)
        return known


def replica_of(index: int, steps_before: int) -> Replica:
    """A peer's model once more, whose steps are those after so many."""
    student = Student(index)

    def train(step: int, progress: float) -> None:
        student.learn(steps_before + step, progress)

    binding = ModelBinding(student.model, plan_model(student.model, FRAGMENTS))
    return Replica(binding, student.optimizer, train)


@contextmanager
def _watched(seen: Seen, students: dict[int, int]) -> Iterator[None]:
    """Notes what a peer would be asked for, and what all know."""
    end, commit = PublicWindows.end, taking_part.commitment_of
    contribute, adopt = Vault.contribute, Vault._adopt

    def ended(self: PublicWindows, number: int, base: Any, shares: Any) -> None:
        end(self, number, base, shares)
        values = {f: share.snapshot.copy() for f, share in self.shares.items()}
        first = next(iter(self.shares.values()))
        assert first.end is not None
        assert first.end.inner is not None
        one = Ended(number, first.at_step, values, first.end.inner)
        seen.ended.setdefault(students[id(self.optimizer)], []).append(one)

    def committed(*given: Any) -> Commitment:
        made = commit(*given)
        again = Commitment.from_wire(made.to_wire())
        seen.commitments.setdefault(made.peer, {})[made.round] = again
        return made

    def contributed(self: Vault, handed: Any) -> Any:
        fragment, number = handed.want.fragment, handed.want.key.number
        counted = tuple(one.copy() for one in self.store.counted(fragment))
        before = self.store.parameters(fragment).copy()
        given = contribute(self, handed)
        kept = self.contributions.get(handed.want.key)
        if given is not None and kept is not None:
            seen.counted[self._me, number], seen.before[number] = counted, before
            sent = np.empty_like(before)
            bounds = slice_bounds(sent.size, len(kept.payloads))
            for (low, high), payload in zip(bounds, kept.payloads, strict=True):
                self.store.codec.decode(payload, sent[low:high])
            seen.sent[self._me, number] = sent
        return given

    def adopted(self: Vault, chain: Any, record: Any, path: Any, moves: Any) -> Any:
        fragment = record.number % FRAGMENTS
        before = self.store.parameters(fragment).copy()
        share = record.share_of(self._me)
        merged = adopt(self, chain, record, path, moves)
        seen.rounds.setdefault(self._me, {})[record.number] = KnownRound(
            before,
            self.store.parameters(fragment).copy(),
            seen.sent.get((self._me, record.number)),
            slice_bounds(before.size, len(record.slices)),
            tuple(share in piece.included for piece in record.slices),
            record.progress,
        )
        return merged

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PublicWindows, "end", ended)
        patch.setattr(taking_part, "commitment_of", committed)
        patch.setattr(Vault, "contribute", contributed)
        patch.setattr(Vault, "_adopt", adopted)
        yield


def run_of(spec: RunSpec) -> Seen:
    """Real peers over a network in memory, until their run is over."""
    seen, students = Seen(), dict[int, int]()
    alive: list[Student] = []

    def student(index: int) -> Student:
        made = Student(index)
        students[id(made.optimizer)] = index
        alive.append(made)
        return made

    with (
        _watched(seen, students),
        temporary_folder() as folder,
        asyncio.Runner(loop_factory=SimLoop) as runner,
    ):
        ground = Ground(
            loop=runner.get_loop(),  # type: ignore[arg-type]  # the factory's
            network=MemoryNetwork(1),
            folder=Path(folder),
            seed=1,
            cells=PEERS,
            values=0,
            step_s=STEP_S,
            learner=student,
        )
        world = World(ground, spec, Faults())
        seen.course, seen.peers = runner.run(world.run(60.0, lambda _: None)), world.ids
    return seen
