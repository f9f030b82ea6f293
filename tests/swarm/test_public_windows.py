"""Real peers whose windows start from public values: they hold the same bits, and learn."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import runnel
from runnel.node.events import Event, MergeApplied, WindowStarted
from runnel.optim.inner import inner_optimizer
from tests.support.swarm import PeerProcess, Swarm, differing_rounds, invite_of, wait_until
from tests.swarm.test_founding import peer_at

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

FRAGMENTS, WINDOWS, EVERY = 4, 4, 8
POINTS = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
DATASET = torch.utils.data.TensorDataset(POINTS, POINTS.sum(dim=1, keepdim=True))
SETTINGS = (
    "outer.windows=public",
    f"outer.fragments={FRAGMENTS}",
    f"outer.every_steps={EVERY}",
    "outer.wait_s=60.0",
    f"end.rounds={FRAGMENTS * WINDOWS}",
    "rounds.deadline_floor_s=20.0",
    "rounds.stall_s=600.0",
)


class Trained:
    """A model of an author's, its optimizer, and what its peer told."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = inner_optimizer("adamw", self.model.named_parameters(), lr=2e-2)
        self.events: list[Event] = []

    def loss(self) -> float:
        with torch.no_grad():
            return nn.functional.mse_loss(self.model(POINTS), DATASET.tensors[1]).item()

    def train(self, peer: runnel.Peer) -> None:
        for inputs, wanted in peer.batches(DATASET, batch_size=16):
            loss = nn.functional.mse_loss(self.model(inputs), wanted)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            peer.step(loss)
        peer.take_last_state()
        peer.leave()


def test_two_founders_give_whole_models_and_end_with_equal_bits(tmp_path: Path) -> None:
    mine, theirs = Trained(), Trained()
    before = mine.loss()
    other = peer_at(tmp_path / "other")
    place = runnel.local(*SETTINGS, home=tmp_path / "founder", members=[other])
    with runnel.Peer(
        place, model=mine.model, optimizer=mine.optimizer, on_event=mine.events.append
    ) as founder:
        there = runnel.invited(founder.invite, home=tmp_path / "other", host="127.0.0.1")
        with runnel.Peer(
            there, model=theirs.model, optimizer=theirs.optimizer, on_event=theirs.events.append
        ) as guest:
            thread = threading.Thread(target=theirs.train, args=(guest,))
            thread.start()
            mine.train(founder)
            thread.join()
    for one, two in zip(mine.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert mine.loss() < before / 2
    for trained in (mine, theirs):
        started = [event for event in trained.events if isinstance(event, WindowStarted)]
        merged = [event for event in trained.events if isinstance(event, MergeApplied)]
        assert {event.round for event in started} <= {event.round for event in merged}
        shared = sum(event.included for event in merged)
        assert shared > len(merged) / 2, "both had their part"


@pytest.mark.slow
def test_two_processes_with_public_windows_hold_the_same_bits_and_learn(tmp_path: Path) -> None:
    with Swarm(tmp_path, "outer.windows=public", f"outer.fragments={FRAGMENTS}") as swarm:
        owner = swarm.launch()
        guest = swarm.join("guest", invite_of(owner))
        owner.wait_for_contribution_of(guest)
        known = included(guest)
        wait_until(
            lambda: len(included(guest) - known) >= 2 * FRAGMENTS,
            lambda: f"two windows of the guest's are in the chain; it said last:\n{guest.said()}",
        )
        assert differing_rounds([owner, guest]) == {}
        for peer in (owner, guest):
            check_windows(peer)
        losses = [fact["loss"] for fact in owner.events("InnerProgress")]
        assert min(losses[-3:]) < losses[0] - 0.5


def included(peer: PeerProcess) -> set[int]:
    return {fact["round"] for fact in peer.events("MergeApplied") if fact["included"]}


def check_windows(peer: PeerProcess) -> None:
    """Each share starts a window once, in order, and no later than its result is merged."""
    started = peer.events("WindowStarted")
    assert {fact["fragment"] for fact in started} == set(range(FRAGMENTS))
    numbers = [fact["round"] for fact in started]
    assert all(one < next_one for one, next_one in pairwise(numbers))
    merged = {f["round"]: f["step"] for f in peer.events("MergeApplied") if f["included"]}
    steps = [(f["step"], merged[f["round"]]) for f in started if f["round"] in merged]
    assert steps
    assert all(start <= merge for start, merge in steps)
