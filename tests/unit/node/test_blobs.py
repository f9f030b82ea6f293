"""Blobs: whole or not at all, and never with other bytes than were written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from runnel.errors import BugError, InputFileError, StorageError
from runnel.node import disk
from runnel.node.blobs import read_blob
from runnel.node.durable import DurableLog


def test_blobs_come_back_as_they_were_written(tmp_path: Path) -> None:
    log = DurableLog(tmp_path)
    log.write_blob("q.7", [b"abc", memoryview(b"def"), bytearray(1000)])
    log.write_blob("empty", [])
    assert log.read_blob("q.7") == b"abcdef" + bytes(1000)
    assert log.read_blob("empty") == b""
    assert log.blob_names() == {"q.7", "empty"}
    (tmp_path / "blobs" / ".of somebody else").touch()
    log.delete_blobs(["empty", "never-there"])
    assert log.blob_names() == {"q.7"}
    log.close()


@pytest.mark.parametrize("damage", ["cut", "flip", "swap"])
def test_a_damaged_blob_is_never_read(tmp_path: Path, damage: str) -> None:
    log = DurableLog(tmp_path)
    log.write_blob("theta", [b"abcdef"])
    path = tmp_path / "blobs" / "theta"
    whole = path.read_bytes()
    if damage == "swap":
        log.write_blob("other", [b"ghijkl"])
        (tmp_path / "blobs" / "other").replace(path)
        with pytest.raises(InputFileError, match="damaged"):
            log.read_blob("theta")
    for position in range(len(whole)) if damage != "swap" else ():
        data = bytearray(whole[:position] if damage == "cut" else whole)
        if damage == "flip":
            data[position] ^= 1
        path.write_bytes(data)
        with pytest.raises(InputFileError, match="damaged"):
            log.read_blob("theta")
    log.close()


def test_a_blob_that_could_not_be_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = DurableLog(tmp_path)
    log.write_blob("theta", [b"old"])

    def full(descriptor: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_all", full)
        with pytest.raises(StorageError, match="theta"):
            log.write_blob("theta", [b"new"])
    assert log.read_blob("theta") == b"old"
    assert log.blob_names() == {"theta"}
    log.close()


def test_missing_and_misnamed_blobs_are_told_apart(tmp_path: Path) -> None:
    log = DurableLog(tmp_path)
    with pytest.raises(InputFileError, match=r"is missing: restore it .* or move .* join again"):
        log.read_blob("none")
    for name in ("../up", "", ".hidden", "a/b", "x.tmp"):
        with pytest.raises(BugError, match="no name for a blob"):
            log.write_blob(name, [b""])
    log.close()


def test_a_blob_is_read_beside_its_owner_and_checked(tmp_path: Path) -> None:
    log = DurableLog(tmp_path)
    log.write_blob("theta", [b"abc", b"def"])
    leftover = tmp_path / "blobs" / "other.tmp"
    leftover.write_bytes(b"being written")
    assert read_blob(tmp_path / "blobs", "theta") == b"abcdef"
    assert leftover.exists()
    (tmp_path / "blobs" / "theta").write_bytes(b"x" * 40)
    with pytest.raises(InputFileError, match="damaged"):
        read_blob(tmp_path / "blobs", "theta")
    with pytest.raises(InputFileError, match="missing"):
        read_blob(tmp_path / "blobs", "momentum")
    log.close()
