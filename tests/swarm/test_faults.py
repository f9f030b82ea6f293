"""One run through all that happens to peers: killed, restarted, frozen, late, leaving in order and not.

The story is told once, by the command line's peers; each test looks at one side of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runnel.errors import EXIT_INTERRUPTED
from tests.support.swarm import Facts, PeerProcess, Swarm, differing_rounds, invite_of, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

WORST_PAUSE_S = 12.0
"""Two deadlines at their ceiling (see `TINY`)."""


@dataclass
class Story:
    """The peers by the part they play, and what cannot be read from journals."""

    owner: PeerProcess
    killed: PeerProcess
    frozen: PeerProcess
    leaver: PeerProcess
    late: PeerProcess | None = None
    marks: dict[str, int] = field(default_factory=dict)
    restarted_from: int = 0
    codes: dict[str, int] = field(default_factory=dict)

    @property
    def peers(self) -> list[PeerProcess]:
        found = [self.owner, self.killed, self.frozen, self.leaver]
        return [*found, self.late] if self.late else found

    def since(self, mark: str, kind: str) -> list[Facts]:
        """The owner's events of a kind since a moment of the story."""
        return self.owner.events(kind, since=self.marks[mark])


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with Swarm(tmp_path_factory.mktemp("faults")) as swarm:
        yield tell(swarm)


def tell(swarm: Swarm) -> Story:
    owner = swarm.launch()
    invite = invite_of(owner)
    killed, frozen, leaver = (swarm.join(name, invite) for name in ("killed", "frozen", "leaver"))
    story = Story(owner, killed, frozen, leaver)
    for peer in story.peers[1:]:
        owner.wait_for_contribution_of(peer)
    owner.wait_for_rounds(6)

    story.marks["killed"] = owner.mark()
    story.killed.kill()
    removed(owner, story.killed, story.marks["killed"])
    owner.wait_for_rounds(6)  # those that were open still count the killed one for their quorum

    story.marks["frozen"] = owner.mark()
    story.frozen.freeze()
    story.restarted_from = story.killed.mark()
    story.killed.start()
    story.late = swarm.join("late", invite)
    removed(owner, story.frozen, story.marks["frozen"])
    for peer in (story.killed, story.late):
        owner.wait_for_contribution_of(peer, since=story.marks["frozen"])

    story.marks["thawed"] = owner.mark()
    story.frozen.thaw()
    owner.wait_for_contribution_of(story.frozen, since=story.marks["thawed"])
    owner.wait_for_rounds(6)

    story.marks["leaving"] = owner.mark()
    story.leaver.interrupt()
    story.codes["leaver"] = story.leaver.exit_code()
    owner.wait_for("MemberLeft", since=story.marks["leaving"])
    owner.wait_for_rounds(3)
    leave_at_once(story)
    return story


def removed(owner: PeerProcess, peer: PeerProcess, mark: int) -> None:
    owner.wait_for("MemberRemoved", lambda fact: fact["peer"] == peer.name, since=mark)


def leave_at_once(story: Story) -> None:
    """With all others frozen nobody can let a peer go: the second Ctrl-C is what ends it."""
    late = story.late
    assert late is not None
    others = [peer for peer in story.peers if peer.is_running and peer is not late]
    for peer in others:
        peer.freeze()
    late.interrupt()
    wait_until(lambda: "leaving in order" in late.said(50), late.said)
    late.interrupt()
    story.codes["late"] = late.exit_code(within_s=8)
    for peer in others:
        peer.thaw()


def test_the_others_go_on_within_two_deadlines_of_a_kill(story: Story) -> None:
    rounds = [
        f
        for f in story.since("killed", "RoundDecided")
        if story.killed.name not in f["contributors"]
    ]
    until = story.since("killed", "MemberRemoved")[0]["unix_s"]
    before = [fact for fact in rounds if fact["unix_s"] <= until]
    assert sum(fact["kind"] == "record" for fact in before) >= 3
    assert max(fact["seconds"] for fact in before) < WORST_PAUSE_S


def test_a_killed_peer_is_removed_and_no_branch_is_needed(story: Story) -> None:
    gone = [fact["peer"] for fact in story.since("killed", "MemberRemoved")]
    assert gone[0] == story.killed.name
    assert not story.owner.events("Branched")


def test_a_restarted_peer_goes_on_from_its_own_disk(story: Story) -> None:
    kinds = [fact["event"] for fact in story.killed.events(since=story.restarted_from)]
    assert kinds[0] == "PeerStarted"
    assert "StateFetched" not in kinds[: kinds.index("PeerReady")]
    started = story.killed.events("PeerStarted")
    assert len({fact["peer"] for fact in started}) == 1
    first, second = story.killed.events("PeerReady")
    assert second["round"] > first["round"]


def test_a_restarted_peer_contributes_again(story: Story) -> None:
    rounds = story.since("frozen", "RoundDecided")
    assert any(story.killed.name in fact["contributors"] for fact in rounds)


def test_a_late_joiner_gets_the_state_and_contributes(story: Story) -> None:
    assert story.late is not None
    fetched = story.late.events("StateFetched")[0]
    assert fetched["round"] >= 0
    assert fetched["size_bytes"] > 0
    rounds = story.since("frozen", "RoundDecided")
    assert any(story.late.name in fact["contributors"] for fact in rounds)


def test_a_frozen_peer_is_removed_and_comes_back_by_itself(story: Story) -> None:
    assert story.frozen.name in [f["peer"] for f in story.since("frozen", "MemberRemoved")]
    assert story.frozen.name in [f["peer"] for f in story.since("thawed", "MemberJoined")]
    rounds = story.since("thawed", "RoundDecided")
    assert any(story.frozen.name in fact["contributors"] for fact in rounds)
    assert len(story.frozen.events("PeerStarted")) == 1


def test_the_others_go_on_while_a_peer_is_frozen(story: Story) -> None:
    rounds = story.since("frozen", "RoundDecided")[: -len(story.since("thawed", "RoundDecided"))]
    assert sum(fact["kind"] == "record" for fact in rounds) >= 6
    assert max(fact["seconds"] for fact in rounds) < WORST_PAUSE_S


def test_the_first_interrupt_leaves_in_order(story: Story) -> None:
    assert story.codes["leaver"] == 0
    assert [f["peer"] for f in story.since("leaving", "MemberLeft")] == [story.leaver.name]
    assert story.leaver.events()[-1]["event"] == "PeerStopped"
    assert "left the run" in story.leaver.out.read_text()


def test_the_second_interrupt_ends_at_once(story: Story) -> None:
    assert story.codes["late"] == EXIT_INTERRUPTED


def test_all_replicas_hold_the_same_bits_after_each_round(story: Story) -> None:
    assert not differing_rounds(story.peers)
    both = set(story.owner.decided()) & set(story.frozen.decided())
    assert len(both) > 20


def test_nobody_reports_a_failure(story: Story) -> None:
    said = {peer.folder.name: peer.err.read_text() for peer in story.peers}
    assert not [name for name, text in said.items() if "Traceback" in text or "failed" in text]


def test_no_file_is_half_written(story: Story) -> None:
    homes: list[Path] = [peer.home for peer in story.peers if peer is not story.killed]
    assert not [path for home in homes for path in home.rglob("*.part")]
