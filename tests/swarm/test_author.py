"""The Python interface in processes of their own: three peers with a custom model, NaN in one, the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.swarm import PeerProcess, Swarm, differing_rounds, invite_of, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> list[PeerProcess]:
    """Three peers that trained to the end; the second one's losses were NaN for some rounds."""
    with Swarm(tmp_path_factory.mktemp("author")) as swarm:
        first = swarm.author("first")
        invite = invite_of(first)
        second, third = swarm.author("second", invite), swarm.author("third", invite)
        for peer in (second, third):
            first.wait_for_contribution_of(peer)
        poison(first, second)
        kill_daemon(swarm, first, third)
        for peer in swarm.peers:
            (peer.folder / "finish").touch()
        for peer in swarm.peers:
            peer.wait_for("RunEnded")
        codes = [peer.exit_code() for peer in swarm.peers]
        assert codes == [0, 0, 0], "\n".join(peer.said() for peer in swarm.peers)
        return swarm.peers


def poison(first: PeerProcess, second: PeerProcess) -> None:
    """Gives the second peer NaN losses until it has withheld, and waits until it contributes again."""
    mark = second.mark()
    (second.folder / "nan").touch()
    second.wait_for("ContributionWithheld", since=mark)
    first.wait_for_rounds(3)
    (second.folder / "nan").unlink()
    first.wait_for_contribution_of(second, since=first.mark())


def kill_daemon(swarm: Swarm, first: PeerProcess, third: PeerProcess) -> None:
    """Kills the network daemon of a peer, and waits until the peer contributes again."""
    (daemon,) = swarm.daemons(third)
    daemon.kill()
    wait_until(lambda: "restarting it" in third.said(50), third.said)
    first.wait_for_rounds(3)
    first.wait_for_contribution_of(third, since=first.mark())


def test_all_journals_end_with_the_same_state(peers: list[PeerProcess]) -> None:
    ends = [peer.events("RunEnded") for peer in peers]
    assert [len(found) for found in ends] == [1, 1, 1]
    assert len({found[0]["state_root"] for found in ends}) == 1
    assert len({found[0]["round"] for found in ends}) == 1


def test_all_models_hold_the_same_bits(peers: list[PeerProcess]) -> None:
    digests = [peer.out.read_text().split()[-1] for peer in peers]
    assert len(digests[0]) == 64
    assert len(set(digests)) == 1


def test_all_peers_agree_on_each_round(peers: list[PeerProcess]) -> None:
    common = set.intersection(*(set(peer.decided()) for peer in peers))
    assert len(common) > 8
    assert not differing_rounds(peers)


def test_everybody_contributed_to_rounds_of_three(peers: list[PeerProcess]) -> None:
    names = {peer.name for peer in peers}
    assert any(set(f["contributors"]) == names for f in peers[0].events("RoundDecided"))


def test_a_nan_loss_withholds_one_peers_work_with_a_warning(peers: list[PeerProcess]) -> None:
    first, second, third = peers
    reasons = [fact["reason"] for fact in second.events("ContributionWithheld")]
    assert reasons
    assert all("nan" in reason for reason in reasons)
    assert not first.events("ContributionWithheld") + third.events("ContributionWithheld")


def test_the_others_losses_stay_finite(peers: list[PeerProcess]) -> None:
    last = [peer.events("InnerProgress")[-1]["loss"] for peer in (peers[0], peers[2])]
    assert all(isinstance(loss, float) and loss < 30 for loss in last)


def test_a_peer_outlives_its_network_daemon(peers: list[PeerProcess]) -> None:
    assert len(peers[2].events("PeerStarted")) == 1
    assert "Traceback" not in peers[2].err.read_text()


def test_no_peer_leaves_a_process_behind(tmp_path: Path, peers: list[PeerProcess]) -> None:
    swarm = Swarm(tmp_path)
    swarm.folder = peers[0].folder.parent
    wait_until(lambda: not swarm.daemons(), lambda: "daemons end with their peers", within_s=5)
