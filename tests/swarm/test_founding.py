"""Two founding members on the loopback: both vote from the first round on, and start from one state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from runnel.dht.identity import Identity
from runnel.node.config import MachineConfig
from runnel.node.place import invited, local
from runnel.node.session import Peer
from runnel.types import PeerId
from tests.support.swarm import wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.slow]

SETTINGS = (
    "outer.fragments=1",
    "outer.every_steps=2",
    "outer.overlap_steps=0",
    "outer.wait_s=60.0",
    "outer.codec=fp32",
    "outer.result_codec=fp32",
    "rounds.open=1",
    "rounds.stall_s=600.0",
    "rounds.deadline_floor_s=30.0",
)


def peer_at(home: Path) -> PeerId:
    machine = MachineConfig.at(home)
    machine.prepare()
    return Identity.load_or_create(machine.identity_path).peer_id


def values_of(model: nn.Linear) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_founding_member_starts_from_the_founders_state_and_votes_at_once(tmp_path: Path) -> None:
    ids = {name: peer_at(tmp_path / name) for name in ("founder", "other")}
    models = {name: nn.Linear(8, 8) for name in ids}
    assert not torch.equal(values_of(models["founder"]), values_of(models["other"]))
    place = local(*SETTINGS, home=tmp_path / "founder", members=[ids["other"]])
    with Peer(place, model=models["founder"]) as founder:
        there = invited(founder.invite, home=tmp_path / "other", host="127.0.0.1")
        with Peer(there, model=models["other"]) as other:
            torch.testing.assert_close(
                values_of(models["other"]), values_of(models["founder"]), rtol=0, atol=0
            )
            for peer in (founder, other):
                assert peer.round == -1
                assert len(peer.node.mailbox.chain.members) == 2
                assert peer.node.mailbox.chain.is_member
                wait_until(peer.node.reachable, lambda: "the two did not hear each other")
