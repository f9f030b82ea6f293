"""A launch beside a run of the same name: what is said, and when nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest

import runnel
from runnel.dht.identity import Identity
from runnel.hashing import digest
from runnel.node.manifest import Genesis, SignedManifest
from runnel.node.namesakes import tell_of_namesake
from runnel.node.place import Local

OWNER = Identity.generate()


def place(home: Path, *settings: str) -> Local:
    return runnel.local("run.name=mine", *settings, home=home)


def leave_run(home: Path, created_unix_s: int, *settings: str) -> None:
    genesis = Genesis(
        state_root=digest(b"state"),
        members=(OWNER.peer_id,),
        created_unix_s=created_unix_s,
        data_root=digest(b"text"),
    )
    spec = place(home, *settings).spec.published()
    model = spec.model.model_copy(update={"fingerprint": "ab" * 32})
    manifest = SignedManifest.issue(OWNER, spec.model_copy(update={"model": model}), genesis)
    manifest.write(home / "runs" / str(created_unix_s) / "manifest.bin")


def test_the_settings_that_differ_from_the_newest_of_its_name_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_run(tmp_path, 1, "outer.every_steps=8")
    leave_run(tmp_path, 2, "outer.every_steps=16", "inner.lr=0.5")
    (tmp_path / "runs" / "3").mkdir()
    (tmp_path / "runs" / "3" / "manifest.bin").write_bytes(b"damaged")
    tell_of_namesake(place(tmp_path, "outer.every_steps=24", "inner.lr=0.5"), OWNER.peer_id)
    [line] = caplog.messages
    assert "a run mine with other settings is here already (outer.every_steps 24, not 16)" in line
    caplog.clear()
    many = ("run.seed=1", "rounds.open=1", "outer.fragments=1", "outer.wait_s=1")
    tell_of_namesake(place(tmp_path, *many), OWNER.peer_id)
    [line] = caplog.messages
    assert ", and 3 others)" in line


def test_runs_of_another_name_or_owner_are_no_namesakes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_run(tmp_path, 1)
    tell_of_namesake(place(tmp_path, "run.name=other"), OWNER.peer_id)
    tell_of_namesake(place(tmp_path, "run.seed=1"), Identity.generate().peer_id)
    assert not caplog.messages
