"""The figures and the verdict of a demo, from made-up journals."""

from __future__ import annotations

import json

import pytest

from runnel.node.events import (
    Event,
    InnerProgress,
    MemberRemoved,
    PeerReady,
    PeerStarted,
    RoundDecided,
    RoundLate,
    RunEnded,
    StateFetched,
)
from runnel.tools.demo_outcome import Outcome, catch_up, find_problems, kill_cost
from runnel.tools.history import SwarmHistory
from runnel.tools.peer_processes import Fate

IDS = {"peer 0": "aaaa0000", "peer 1": "bbbb1111", "peer 2": "cccc2222", "peer 3": "dddd3333"}


def decided(
    number: int, at: float, *, kind: str = "record", root: str = "ab", who: str = ""
) -> Event:
    return RoundDecided(
        unix_s=at,
        round=number,
        kind=kind,
        fragment=0,
        contributors=tuple(IDS.values()) if not who else (who,),
        members=3,
        seconds=1.0,
        state_root=root,
    )


def swarm_of(events: dict[str, list[Event]]) -> SwarmHistory:
    history = SwarmHistory()
    for name, told in events.items():
        for event in told:
            history.apply(name, event)
    return history


@pytest.fixture
def events() -> dict[str, list[Event]]:
    """Rounds each second until peer 2 dies at 10.5; one abort, one late, then it is out at 14."""
    shared = [decided(n, float(n)) for n in range(11)]
    shared += [decided(11, 13.0, kind="abort"), decided(12, 14.0), decided(13, 15.0)]
    start = {name: PeerStarted(unix_s=0.5, peer=IDS[name], run="demo") for name in IDS}
    progress = InnerProgress(
        unix_s=5.0, step=40, round=5, loss=2.0, tokens=10, tokens_per_s=1.0, lr=0.1
    )
    gone = MemberRemoved(unix_s=14.0, peer=IDS["peer 2"], reason="not heard")
    end = RunEnded(unix_s=16.0, round=13, reason="minutes", state_root="ee")
    late = RoundLate(unix_s=13.5, round=11, reason="too late")
    ready = PeerReady(unix_s=1.0, round=0, members=3, seconds=0.5)
    return {
        "peer 0": [start["peer 0"], ready, progress, *shared, gone, end],
        "peer 1": [start["peer 1"], ready, *shared, late, gone, end],
        "peer 2": [start["peer 2"], ready, *shared[:11]],
    }


FATES = [Fate("peer 0", 0.0), Fate("peer 1", 0.0), Fate("peer 2", 0.0, killed_unix_s=10.5)]


def test_the_cost_of_a_death_is_counted_until_the_dead_is_out(
    events: dict[str, list[Event]],
) -> None:
    cost = kill_cost(swarm_of(events), events, FATES[2])
    assert (cost.aborted, cost.branches, cost.late) == (1, 0, 1)
    assert cost.removed_after_s == pytest.approx(3.5)
    assert cost.longest_wait_s == pytest.approx(3.0)
    assert cost.usual_wait_s == pytest.approx(1.0)
    assert "cost 1 aborted round and 1 late contribution" in cost.sentence()


def test_a_latecomer_late_for_its_first_round_is_no_cost_of_the_death(
    events: dict[str, list[Event]],
) -> None:
    events["peer 3"] = [
        PeerStarted(unix_s=13.0, peer=IDS["peer 3"], run="demo"),
        PeerReady(unix_s=13.2, round=11, members=2, seconds=0.2),
        RoundLate(unix_s=14.0, round=12, reason="too late"),
    ]
    assert kill_cost(swarm_of(events), events, FATES[2]).late == 1


def test_who_was_never_removed_is_said_to_be_a_member_still(
    events: dict[str, list[Event]],
) -> None:
    kept = {
        name: [event for event in told if not isinstance(event, MemberRemoved)]
        for name, told in events.items()
    }
    cost = kill_cost(swarm_of(kept), kept, FATES[2])
    assert cost.removed_after_s is None
    assert "still a member" in cost.sentence()


def test_a_late_start_is_timed_from_the_process_to_the_first_contribution() -> None:
    me = IDS["peer 3"]
    told: list[Event] = [
        PeerStarted(unix_s=104.0, peer=me, run="demo"),
        StateFetched(unix_s=104.5, round=16, size_bytes=3_410_000, seconds=0.4, donors=("a", "b")),
        PeerReady(unix_s=105.0, round=20, members=3, seconds=1.0),
        decided(21, 106.0, who="aaaa0000"),
        decided(22, 107.0, who=me),
    ]
    found = catch_up(swarm_of({"peer 3": told}), told, Fate("peer 3", 100.0))
    assert (found.ready_s, found.own_s) == (5.0, 1.0)
    assert (found.first_round, found.first_round_s) == (22, 7.0)
    assert "3.41 MB of state from 2 peers" in found.sentence()


def test_a_latecomer_that_never_got_ready_is_said_so() -> None:
    found = catch_up(SwarmHistory(), (), Fate("peer 3", 100.0))
    assert found.sentence() == "peer 3 joined late and did not catch up."


def test_a_sound_demo_has_no_problem(events: dict[str, list[Event]]) -> None:
    assert find_problems(swarm_of(events), FATES) == []


def test_replicas_that_differ_are_the_first_problem(events: dict[str, list[Event]]) -> None:
    events["peer 1"][6] = decided(4, 4.0, root="cd")
    problems = find_problems(swarm_of(events), FATES)
    assert problems == [
        "The replicas DIFFER: in round 4 their hashes are peer 0 ab, peer 1 cd, peer 2 ab."
    ]


def test_last_states_that_differ_are_a_problem(events: dict[str, list[Event]]) -> None:
    events["peer 1"][-1] = RunEnded(unix_s=16.0, round=13, reason="minutes", state_root="ff")
    assert "DIFFER at the end" in find_problems(swarm_of(events), FATES)[0]


def test_last_rounds_that_differ_are_a_problem(events: dict[str, list[Event]]) -> None:
    events["peer 1"][-1] = RunEnded(unix_s=16.0, round=12, reason="minutes", state_root="ee")
    problems = find_problems(swarm_of(events), FATES)
    assert problems == [
        "The replicas that got to the end do not agree where it is: peer 0 at round 13, peer 1 at round 12."
    ]


def test_who_missed_the_end_is_named(events: dict[str, list[Event]]) -> None:
    events["peer 1"].pop()
    assert find_problems(swarm_of(events), FATES) == ["peer 1 did not reach the run's end"]


def test_bytes_stand_beside_those_of_data_parallel(events: dict[str, list[Event]]) -> None:
    sent = {"peer 0": {"slice": 60, "result": 40}, "peer 1": {}}
    outcome = Outcome(history=swarm_of(events), parameters=1000, peers=4, sent=sent)
    assert outcome.bytes_lines() == [
        "peer 0 sent 100 B: 60 B slice, 40 B result",
        "peer 1 sent 0 B: nothing",
        "data parallel: 120 kB from each peer",
    ]
    figures = outcome.as_json()
    assert figures["bytes_ratio"] == pytest.approx(1200.0)
    assert figures["state_roots"] == {"peer 0": "ee", "peer 1": "ee"}
    assert (figures["rounds"], figures["aborted"], figures["ok"]) == (13, 1, True)
    json.dumps(figures, allow_nan=False)
