"""Who comes back from a path that went on for long takes no part where it may have forgotten what it promised."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runnel.dht.identity import NullSigner
from runnel.node.actions import Action, Adopt, Handover, RoundKey, Send, Store, WantHandover
from runnel.node.commitments import Commitment
from runnel.node.messages import Commit
from runnel.node.outcomes import abort_record
from runnel.node.protocol import HISTORY_ROUNDS, RoundProtocol
from runnel.node.records import Record, RecordKind, set_value
from runnel.node.storage_keys import restore
from runnel.verification.votes import Instance
from tests.support.members import PEERS, certificate, following_record, name
from tests.support.states import GENESIS, ME, OTHER, branch_after, settings_of, told

SHARED = RoundKey(1, GENESIS.hash)
"""A round that is the same on both paths: with two rounds open it derives from the record before they part."""
LONG = HISTORY_ROUNDS + 40


class Life:
    """One peer's protocol and its disk."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}
        self.start(0.0)

    def start(self, now: float) -> None:
        saved = restore(self.keys, GENESIS, open_rounds=2)
        self.protocol = RoundProtocol(NullSigner(ME), settings_of(), saved, now=now)
        self.actions = self.carry(self.protocol.tick(now))

    def carry(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            if isinstance(action, Store | Adopt):
                self.keys.update({k: v for k, v in action.updates.items() if v is not None})
                for gone in [k for k, v in action.updates.items() if v is None]:
                    self.keys.pop(gone, None)
        return actions

    def hand_over(self, key: RoundKey, root: str, now: float) -> list[Commitment]:
        """Commits to a round, if the protocol lets it; what it sends."""
        slices = len(self.protocol.state.rounds[key].slices)
        share = Handover(key, name(root), (1.0,) * slices, 10, 1, 0.5, 100, {})
        actions = self.carry(self.protocol.handed_over(share, 0, now))
        sent = [a.message for a in actions if isinstance(a, Send)]
        return [m.commitment for m in sent if isinstance(m, Commit)]

    def follow(self, first: Record, proofs: list[object], length: int, now: float) -> None:
        """A path from genesis, told by another, with aborts by `PEERS[:2]` or by this peer alone."""
        records, signers = [first], (ME,) if first.kind is RecordKind.BRANCH else PEERS[:2]
        for _ in range(length):
            records.append(abort_record(records[-1]))
            proofs.append(certificate(records[-1], signers))
        for start in range(0, len(records), 50):
            part = told(*records[start : start + 50], proofs=proofs[start : start + 50])  # type: ignore[arg-type]
            self.carry(self.protocol.receive(OTHER, part, now))

    def come_back(self, now: float) -> Record:
        """To a path that parts right after genesis and has one record: its state is fetched."""
        better = abort_record(GENESIS)
        self.carry(self.protocol.receive(OTHER, told(better), now))
        self.protocol.state.pursuit.landing = [GENESIS.hash, better.hash]
        self.actions = self.carry(self.protocol.tick(now))
        assert self.protocol.state.chain.path == [GENESIS.hash, better.hash]
        return better


def far_away(length: int = LONG) -> tuple[Life, Commitment]:
    """Has committed to a round, and then gone on alone for so many rounds; what it committed."""
    life = Life()
    (promised,) = life.hand_over(SHARED, "first", 0.5)
    branch, proof = branch_after(GENESIS, (ME,))
    life.follow(branch, [proof], length, 30.0)
    assert life.protocol.state.chain.number == length
    return life, promised


def wanted(actions: list[Action]) -> list[RoundKey]:
    return [a.key for a in actions if isinstance(a, WantHandover)]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_round_whose_promises_may_be_forgotten_is_not_promised_anything_again(
    *, restarts: bool
) -> None:
    life, promised = far_away()
    assert SHARED not in life.protocol.state.saved.commits
    better = life.come_back(40.0)
    if restarts:
        life.start(50.0)
    assert SHARED not in wanted(life.actions)
    assert not life.hand_over(SHARED, "second", 51.0)
    place = life.protocol.state.rounds[SHARED]
    place.decide((promised,), None, 51.0)
    assert place.own(ME) is None  # its payload may be gone, too
    place.decided = None
    chosen = tuple(replace(c, signature=b"") for c in place.commits.values())
    place.sets[set_value([c.id for c in chosen])] = chosen
    elections = life.protocol._elections
    assert elections.agreement(Instance("set", 1, GENESIS.hash), 51.0) is None
    # a round that derives from a record that was not followed before is another matter
    fresh = RoundKey(2, better.hash)
    assert fresh in wanted(life.actions)
    assert elections.agreement(Instance("set", 2, better.hash), 51.0) is not None
    assert elections.agreement(Instance("outcome", 1, better.hash), 51.0) is not None
    (later,) = life.hand_over(fresh, "third", 52.0)
    assert later.round == 2


def test_what_is_still_known_is_promised_again_as_it_was() -> None:
    life, promised = far_away(HISTORY_ROUNDS - 10)
    life.come_back(40.0)
    assert life.protocol.state.rounds[SHARED].commits[ME] == promised
    assert not life.hand_over(SHARED, "second", 51.0)


def test_a_second_fork_closes_nothing_that_was_promised_since() -> None:
    life, _ = far_away()
    life.come_back(40.0)
    past = life.protocol.state.saved.past
    assert (past.parted, past.expired) == (-1, 1)
    past.part(1, 0)  # nearer than the fork before, and nothing was forgotten since: that one counts
    assert past.may_have_promised(1, -1)
    assert not past.may_have_promised(1, 0)
    past.part(5, 0)
    assert past.may_have_promised(1, 0)
    assert not past.may_have_promised(2, 0)


def test_a_life_without_forks_takes_part_everywhere() -> None:
    life = Life()
    record = following_record(GENESIS)
    life.follow(record, [certificate(record, PEERS[:2])], LONG, 30.0)
    state = life.protocol.state
    assert state.saved.past.parted == -2
    assert not any(place.forgotten for place in state.rounds.values())
