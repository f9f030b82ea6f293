"""Two of two: one leaves and the other trains on; killed and restarted, it goes on from its disk, alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.swarm import PeerProcess, Swarm, differing_rounds, invite_of

pytestmark = [pytest.mark.swarm, pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass
class Story:
    """Two peers, and where the owner's journal ended when something happened."""

    owner: PeerProcess
    guest: PeerProcess
    left_at: int = 0
    killed_at: int = 0
    code: int = -1


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with Swarm(tmp_path_factory.mktemp("last")) as swarm:
        owner = swarm.launch()
        story = Story(owner, swarm.join("guest", invite_of(owner)))
        owner.wait_for_contribution_of(story.guest)
        owner.wait_for_rounds(6)
        story.left_at = owner.mark()
        story.guest.interrupt()
        story.code = story.guest.exit_code()
        owner.wait_for_rounds(20)
        owner.kill()
        story.killed_at = owner.mark()
        owner.start()
        owner.wait_for("PeerReady", since=story.killed_at)
        owner.wait_for_rounds(20)
        yield story


def test_the_one_that_leaves_is_let_go(story: Story) -> None:
    assert story.code == 0
    gone = story.owner.events("MemberLeft", since=story.left_at)
    assert [fact["peer"] for fact in gone] == [story.guest.name]


def test_the_other_trains_on_without_a_pause(story: Story) -> None:
    rounds = story.owner.events("RoundDecided", since=story.left_at)
    assert all(fact["kind"] == "record" for fact in rounds)
    assert max(fact["seconds"] for fact in rounds) < 6.0, "longer than the stall time"


def test_the_last_peer_goes_on_from_its_own_disk(story: Story) -> None:
    before = [f["round"] for f in story.owner.events("RoundDecided")[: story.killed_at]]
    after = story.owner.events(since=story.killed_at)
    ready = next(fact for fact in after if fact["event"] == "PeerReady")
    rounds = [fact["round"] for fact in after if fact["event"] == "RoundDecided"]
    assert ready["round"] >= max(before[:-30], default=0)
    assert rounds[0] in {ready["round"], ready["round"] + 1}
    assert rounds == list(range(rounds[0], rounds[-1] + 1))
    assert not story.owner.events("StateFetched")


def test_no_round_was_decided_twice_with_different_bits(story: Story) -> None:
    roots: dict[int, set[str]] = {}
    for fact in story.owner.events("RoundDecided"):
        roots.setdefault(fact["round"], set()).add(fact["state_root"])
    assert all(len(found) == 1 for found in roots.values())
    assert not differing_rounds([story.owner, story.guest])
