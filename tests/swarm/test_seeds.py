"""Runs of shared seeds by the command line: kills, latecomers and restarts, and everywhere the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.dht.identity import Identity
from runnel.errors import InputFileError
from runnel.node.config import CATCH_UP_VARIABLE
from runnel.node.export import save_checkpoint
from runnel.node.manifest import SignedManifest
from runnel.node.seed_export import export_log
from runnel.node.spot_rounds import read_refuted
from tests.support.swarm import PeerProcess, Swarm, differing_rounds, invite_of, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(240)]

LIAR = Path(__file__).parents[1] / "support" / "liar_program.py"

METHODS = [
    pytest.param("spsa", False, marks=pytest.mark.slow),
    pytest.param("spsa", True, marks=pytest.mark.slow),
    pytest.param("fedkseed", True, marks=pytest.mark.slow),
    pytest.param("ferret", True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("method", "with_third"), METHODS)
def test_peers_that_die_come_late_and_come_back_hold_the_same_bits(
    method: str, *, with_third: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CATCH_UP_VARIABLE, "log")  # these weights are few
    settings = (f"seeds.method={method}", "seeds.local_steps=2", "seeds.directions=8")
    small = ("seeds.probes=1", "seeds.spot_checks=1", "model.context=8")
    with Swarm(tmp_path, *settings, *small) as swarm:
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
        first = min(second.decided())
        assert first > 0, "it came late"
        latest = swarm.peers[-1].events("StateFetched")
        assert latest[-1]["round"] < 0 or latest[-1]["log_rounds"], "base and log were at hand"
        wait_until(lambda: has_history(second), lambda: f"second has all rounds: {second.said()}")
        for peer in reversed(swarm.peers):
            leaves(peer)
        assert not differing_rounds(swarm.peers)
        shared = set.intersection(*(set(peer.decided()) for peer in swarm.peers))
        assert len(shared) > 8
        roots = {str(owner.decided()[number]["state_root"]) for number in shared}
        assert len(roots) > 8  # the weights move
        assert "Traceback" not in "".join(peer.err.read_text() for peer in swarm.peers)
        assert not any(peer.events("ScalarRefuted") for peer in swarm.peers)
        exported(owner)


@pytest.mark.slow
def test_a_peer_that_lies_about_its_scalars_is_found_out_by_the_others(tmp_path: Path) -> None:
    settings = ("seeds.method=spsa", "seeds.spot_checks=1", "seeds.probes=2", "model.context=8")
    with Swarm(tmp_path, *settings) as swarm:
        owner = swarm.launch()
        words = ("--network", "daemon", "join", invite_of(owner), "--host", "127.0.0.1")
        liar = swarm.program("liar", str(LIAR), *words)
        found = owner.wait_for("ScalarRefuted")
        assert found["peer"] == liar.name
        for peer in (liar, owner):
            leaves(peer)
        assert not liar.events("ScalarRefuted"), "who lies finds nothing about the others"
        assert owner.status()["spot_checks"]["refuted"][liar.name] >= 1
        kept = read_refuted(
            (owner.run_folder / "refuted" / f"{found['evidence']}.bin").read_bytes()
        )
        manifest = SignedManifest.read(owner.run_folder / "manifest.bin")
        assert kept.problem(manifest.run_id, Identity.verify) == ""


def leaves(peer: PeerProcess) -> None:
    peer.interrupt()
    assert peer.exit_code() == 0, peer.said()


def has_history(peer: PeerProcess) -> bool:
    """Whether the whole run's log can be taken out of a peer's folder; it is proven there."""
    try:
        export_log(peer.run_folder, peer.folder / "run.seeds")
    except InputFileError:  # it is still under way
        return False
    return True


def exported(peer: PeerProcess) -> None:
    """What was trained can be taken out."""
    written = save_checkpoint(peer.run_folder, peer.folder / "out")
    assert (written / "parameters.safetensors").exists()
