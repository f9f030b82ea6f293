"""Layers with bits of their own between real peers in virtual time: one crashes, and all end with the same bits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch
from torch import nn

from runnel.dht.memory import MemoryNetwork
from runnel.node.manifest import make_spec, parse_overrides
from runnel.node.round_events import RoundCommitted, RoundDecided
from runnel.node.rounds import slice_bounds
from runnel.optim import plan_model
from runnel.optim.codecs import planned_bytes
from runnel.tools.sim_faults import Crash, Faults, Restart
from runnel.tools.sim_peer import Ground, temporary_folder
from runnel.tools.sim_runtime import SimLoop
from runnel.tools.sim_world import World

PEERS = 3
CODEC = "l-greco+e3m0"
SETTINGS = (
    "run.name=layers",
    "model.kind=custom",
    f"outer.codec={CODEC}",
    f"outer.result_codec={CODEC}",
    "outer.fragments=2",
    "outer.every_steps=8",
    "rounds.open=1",
)


class Uneven(nn.Module):
    """Layers whose changes differ in size, beside a short one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ParameterDict(
            {
                "0": nn.Parameter(torch.zeros(9_000)),
                "1": nn.Parameter(torch.zeros(130, 70)),
                "2": nn.Parameter(torch.zeros(6_000)),
                "3": nn.Parameter(torch.zeros(5_000)),
            }
        )
        self.norm = nn.Parameter(torch.ones(40))


class Walker:
    """Learns by steps that layers take of different lengths; implements `Learner`."""

    optimizer = None

    def __init__(self, index: int) -> None:
        self.model = Uneven()
        self._generator = torch.Generator().manual_seed(index)

    def step(self, progress: float) -> tuple[float, int]:
        """See `Learner.step`."""
        del progress
        with torch.no_grad():
            for length, parameter in zip(
                (1, 0.02, 0.3, 0.1, 1), self.model.parameters(), strict=True
            ):
                change = torch.randn(parameter.shape, generator=self._generator)
                parameter.add_(change, alpha=1e-3 * length)
        return 1.0, 1


def test_peers_with_bits_by_layer_end_with_the_same_bits_for_fewer_bytes() -> None:
    spec = make_spec(parse_overrides(SETTINGS), source="test")
    faults = (
        Faults()
        .at(do=Crash(after_bytes=9_000), peer=2, round=3)
        .at(do=Restart(), peer=2, second=18.0)
    )
    with temporary_folder() as folder, asyncio.Runner(loop_factory=SimLoop) as runner:
        ground = Ground(
            loop=runner.get_loop(),  # type: ignore[arg-type]  # the factory's
            network=MemoryNetwork(1),
            folder=Path(folder),
            seed=1,
            cells=PEERS,
            values=0,
            step_s=0.5,
            learner=Walker,
        )
        course = runner.run(World(ground, spec, faults).run(34.0, lambda _: None))
    assert course.problems == []
    assert course.agree
    assert sorted(course.heads) == list(range(PEERS))
    assert len(course.struck) == 2
    assert {e.kind for p, e in course.events if p == 0 and isinstance(e, RoundDecided)} == {
        "record"
    }
    sizes = plan_model(Uneven(), 2).sizes
    for peer in range(PEERS):
        sent = [e for p, e in course.events if p == peer and isinstance(e, RoundCommitted)]
        assert len(sent) >= 5
        for event in sent:
            bounds = slice_bounds(sizes[event.fragment], event.slices)
            uniform = sum(planned_bytes(CODEC, high - low) for low, high in bounds)
            assert event.payload_bytes < 0.9 * uniform
