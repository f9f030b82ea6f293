"""Runs of shared seeds by the command line: kills, latecomers and restarts, and everywhere the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.swarm import PeerProcess, Swarm, differing_rounds, invite_of

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(240)]

METHODS = [
    "spsa",
    pytest.param("fedkseed", marks=pytest.mark.slow),
    pytest.param("ferret", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("method", METHODS)
def test_peers_that_die_come_late_and_come_back_hold_the_same_bits(
    method: str, tmp_path: Path
) -> None:
    settings = (f"seeds.method={method}", "seeds.local_steps=2", "seeds.directions=8")
    with Swarm(tmp_path, *settings) as swarm:
        owner = swarm.launch()
        invite = invite_of(owner)
        second = swarm.join("second", invite)
        owner.wait_for_contribution_of(second)
        second.kill()
        third = swarm.join("third", invite)
        owner.wait_for_contribution_of(third)
        second.start()
        owner.wait_for_contribution_of(second, since=owner.mark())
        owner.wait_for_rounds(10)
        for peer in (third, second, owner):
            leaves(peer)
        peers = [owner, second, third]
        assert not differing_rounds(peers)
        shared = set.intersection(*(set(peer.decided()) for peer in peers))
        assert len(shared) > 8
        roots = {str(owner.decided()[number]["state_root"]) for number in shared}
        assert len(roots) > 8  # the weights move
        assert "Traceback" not in "".join(peer.err.read_text() for peer in peers)
        exported(owner)


def leaves(peer: PeerProcess) -> None:
    peer.interrupt()
    assert peer.exit_code() == 0, peer.said()


def exported(peer: PeerProcess) -> None:
    """What was trained can be taken out."""
    command = [sys.executable, "-m", "runnel", "checkpoint", "--home", str(peer.home)]
    done = subprocess.run(
        [*command, "--out", str(peer.folder / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list((peer.folder / "out").rglob("parameters.safetensors"))
