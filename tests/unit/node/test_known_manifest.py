"""Which run of a home is gone on with, also where others, or itself, cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from runnel.dht.identity import Identity, to_base58
from runnel.errors import InputFileError
from runnel.hashing import digest
from runnel.node import manifest as manifest_module
from runnel.node.config import MachineConfig
from runnel.node.entrance import known_manifest
from runnel.node.invite import Invite
from runnel.node.manifest import Genesis, SignedManifest, make_spec, parse_overrides
from runnel.node.place import Joined, Local, local

OWNER = Identity.generate()


def started(home: Path, name: str, root: bytes = b"first") -> tuple[SignedManifest, Path]:
    """A run that this home took part in, and its folder."""
    spec = make_spec(parse_overrides([f"run.name={name}", "model.kind=custom"]), source="test")
    genesis = Genesis(
        state_root=digest(root), members=(OWNER.peer_id,), created_unix_s=1, data_root=digest(b"x")
    )
    manifest = SignedManifest.issue(OWNER, spec.published(), genesis)
    folder = MachineConfig.at(home).run_folder(name, manifest.run_id)
    manifest.write(folder / "manifest.bin")
    return manifest, folder


def invited_to(home: Path, manifest: SignedManifest) -> Joined:
    address = f"/ip4/127.0.0.1/tcp/4001/p2p/{to_base58(OWNER.peer_id)}"
    invite = Invite.issue(OWNER, manifest.run_id, [address], expires_unix_s=2**31)
    return Joined(invite=invite, machine=MachineConfig.at(home))


def founded_here(home: Path, name: str) -> Local:
    return local(f"run.name={name}", home=home)


def of_another_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if an older or newer runnel had written the manifest."""
    manifest = SignedManifest.read(folder / "manifest.bin")
    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "VERSION", 1)
        manifest.write(folder / "manifest.bin")


def test_runs_that_cannot_be_read_keep_nobody_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("aaa", "zzz"):
        of_another_version(started(tmp_path, name)[1], monkeypatch)
    manifest, _ = started(tmp_path, "mine")
    with caplog.at_level(logging.WARNING):
        assert known_manifest(invited_to(tmp_path, manifest), None) == manifest
        assert known_manifest(founded_here(tmp_path, "mine"), OWNER) == manifest
        assert known_manifest(founded_here(tmp_path, "new"), OWNER) is None
    assert len(caplog.records) == 3, "one warning each time"
    assert "2 other runs cannot be read" in caplog.text
    assert "aaa-" in caplog.text


def test_the_manifest_of_the_invite_is_asked_for_again_if_it_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, folder = started(tmp_path, "mine")
    (folder / "manifest.bin").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert known_manifest(invited_to(tmp_path, manifest), None) is None
    assert [record.message.endswith("members are asked for it") for record in caplog.records] == [
        True
    ]


def test_no_second_run_is_founded_where_one_of_this_name_cannot_be_read(tmp_path: Path) -> None:
    _, folder = started(tmp_path, "mine")
    (folder / "manifest.bin").write_bytes(b"")
    with pytest.raises(InputFileError, match="away to start a new run") as caught:
        known_manifest(founded_here(tmp_path, "mine"), OWNER)
    assert str(folder) in str(caught.value)


def test_a_readable_run_of_this_name_is_gone_on_with(tmp_path: Path) -> None:
    _, damaged = started(tmp_path, "mine", root=b"other")
    (damaged / "manifest.bin").write_bytes(b"")
    manifest, _ = started(tmp_path, "mine")
    assert known_manifest(founded_here(tmp_path, "mine"), OWNER) == manifest
