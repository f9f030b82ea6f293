"""Real peers on machines of their own, behind routers and broken links. Needs root, on Linux."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.namespaces import Namespaces, named, why_not
from tests.support.swarm import PeerProcess, Swarm, differing_rounds, invite_of, wait_until

pytestmark = [
    pytest.mark.swarm,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(why_not()), reason=f"no network namespaces: {why_not()}"),
]

BELOW_DAEMONS_LIMIT = 128 << 10
"""What the daemon's own relay carries, in two minutes."""


@pytest.fixture
def net() -> Iterator[Namespaces]:
    with Namespaces("test") as made:
        yield made
    assert named("test") == [], "no namespace stays"


def way(peer: PeerProcess, to: PeerProcess) -> str:
    """How `peer` says that it reaches `to`."""
    return str(peer.status().get("reach", {}).get("ways", {}).get(to.name, ""))


def carried(peer: PeerProcess) -> int:
    return int(peer.status().get("reach", {}).get("carried_bytes", 0))


def wait_for_way(peer: PeerProcess, to: PeerProcess, expected: str) -> None:
    wait_until(
        lambda: way(peer, to) == expected,
        lambda: f"{peer.folder.name} reaches {to.folder.name} {expected}: {peer.status()}",
    )


def test_two_peers_behind_two_routers_and_a_public_one_train_together(
    net: Namespaces, tmp_path: Path
) -> None:
    net.router("left")
    net.router("right", random=True)
    with Swarm(tmp_path) as swarm:
        owner = swarm.launch(host=net.host("owner"))
        invite = invite_of(owner)
        left = swarm.join("left", invite, host=net.host("l", behind="left"))
        right = swarm.join("right", invite, host=net.host("r", behind="right"))
        for peer in (left, right):
            owner.wait_for_contribution_of(peer)
        for one, other in ((left, right), (right, left)):
            wait_for_way(one, owner, "directly")
            wait_for_way(one, other, f"through {owner.name}")
        wait_until(
            lambda: carried(owner) > 2 * BELOW_DAEMONS_LIMIT,
            lambda: f"the owner carries bytes: {owner.status()}",
        )
        for peer in (left, right):
            warned = peer.wait_for("PeerWarned", lambda f: "can open connections" in f["text"])
            assert f"through {owner.name}" in warned["text"]
        sent = left.status()["sent_by_purpose"]
        assert sent["slice"] + sent["result"] > 0, "slices and results, not votes alone"
        left.wait_for_rounds(5)
        assert differing_rounds(swarm.peers) == {}
        assert all(set(p.status()["members"]) == {p.name for p in swarm.peers} for p in swarm.peers)


def test_a_line_of_three_decides_rounds_and_straightens_when_it_can(
    net: Namespaces, tmp_path: Path
) -> None:
    left, middle, right = (net.host(name) for name in ("left", "middle", "right"))
    left.drop(right)
    with Swarm(tmp_path) as swarm:
        b = swarm.launch("b", host=middle)
        invite = invite_of(b)
        a, c = swarm.join("a", invite, host=left), swarm.join("c", invite, host=right)
        for peer in (a, c):
            b.wait_for_contribution_of(peer)
        for one, other in ((a, c), (c, a)):
            wait_for_way(one, other, f"through {b.name}")
        mark = a.mark()
        for n in range(6):  # of all three, one after the other
            a.wait_for_contribution_of(c, since=mark + n)
        assert c.events("MemberRemoved") == a.events("MemberRemoved") == []
        left.restore(right)
        wait_for_way(a, c, "directly")
        assert a.wait_for("PeerReached", lambda f: f["way"] == "directly", since=mark)
        a.wait_for_rounds(3)
        assert differing_rounds(swarm.peers) == {}


def test_a_peer_that_listens_nowhere_trains_with_all(net: Namespaces, tmp_path: Path) -> None:
    with Swarm(tmp_path) as swarm:
        owner = swarm.launch(host=net.host("owner"))
        invite = invite_of(owner)
        public = swarm.join("public", invite, host=net.host("public"))
        machine = net.host("shy", behind="router")
        shy = swarm.join("shy", invite, "--host", "none", host=machine)
        for peer in (public, shy):
            owner.wait_for_contribution_of(peer)
        listening = machine.run([sys.executable, "-c", LISTENING]).split()
        assert listening == [], "no TCP port is open"
        for one, other in ((shy, owner), (shy, public), (owner, shy), (public, shy)):
            wait_for_way(one, other, "directly")
        shy.wait_for_rounds(5)
        assert differing_rounds(swarm.peers) == {}
        assert [e for e in shy.events("PeerWarned") if "--host none" in e["text"]] == []


LISTENING = """
import pathlib
for name in ("tcp", "tcp6"):
    for line in pathlib.Path("/proc/net", name).read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A":
            print(words[1])
"""
