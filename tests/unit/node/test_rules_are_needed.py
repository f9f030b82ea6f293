"""Each rule of the protocol, turned back by itself, makes a test or a schedule fail: none is there for nothing."""

from __future__ import annotations

import pytest

from tests.support.mutants import Mutant, reverted
from tests.support.named_tests import run_test
from tests.support.rules_agreement import AGREEMENT, EVIDENCE
from tests.support.rules_bounds import BOUNDS, FORGOTTEN
from tests.support.rules_chain import BEHIND, BRANCHES, FOLLOWING, MEMBERSHIP
from tests.support.rules_rounds import CARRIED, EXCHANGE, ONE_RULE
from tests.support.sweep import kept, problem

RULES = (
    *AGREEMENT,
    *EVIDENCE,
    *BOUNDS,
    *FORGOTTEN,
    *MEMBERSHIP,
    *BEHIND,
    *BRANCHES,
    *FOLLOWING,
    *CARRIED,
    *EXCHANGE,
    *ONE_RULE,
)
SCHEDULES = sorted({schedule for rule in RULES for schedule in rule.schedules} - set(kept()))
"""Those that test_protocol_schedules.py does not run anyway."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_without_a_rule_what_shows_it_fails(rule: Mutant) -> None:
    assert rule.shown_by
    with reverted(rule):
        survived = [name for name in rule.tests if not fails(name)]
        survived += [f"{seed} {kind}" for seed, kind in rule.schedules if not problem(seed, kind)]
    assert survived == []


@pytest.mark.parametrize(("seed", "kind"), SCHEDULES)
def test_with_all_rules_the_same_schedules_keep_every_promise(seed: int, kind: str) -> None:
    assert problem(seed, kind) == ""


def test_a_rule_is_back_once_it_was_turned_back() -> None:
    lock = next(rule for rule in RULES if rule.rule == "a lock binds")
    with reverted(lock):
        assert fails(lock.tests[0])
    run_test(lock.tests[0])


def test_a_piece_that_is_not_there_once_is_an_error() -> None:
    for old in ("no such text", "self"):
        with pytest.raises(ValueError, match="expected once"), reverted(mutant(old, "")):
            pass
    with pytest.raises(ValueError, match="no function"), reverted(mutant("Values only.", "")):
        pass


def mutant(old: str, new: str) -> Mutant:
    return Mutant("a rule", "verification.votes", old, new, ())


def fails(name: str) -> bool:
    try:
        run_test(name)
    except (Exception, pytest.fail.Exception):
        return True
    return False
