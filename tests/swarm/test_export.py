"""What a run leaves, with real peers: text for those who lack it, checkpoints, bytes by purpose, warnings."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import runnel
from runnel.node import journal
from runnel.node.checkpoint import read_checkpoint, read_manifest
from runnel.node.events import Checkpointed, Event, PeerWarned, TrafficCounted
from runnel.node.export import sample_text, save_checkpoint
from runnel.optim.check import exchanged_parameters
from tests.support.swarm import Facts, PeerProcess, Swarm, invite_of, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with Swarm(tmp_path, "end.rounds=100", "outer.every_steps=160") as it:  # alone some 30 s
        yield it


def is_after(number: int, fact: Facts) -> bool:
    return bool(fact["round"] > number)


def last_checkpoint_of(peer: PeerProcess) -> dict[str, str]:
    found = wait_until(
        lambda: peer.events("Checkpointed"),
        lambda: f"{peer.folder.name} writes the last checkpoint; it said last:\n{peer.said()}",
        within_s=120,
    )
    return dict(found[-1])


def test_a_peer_without_the_runs_text_gets_it_and_all_end_with_the_same_checkpoint(
    swarm: Swarm, tmp_path: Path
) -> None:
    owner = swarm.launch()
    newcomer = swarm.join("newcomer", invite_of(owner))
    owner.wait_for_contribution_of(newcomer, within_s=120)
    assert "hashes match" in (said := newcomer.err.read_text()), said
    cached = newcomer.run_folder / "text"
    text = (tmp_path / "text.txt").read_bytes()
    # Training and held-out part, equal chunks once.
    assert 0 < sum(path.stat().st_size for path in cached.glob("?" * 64)) <= len(text)

    numbers = []
    for _ in range(4):  # beside the peer that trains
        written = save_checkpoint(newcomer.run_folder, tmp_path / "while")
        numbers.append(least := read_checkpoint(written).meta.round)
        newcomer.wait_for("RoundDecided", partial(is_after, least))
    assert numbers == sorted(numbers)
    assert sample_text(newcomer.run_folder, prompt="the quick", tokens=20, seed=1)

    ends = [last_checkpoint_of(peer) for peer in (owner, newcomer)]
    assert ends[0]["digest"] == ends[1]["digest"]
    for peer, end in zip((owner, newcomer), ends, strict=True):
        assert peer.exit_code() == 0
        assert read_manifest(Path(end["path"])).seal.hex() == end["digest"]
        assert Path(end["path"]).parent == peer.run_folder / "checkpoints"
        counted = peer.events("TrafficCounted")
        assert len(counted) >= 2
        assert sum(counted[-1]["sent"].values()) > 0
    assert newcomer.events("TrafficCounted")[-1]["received"]["blob"] > len(text) / 2
    final = save_checkpoint(owner.run_folder, tmp_path / "out")
    assert read_manifest(final).seal.hex() == ends[0]["digest"]


def test_an_authors_model_leaves_a_checkpoint_that_gives_its_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    place = runnel.local("end.rounds=4", "outer.every_steps=4", "rounds.open=1", home=tmp_path)
    events, lost = list[Event](), threading.Event()
    data = torch.randn(64, 3)
    with runnel.Peer(place, model=model, optimizer=optimizer, on_event=events.append) as peer:
        folder = peer.node.folder
        for batch in peer.batches(data, batch_size=8):
            loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            peer.step(loss)
            if peer.round >= 2 and not lost.is_set():
                lost.set()
                assert save_checkpoint(folder, tmp_path / "early").name.startswith("round-")
                monkeypatch.setattr(journal, "write_all", _refuse)
        peer.take_last_state()
    ends = [event for event in events if isinstance(event, Checkpointed)]
    assert len(ends) == 1
    content = read_checkpoint(ends[0].path)
    assert read_manifest(Path(ends[0].path)).seal.hex() == ends[0].digest
    for name, parameter in exchanged_parameters(model).items():
        np.testing.assert_array_equal(content.parameters[name], parameter.detach().numpy())
    assert any(isinstance(event, TrafficCounted) for event in events)
    warnings = [event.text for event in events if isinstance(event, PeerWarned)]
    assert len(warnings) == 1, warnings
    assert "journal" in warnings[0]
    assert "free some space" in warnings[0]


def _refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
