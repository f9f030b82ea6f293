"""Others' scalars computed again: honest peers are never refuted, whoever lies is, and evidence can be shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from runnel.dht.identity import NullSigner
from runnel.errors import PeerError
from runnel.hashing import digest
from runnel.node.commitments import Commitment
from runnel.node.events import ScalarRefuted
from runnel.node.manifest import make_spec, parse_overrides
from runnel.node.sampling import step_seed, window_seed
from runnel.node.seed_parts import seed_store
from runnel.node.seed_trainer import _checker_of, _walk_of
from runnel.node.spot_checker import FOLDER_NAME, MAX_KEPT, SpotChecker
from runnel.node.spot_rounds import SpotRound, draw_statement, read_refuted
from runnel.optim.seed_rounds import RoundEntry
from runnel.optim.seed_store import SeedStore
from runnel.optim.seed_walks import Part
from runnel.optim.spsa_loss import Loss
from runnel.types import short
from tests.support.members import PEERS, RUN

INPUTS = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
WANTED = INPUTS.sum(dim=1, keepdim=True).tanh()

Lie = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1)).eval()


class Member:
    """A peer of a run without a network: its model, its weights, its walk, and its checks."""

    def __init__(self, number: int, settings: tuple[str, ...], folder: Path) -> None:
        self.peer, self.events, self.model = PEERS[number], list[Any](), model_of()
        self.folder = folder / str(number)
        self.folder.mkdir(parents=True)
        self.spec = make_spec(
            parse_overrides(["run.name=checked", "model.kind=custom", "seeds.lr=0.01", *settings]),
            source="a test",
        )
        self.store = seed_store(self.model, self.spec)
        node: Any = self
        self.walk = _walk_of(node, self.model, self.store)
        self.checker = _checker_of(node, self.model, self.store, self.walk)
        if self.checker is not None:
            self.checker.losses = self.loss_of
        self.forwards = 0

    def note(self, event: Any) -> None:
        self.events.append(event)

    def loss_of(self, seed: bytes) -> Loss:
        rows = np.frombuffer(seed, np.uint8).astype(np.int64)
        return lambda: nn.functional.mse_loss(self.model(INPUTS[rows]), WANTED[rows])

    def contribution(self, number: int, base: bytes, seat: int) -> bytes:
        seed = window_seed(base, self.peer, number)
        self.walk.begin(self.store.state)
        self.walk.enter(Part(seat, 0, seed))
        while True:
            taken = self.walk.step(self.loss_of(step_seed(seed, self.walk.steps)))
            self.forwards += taken.forwards
            if taken.payload is not None:
                return taken.payload

    def refuted(self) -> Counter[str]:
        return Counter(event.peer for event in self.events if isinstance(event, ScalarRefuted))


@dataclass
class Swarm:
    """Members that take rounds together; `lies` change what a member sends."""

    folder: Path
    settings: tuple[str, ...]
    count: int = 3
    lies: dict[int, Lie] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.members = [Member(k, self.settings, self.folder) for k in range(self.count)]
        self.number = 0

    def round(self, *, early: bool = False, look: bool = True) -> None:
        """One round; with `early` checks of the one before are made while its weights are tried."""
        number, base = self.number, digest(b"%d" % self.number)
        payloads = [m.contribution(number, base, seat) for seat, m in enumerate(self.members)]
        for liar, lie in self.lies.items():
            payloads[liar] = _lied(self.members[liar].store, payloads[liar], lie)
        commitments = tuple(
            _signed(member, number, base, payload)
            for member, payload in zip(self.members, payloads, strict=True)
        )
        entry = RoundEntry(0, dict(enumerate(payloads))).encode()
        seats = tuple(range(self.count))
        for member in self.members:
            member.store.prepare(number, entry)
            if early:
                self.look(member)
            member.store.adopt(number)
            version, record = member.store.version - 1, digest(b"record %d" % number)
            secret = NullSigner(member.peer).sign(draw_statement(RUN, record))
            if member.checker is not None:
                member.checker.offer(SpotRound(number, version, 0, commitments, seats, secret))
        if look and not early:
            for member in self.members:
                self.look(member)
        assert len({member.store.root(0) for member in self.members}) == 1
        self.number += 1

    @staticmethod
    def look(member: Member) -> None:
        while member.checker is not None and member.checker.once():
            pass


def _signed(member: Member, number: int, base: bytes, payload: bytes) -> Commitment:
    plain = Commitment(
        member.peer,
        number,
        digest(b"%d" % number),
        digest(payload),
        (0.0,),
        (),
        1,
        1,
        0.0,
        0,
        (),
        (),
        (),
        carried=payload,
    )
    return replace(plain, signature=NullSigner(member.peer).sign(plain.statement(RUN)))


def _lied(store: SeedStore, payload: bytes, lie: Lie) -> bytes:
    data = np.frombuffer(payload, np.int8).copy()
    codes = data[2::3] if "Pool" in type(store.method).__name__ else data
    codes[:] = np.clip(lie(codes.astype(np.int64)), -127, 127)
    return data.tobytes()


METHODS = {
    "spsa": ("seeds.method=spsa", "seeds.probes=3"),
    "fedkseed": ("seeds.method=fedkseed", "seeds.local_steps=3", "seeds.candidates=64"),
    "pro": (
        "seeds.method=fedkseed",
        "seeds.local_steps=3",
        "seeds.candidates=64",
        "seeds.uneven=true",
    ),
}


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_honest_peers_are_never_refuted(method: str, tmp_path: Path, *, early: bool) -> None:
    swarm = Swarm(tmp_path, (*METHODS[method], "seeds.spot_checks=1"))
    for _ in range(7):
        swarm.round(early=early)
    for member in swarm.members:
        assert member.checker is not None
        assert not member.events
        assert member.checker.scalars > 7
        assert member.checker.forwards == 2 * member.checker.scalars


LIES: dict[str, Lie] = {
    "negated": lambda codes: -codes,
    "scaled": lambda codes: 2 * codes,
    "made up": lambda codes: np.random.default_rng(1).integers(-127, 128, codes.size),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("method", ["spsa", "fedkseed"])
def test_a_liar_is_refuted_and_nobody_else(method: str, lie: str, tmp_path: Path) -> None:
    settings = (*METHODS[method], "seeds.spot_checks=1")
    swarm = Swarm(tmp_path, settings, lies={1: LIES[lie]})
    for _ in range(6):
        swarm.round()
    for member in (swarm.members[0], swarm.members[2]):
        assert set(member.refuted()) == {short(PEERS[1])}
    (event, *_) = (one for one in swarm.members[0].events if isinstance(one, ScalarRefuted))
    assert abs(event.published - event.recomputed) > 0.5 + event.tolerance
    assert "computed again" in (event.diary() or "")


def test_how_often_scalars_are_looked_at_is_the_runs_share_of_all_forward_passes(
    tmp_path: Path,
) -> None:
    settings = ("seeds.method=spsa", "seeds.probes=4", "seeds.spot_checks=0.25")
    swarm = Swarm(tmp_path, settings, lies={2: lambda codes: -codes})
    rounds = 40
    for _ in range(rounds):
        swarm.round()
    checked = sum(m.checker.scalars for m in swarm.members if m.checker)
    expected = 0.25 * 3 * 4 * rounds
    assert expected * 0.75 < checked <= expected * 1.2
    seen = sum(m.refuted()[short(PEERS[2])] for m in swarm.members)
    from_two = expected * 2 / 3 / 2  # of two members, each drawing the liar's in half of the cases
    assert from_two * 0.6 < seen < from_two * 1.3
    for member in swarm.members:
        assert member.checker is not None
        assert member.checker.share_of(member.forwards) == pytest.approx(0.2, abs=0.06)


def test_a_walk_along_other_seeds_than_drawn_needs_no_forward_pass(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, (*METHODS["fedkseed"], "seeds.spot_checks=1"), count=2)
    honest = Member.contribution

    def other(member: Member, number: int, base: bytes, seat: int) -> bytes:
        payload = bytearray(honest(member, number, base, seat))
        if seat == 1:
            payload[0] ^= 1
        return bytes(payload)

    swarm.members[1].contribution = lambda *a: other(swarm.members[1], *a)  # type: ignore[method-assign]
    for _ in range(4):
        swarm.round()
    reasons = [event.reason for event in swarm.members[0].events]
    assert any("the seed draws" in reason for reason in reasons)


def test_what_is_kept_is_its_authors_word(tmp_path: Path) -> None:
    settings = (*METHODS["spsa"], "seeds.spot_checks=1")
    swarm = Swarm(tmp_path, settings, lies={1: lambda codes: -codes}, count=2)
    for _ in range(2):
        swarm.round()
    member = swarm.members[0]
    files = sorted((member.folder / FOLDER_NAME).iterdir())
    assert {file.stem for file in files} == {event.evidence for event in member.events}
    kept = read_refuted(files[0].read_bytes())
    assert kept.peer == PEERS[1]
    verify = NullSigner(PEERS[0]).verify
    assert kept.problem(RUN, verify) == ""
    assert kept.problem(b"x" * 32, verify) == "a commitment that its peer did not sign"
    other = replace(kept.commitment, carried=bytes(len(kept.commitment.carried)))
    assert "carries another" in replace(kept, commitment=other).problem(RUN, verify)
    with pytest.raises(PeerError, match="malformed"):
        read_refuted(files[0].read_bytes()[:-1])
    with pytest.raises(PeerError, match="version 2"):
        read_refuted(b"\x95\x02" + files[0].read_bytes()[2:])


def test_evidence_has_a_bound(tmp_path: Path) -> None:
    settings = (*METHODS["spsa"], "seeds.spot_checks=1")
    swarm = Swarm(tmp_path, settings, lies={1: lambda codes: -codes}, count=2)
    folder = swarm.members[0].folder / FOLDER_NAME
    folder.mkdir()
    for k in range(MAX_KEPT):
        (folder / str(k)).touch()
    swarm.round()
    assert len(swarm.members[0].refuted())
    assert len(list(folder.iterdir())) == MAX_KEPT


def test_a_round_too_far_back_is_let_go(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, (*METHODS["spsa"], "seeds.spot_checks=1"), count=2)
    swarm.round()
    member = swarm.members[0]
    checker = member.checker
    assert checker is not None
    done = checker.scalars
    swarm.round(look=False)
    member.store.load(0, *(part.copy() for part in member.store.shared(0)))
    assert checker.once()
    assert checker.scalars == done
    assert not member.events


def test_authors_own_batches_and_half_precision_are_not_checked(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path, (*METHODS["spsa"], "seeds.spot_checks=1"), count=2)
    for member in swarm.members:
        assert isinstance(member.checker, SpotChecker)
        member.checker.losses = None
    swarm.round()
    assert all(m.checker is not None and not m.checker.scalars for m in swarm.members)
    member = swarm.members[0]
    node: Any = member
    half = model_of().to(torch.bfloat16)
    assert _checker_of(node, half, member.store, member.walk) is None
    off = Member(2, (*METHODS["spsa"], "seeds.spot_checks=0"), tmp_path / "off")
    assert off.checker is None
    projected = Member(3, ("seeds.method=ferret",), tmp_path / "projected")
    assert projected.checker is None
