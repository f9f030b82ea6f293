"""Runs of shared seeds by the command line: kills, latecomers and restarts, and everywhere the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.node.export import save_checkpoint
from tests.support.swarm import PeerProcess, Swarm, differing_rounds, invite_of

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(240)]

METHODS = [
    ("spsa", False),
    pytest.param("spsa", True, marks=pytest.mark.slow),
    pytest.param("fedkseed", True, marks=pytest.mark.slow),
    pytest.param("ferret", True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("method", "with_third"), METHODS)
def test_peers_that_die_come_late_and_come_back_hold_the_same_bits(
    method: str, *, with_third: bool, tmp_path: Path
) -> None:
    settings = (f"seeds.method={method}", "seeds.local_steps=2", "seeds.directions=8")
    with Swarm(tmp_path, *settings, "seeds.probes=1", "model.context=8") as swarm:
        owner = swarm.launch()
        invite = invite_of(owner)
        second = swarm.join("second", invite)
        owner.wait_for_contribution_of(second)
        second.kill()
        if with_third:
            third = swarm.join("third", invite)
            owner.wait_for_contribution_of(third)
        second.start()
        owner.wait_for_contribution_of(second, since=owner.mark())
        owner.wait_for_rounds(10)
        for peer in reversed(swarm.peers):
            leaves(peer)
        assert not differing_rounds(swarm.peers)
        shared = set.intersection(*(set(peer.decided()) for peer in swarm.peers))
        assert len(shared) > 8
        roots = {str(owner.decided()[number]["state_root"]) for number in shared}
        assert len(roots) > 8  # the weights move
        assert "Traceback" not in "".join(peer.err.read_text() for peer in swarm.peers)
        exported(owner)


def leaves(peer: PeerProcess) -> None:
    peer.interrupt()
    assert peer.exit_code() == 0, peer.said()


def exported(peer: PeerProcess) -> None:
    """What was trained can be taken out."""
    written = save_checkpoint(peer.run_folder, peer.folder / "out")
    assert (written / "parameters.safetensors").exists()
