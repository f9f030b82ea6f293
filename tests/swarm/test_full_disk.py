"""Real peers whose home is on a disk that is full or cannot be written to: small file systems of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runnel.errors import StorageError
from tests.support.swarm import PeerProcess, Swarm, differing_rounds, invite_of

pytestmark = [pytest.mark.swarm, pytest.mark.slow, pytest.mark.timeout(600)]


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 6 MB at `folder`; skips the test where nobody may mount one."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", "size=6m,mode=0700", "tmpfs", str(folder)]
    try:
        subprocess.run(["mount", *options], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True, timeout=20)


def remount(folder: Path, rights: str) -> None:
    command = ["mount", "-o", f"remount,{rights}", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=20)


def fill(folder: Path) -> Path:
    """Leaves no room; the file to delete to have some again."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


def said_since(peer: PeerProcess, place: int) -> list[str]:
    """Lines of its standard error, what runnel itself says and no diary."""
    text = peer.err.read_bytes()[place:].decode()
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("runnel: ")]


def test_a_full_and_a_read_only_home_end_a_peer_in_one_line_and_cost_nothing(
    tmp_path: Path,
) -> None:
    home = tmp_path / "second" / "home"
    with small_disk(home), Swarm(tmp_path) as swarm:
        owner = swarm.launch()
        second = swarm.join("second", invite_of(owner))
        owner.wait_for_contribution_of(second)

        ballast = fill(home)
        assert second.exit_code() == StorageError.exit_code
        (line,) = said_since(second, 0)
        assert str(home) in line
        assert "o space left on device" in line
        owner.wait_for_rounds(2)

        place = second.err.stat().st_size
        second.start()
        assert second.exit_code() == StorageError.exit_code
        (line,) = said_since(second, place)
        assert "o space left on device" in line

        ballast.unlink()
        remount(home, "ro")
        place = second.err.stat().st_size
        second.start()
        assert second.exit_code() == StorageError.exit_code
        (line,) = said_since(second, place)
        assert "read-only" in line
        assert str(home) in line

        remount(home, "rw")
        since = owner.mark()
        second.start()
        owner.wait_for_contribution_of(second, since=since)
        assert not differing_rounds(swarm.peers)
