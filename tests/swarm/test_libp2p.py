"""Peers without the daemon: in a process of their own, among themselves, and in one swarm with others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.contracts.transports import LIBP2P_TESTS_VARIABLE
from tests.support.libp2p_python import libp2p_python
from tests.support.swarm import (
    ROOT,
    PeerProcess,
    Swarm,
    differing_rounds,
    invite_of,
)

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def python() -> str:
    return libp2p_python()


def outcome(python: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "tests", ["tests/contracts/test_transport.py", "tests/swarm/test_libp2p_host.py"]
)
def test_what_libp2p_must_do_is_tested_without_hivemind(python: str, tests: str) -> None:
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "libp2p", tests)
    done = outcome(python, *arguments, **{LIBP2P_TESTS_VARIABLE: "1"})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@dataclass
class Story:
    """Two peers with daemons, and one without that is killed and returns."""

    owner: PeerProcess
    second: PeerProcess
    light: PeerProcess
    marks: dict[str, int] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)

    @property
    def peers(self) -> list[PeerProcess]:
        return [self.owner, self.second, self.light]


@pytest.fixture(scope="module")
def story(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with Swarm(tmp_path_factory.mktemp("light")) as swarm:
        yield tell(swarm, python)


def tell(swarm: Swarm, python: str) -> Story:
    owner = swarm.launch()
    invite = invite_of(owner)
    second = swarm.join("second", invite)
    light = swarm.join("light", invite, without_daemon=python)
    story = Story(owner, second, light)
    for peer in (second, light):
        owner.wait_for_contribution_of(peer)
    light.wait_for_contribution_of(second)
    owner.wait_for_rounds(6)

    story.marks["killed"] = owner.mark()
    light.kill()
    owner.wait_for(
        "MemberRemoved", lambda fact: fact["peer"] == light.name, since=story.marks["killed"]
    )
    owner.wait_for_rounds(4)

    story.marks["returned"], story.marks["again"] = owner.mark(), light.mark()
    light.start()
    owner.wait_for_contribution_of(light, since=story.marks["returned"])
    second.wait_for_contribution_of(light, since=0)
    owner.wait_for_rounds(6)
    light.wait_for_rounds(2)
    for peer in (light, second, owner):
        peer.interrupt()
        story.codes[peer.folder.name] = peer.exit_code()
    return story


def test_a_peer_without_the_daemon_trains_with_those_that_have_it(story: Story) -> None:
    rounds = story.owner.events("RoundDecided")[: story.marks["killed"]]
    together = {peer.name for peer in story.peers}
    assert any(set(fact["contributors"]) >= together for fact in rounds)


def test_it_holds_the_same_bits_after_every_round(story: Story) -> None:
    assert not differing_rounds(story.peers)
    assert len(set(story.owner.decided()) & set(story.light.decided())) > 12


def test_after_a_kill_it_returns_as_the_same_peer_from_its_own_disk(story: Story) -> None:
    started = story.light.events("PeerStarted")
    assert len(started) == 2
    assert len({fact["peer"] for fact in started}) == 1
    kinds = [fact["event"] for fact in story.light.events(since=story.marks["again"])]
    assert "StateFetched" not in kinds[: kinds.index("PeerReady")]


def test_nobody_reports_a_failure(story: Story) -> None:
    said = {peer.folder.name: peer.err.read_text() for peer in story.peers}
    assert not [name for name, text in said.items() if "Traceback" in text or "failed" in text]


def test_all_leave_in_order(story: Story) -> None:
    assert story.codes == {"light": 0, "second": 0, "owner": 0}


@pytest.mark.slow
def test_peers_find_each_other_through_one_that_has_no_daemon(python: str, tmp_path: Path) -> None:
    """The only address in the invite is that of a peer that carries no directory."""
    with Swarm(tmp_path) as swarm:
        owner = swarm.launch(without_daemon=python)
        invite = invite_of(owner)
        first = swarm.join("first", invite)
        second = swarm.join("second", invite)
        light = swarm.join("light", invite, without_daemon=python)
        peers = [owner, first, second, light]
        for peer in peers[1:]:
            owner.wait_for_contribution_of(peer)
        for peer in peers:
            peer.wait_for_rounds(4)
        assert not differing_rounds(peers)
        mark = first.mark()
        owner.kill()
        # They had met: neither the invite's address nor its directory is needed any more.
        first.wait_for("MemberRemoved", lambda fact: fact["peer"] == owner.name, since=mark)
        for peer in peers[1:]:
            peer.wait_for_rounds(4)
        assert not differing_rounds(peers)
