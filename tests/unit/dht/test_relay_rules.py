"""Who may use a relay: peers of the run freely, strangers a little, and only to talk to one of them."""

from __future__ import annotations

from runnel.dht.identity import null_peer_id
from runnel.dht.relay_rules import (
    MAX_CIRCUITS,
    MAX_CIRCUITS_PER_PEER,
    MAX_STRANGER_CIRCUITS,
    STRANGER_BYTES,
    STRANGER_RATE,
    Grant,
    RelayRules,
)

MEMBERS = [null_peer_id(n) for n in range(40)]
STRANGERS = [null_peer_id(n) for n in range(1000, 1040)]


def rules() -> RelayRules:
    made = RelayRules()
    made.knows = set(MEMBERS).__contains__
    return made


def granted(made: RelayRules, *pair: int, now: float = 0.0) -> Grant:
    grant = made.ask(MEMBERS[pair[0]], MEMBERS[pair[1]], now)
    assert isinstance(grant, Grant), grant
    return grant


def test_members_carry_as_much_as_they_like() -> None:
    assert granted(rules(), 0, 1).max_bytes is None


def test_before_it_knows_a_run_a_relay_carries_nothing() -> None:
    assert RelayRules().ask(MEMBERS[0], MEMBERS[1], 0.0) == "neither end is a peer of this run"


def test_two_strangers_get_nothing() -> None:
    assert isinstance(rules().ask(STRANGERS[0], STRANGERS[1], 0.0), str)
    assert isinstance(rules().ask(MEMBERS[0], MEMBERS[0], 0.0), str), "a circuit to oneself"


def test_a_stranger_reaches_members_within_a_budget_in_either_direction() -> None:
    for pair in ((STRANGERS[0], MEMBERS[0]), (MEMBERS[0], STRANGERS[0])):
        grant = rules().ask(*pair, 0.0)
        assert isinstance(grant, Grant)
        assert grant.max_bytes == STRANGER_BYTES


def test_many_strangers_together_get_no_more_than_their_share() -> None:
    made, opened, now = rules(), 0, 0.0
    while now < 1000.0:  # each of them a new one, closed at once
        grant = made.ask(STRANGERS[int(now) % 40], MEMBERS[0], now)
        if isinstance(grant, Grant):
            opened += 1
            made.end(grant)
        now += 1.0
    assert opened <= STRANGER_RATE.burst + 1000.0 * STRANGER_RATE.per_s + 1


def test_strangers_never_hold_all_circuits() -> None:
    made = rules()
    asked = [made.ask(stranger, MEMBERS[0], 0.0) for stranger in STRANGERS]
    assert sum(isinstance(one, Grant) for one in asked) == MAX_STRANGER_CIRCUITS
    granted(made, 1, 2)  # members still can


def test_one_peer_has_so_many_circuits_and_an_ended_one_makes_room() -> None:
    made = rules()
    held = [granted(made, 0, n + 1) for n in range(MAX_CIRCUITS_PER_PEER)]
    assert "of one peer" in str(made.ask(MEMBERS[30], MEMBERS[0], 0.0))
    made.end(held[0])
    granted(made, 30, 0)


def test_there_is_an_end_to_what_a_peer_carries() -> None:
    made, found = rules(), 0
    for a in range(40):
        for b in range(a):
            found += isinstance(made.ask(MEMBERS[a], MEMBERS[b], 0.0), Grant)
    assert found == made.num_open == MAX_CIRCUITS
