"""What steps before a restart weigh: they go into a later share with all of their tokens, and once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import runnel
from runnel.dht.identity import null_peer_id
from runnel.dht.wire import pack
from runnel.errors import InputFileError
from runnel.node.actions import RoundKey
from runnel.node.owed import owed_key, owed_tokens, owed_updates
from runnel.node.trainer import Trainer
from tests.support.members import PEERS, commitment, name
from tests.support.swarm import wait_until
from tests.support.vault_bench import FRAGMENTS, Bench

KEY = RoundKey(3, name("base"))
COMMITS = {KEY: commitment(PEERS[0], 3, KEY.base)}


def drift(*included: bool) -> dict[str, bytes]:
    return {"drift/0": pack([KEY.number, KEY.base, list(included)])}


def test_a_share_that_no_record_includes_is_owed_with_its_tokens() -> None:
    assert owed_tokens(drift(False, False), COMMITS, 2) == (10, 0)


def test_a_share_of_which_a_record_includes_something_is_not() -> None:
    assert owed_tokens({**drift(False, True), owed_key(0): pack(5)}, COMMITS, 1) == (0,)


def test_a_share_that_was_never_committed_to_weighs_nothing() -> None:
    assert owed_tokens(drift(False), {}, 1) == (0,)


def test_what_one_restart_found_the_next_one_finds_again() -> None:
    written = owed_updates((7, 0))
    assert written[owed_key(1)] is None
    stored = {key: value for key, value in written.items() if value is not None}
    assert owed_tokens(stored, COMMITS, 2) == (7, 0)
    assert owed_tokens({**stored, **drift(False)}, COMMITS, 2) == (10, 0)  # a newer share says all


@pytest.mark.parametrize("value", [b"", pack(-1), pack("x"), pack([1]) * 20])
def test_a_damaged_count_ends_in_advice(value: bytes) -> None:
    with pytest.raises(InputFileError, match="saved count of fragment 0 is damaged"):
        owed_tokens({owed_key(0): value}, {}, 1)


@pytest.mark.parametrize("included", [(True, False), (False, False)])
def test_a_record_that_includes_this_peer_settles_the_count(
    included: tuple[bool, bool], tmp_path: Path
) -> None:
    bench = Bench(tmp_path / "state")
    bench.log.write({owed_key(fragment): pack(7) for fragment in range(FRAGMENTS)})
    bench.round(included, give=True, reducer=False)
    left = [fragment for fragment in range(FRAGMENTS) if owed_key(fragment) in bench.log.load()]
    assert left == ([1] if any(included) else [0, 1])
    bench.log.close()


def test_a_peer_that_comes_back_weighs_what_it_had_handed_over(tmp_path: Path) -> None:
    def session() -> runnel.Peer:
        torch.manual_seed(0)
        place = runnel.local(
            "outer.fragments=1",
            "rounds.open=1",
            "outer.every_steps=4",
            "outer.overlap_steps=0",
            home=tmp_path / "home",
            members=[null_peer_id(1)],  # never comes, so that no round is decided for a while
        )
        model = nn.Linear(3, 1)
        return runnel.Peer(place, model=model)

    first = session()
    commits = first.node._parts.protocol.state.saved.commits

    def committed() -> bool:
        first.step(0.5, tokens=25)
        return bool(commits)

    wait_until(committed, lambda: "a commitment", within_s=20)
    for _ in range(2):
        first.step(0.5, tokens=25)  # never handed over
    (promised,) = commits.values()
    first.close()
    for _ in range(2):  # the second restart finds it, too
        again = session()
        assert isinstance(again._trainer, Trainer)
        assert again._trainer.window.tokens == [promised.tokens]
        again.close()
