"""A run may start with several members: its founder names them, and makes the first state alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runnel.dht.identity import Identity
from runnel.errors import ConfigError
from runnel.hashing import digest
from runnel.node.assembly import Assembly, assemble
from runnel.node.disk import DirectoryLock
from runnel.node.entrance import Entrance
from runnel.node.place import Local, local
from runnel.node.runtime import Runtime
from runnel.types import PeerId

OTHERS = [Identity.generate().peer_id for _ in range(3)]
SETTINGS = ("outer.fragments=1", "rounds.open=1")


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime().start()
    yield runtime
    runtime.close()


def entrance_to(place: Local, runtime: Runtime) -> Entrance:
    """What leads a founder in, without the network that it does not need for that."""
    network: Any = None
    place.machine.prepare()
    identity, owner = Identity.generate(), Identity.generate()
    lock = DirectoryLock(place.machine.home)
    return Entrance(place, runtime, network, identity, owner, None, lock)


def founded(place: Local, runtime: Runtime) -> tuple[PeerId, Assembly]:
    entrance = entrance_to(place, runtime)
    try:
        parts = assemble(entrance, nn.Linear(3, 2))
        parts.log.close()
    finally:
        entrance.lock.close()
    return entrance.identity.peer_id, parts


def test_a_founder_lists_all_members_and_each_has_a_vote(tmp_path: Path, runtime: Runtime) -> None:
    founder, parts = founded(local(*SETTINGS, home=tmp_path, members=OTHERS), runtime)
    everybody = tuple(sorted([founder, *OTHERS]))
    assert parts.manifest.genesis.members == everybody
    chain = parts.protocol.state.chain
    assert chain.view_of(0) == chain.voters_of(0) == everybody


def test_the_founder_starts_from_its_own_model(tmp_path: Path, runtime: Runtime) -> None:
    _, parts = founded(local(*SETTINGS, home=tmp_path, members=OTHERS), runtime)
    assert parts.fetched is None
    assert parts.manifest.genesis.state_root == digest(parts.genesis_blob)
    assert (parts.folder / "manifest.bin").exists()


def test_a_founder_among_the_members_counts_once(tmp_path: Path, runtime: Runtime) -> None:
    entrance = entrance_to(local(*SETTINGS, home=tmp_path), runtime)
    me = entrance.identity.peer_id
    entrance.place = local(*SETTINGS, home=tmp_path, members=[me, me, OTHERS[0]])
    parts = assemble(entrance, nn.Linear(3, 2))
    parts.log.close()
    entrance.lock.close()
    assert parts.manifest.genesis.members == tuple(sorted([me, OTHERS[0]]))


def test_a_run_is_not_founded_on_values_that_are_not_finite(
    tmp_path: Path, runtime: Runtime
) -> None:
    entrance, model = entrance_to(local(*SETTINGS, home=tmp_path), runtime), nn.Linear(3, 2)
    with torch.no_grad():
        model.bias[1] = torch.inf
    try:
        with pytest.raises(ConfigError, match="a run cannot start from this model: bias") as caught:
            assemble(entrance, model)
    finally:
        entrance.lock.close()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("runs/*"))


def test_more_founders_than_the_run_takes_are_refused(tmp_path: Path, runtime: Runtime) -> None:
    place = local(*SETTINGS, "rounds.max_members=3", home=tmp_path, members=OTHERS)
    with pytest.raises(ConfigError, match=r"4 members and rounds\.max_members is 3"):
        founded(place, runtime)
    assert not (tmp_path / "runs").exists()


def test_a_founding_member_that_is_no_peer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no peer id"):
        local(*SETTINGS, home=tmp_path, members=[OTHERS[0], PeerId(b"somebody")])


def test_a_founder_killed_before_its_manifest_was_written_founds_anew(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    place = local(*SETTINGS, home=tmp_path, members=OTHERS)
    with monkeypatch.context() as patch:
        patch.setattr("runnel.node.manifest.SignedManifest.write", killed)
        with pytest.raises(KeyboardInterrupt):
            founded(place, runtime)
    assert list(tmp_path.glob("runs/*/manifest.bin")) == []
    torch.manual_seed(1)
    founder, parts = founded(place, runtime)
    assert founder in parts.protocol.state.chain.head.view
