"""A real peer from start to stop over a disk that ends with it, refuses, or has gone bad."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import runnel
from runnel.dht.identity import Identity
from runnel.dht.wire import unpack
from runnel.errors import RunnelError
from runnel.node import assembly, storage_keys
from runnel.node.checkpoint import read_checkpoint
from runnel.node.durable import DurableLog, read_snapshot
from runnel.node.journal import read_events
from runnel.node.manifest import SignedManifest
from runnel.node.outer_state import read_outer_state
from runnel.node.records import Record
from runnel.node.storage_keys import HEAD
from tests.support.crash_images import Crash, crashes, memory_folder
from tests.support.file_layer import FileLayer

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(900)]

SETTINGS = (
    "end.rounds=10",
    "outer.every_steps=4",
    "outer.fragments=2",
    "outer.wait_s=5",
    "rounds.open=1",
    "rounds.snapshot_every=4",
)
POINTS = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
DATASET = TensorDataset(POINTS, POINTS.sum(dim=1, keepdim=True))


def train(home: Path, *, rounds: int = 1000) -> runnel.Peer:
    """A peer alone in its run, until the end or for so many rounds more; it has left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    place = runnel.local(*SETTINGS, home=home)
    with runnel.Peer(place, model=model, optimizer=optimizer) as peer:
        last = peer.round + rounds
        for inputs, wanted in peer.batches(DATASET, batch_size=16):
            loss = nn.functional.mse_loss(model(inputs), wanted)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            peer.step(loss)
            if peer.round >= last:
                break
    return peer


class Course:
    """One whole life of a peer, call by call, and what its log held after each write."""

    def __init__(self, folder: Path) -> None:
        self.states: list[dict[str, bytes]] = []
        write = DurableLog.write

        def marked(log: DurableLog, updates: Any) -> None:
            write(log, updates)
            self.states.append(log.load())
            layer.mark()

        home, asked = folder / "home", list[str]()
        home.mkdir()
        with (
            FileLayer(home, fault=lambda kind, _: asked.append(kind)) as layer,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(DurableLog, "write", marked)
            # so that a short life has old records, too
            patch.setattr(assembly, "_kept_records", lambda _: 3)
            patch.setitem(storage_keys.restore.__kwdefaults__ or {}, "block", 2)
            self.identity = None
            train(home)
        assert "archive/1" in self.states[-1], "records were archived on the way"
        self.calls, self.asked = layer.calls, asked
        self.identity = Identity.load(home / "identity.key")
        self.home = home

    def crashes(self, *, seed: int, share: float) -> Iterator[Crash]:
        return crashes(self.calls, seed=seed, share=share)

    def check(self, home: Path, marks: int) -> None:
        """Everything that was promised is in `home`, and nothing there is half."""
        if marks:
            assert Identity.load(home / "identity.key") == self.identity
        for path in (*home.glob("*.json"), *home.glob("runs/*/*.json")):
            json.loads(path.read_bytes())
        for path in home.glob("runs/*/journal.jsonl"):
            times = [event.unix_s for event in read_events(path)]
            assert times == sorted(times)
        for path in home.glob("runs/*/checkpoints/round-*"):
            read_checkpoint(path)
        run = next(home.glob("runs/*"), None)
        if not marks:
            return
        assert run is not None
        state = read_snapshot(run / "state")
        assert state in self.states[marks - 1 : marks + 1]
        if (run / "manifest.bin").exists():
            SignedManifest.read(run / "manifest.bin")
            _, content = read_outer_state(run)
            assert content.meta.round <= 9
        else:
            assert len(state[HEAD]) == 32
            assert marks <= 2, "a run that began has its manifest"


@pytest.fixture(scope="module")
def course() -> Iterator[Course]:
    with memory_folder() as folder:
        yield Course(folder)


@pytest.fixture
def home() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder / "home"


def test_a_home_is_whole_after_a_crash_at_any_call(course: Course, home: Path) -> None:
    count = 0
    for crash in course.crashes(seed=1, share=0.1):
        crash.write(home)
        try:
            course.check(home, crash.marks)
        except BaseException as error:
            error.add_note(
                f"{crash.how} after call {crash.step}: {course.calls[crash.step - 1]!r:.300}"
            )
            raise
        shutil.rmtree(home)
        count += 1
    assert count > 50


def head_number(state: Mapping[str, bytes]) -> int:
    """The number of the record at which a log stands; -1 is genesis."""
    told = state.get(f"record/{state[HEAD].hex()}")
    return Record.from_wire(unpack(told, max_bytes=1 << 20)[0]).number if told else -1


def restart(course: Course, home: Path, *, seed: int, count: int) -> None:
    """Starts a peer from what some crashes left: it goes on where it was, and nothing is left over."""
    found = [
        crash
        for crash in course.crashes(seed=seed, share=0.2)
        if crash.marks and any(crash.image["runs"].values())  # type: ignore[union-attr]
    ]
    for crash in Random(seed).sample(found, count):
        crash.write(home)
        promised = head_number(course.states[crash.marks - 1])
        known = list(home.glob("runs/*/manifest.bin"))
        peer = train(home, rounds=2)
        assert peer.round >= min(9, promised + 1) or not known, f"{crash.how} at {crash.step}"
        assert Identity.load(home / "identity.key") == course.identity
        assert not list(home.rglob(".*.????????????"))
        shutil.rmtree(home)


def test_a_peer_goes_on_after_a_crash_at_a_sampled_call(course: Course, home: Path) -> None:
    restart(course, home, seed=2, count=2)


@pytest.mark.slow
def test_a_peer_goes_on_after_crashes_at_many_calls(course: Course, home: Path) -> None:
    restart(course, home, seed=3, count=40)


# -- a disk that refuses

ANY_CHANGE = frozenset({"open", "write", "truncate", "rename", "link", "unlink", "mkdir", "rmdir"})
REFUSALS = {
    "full": (errno.ENOSPC, ANY_CHANGE - {"truncate", "unlink", "rmdir"} | {"sync"}),
    "read-only": (errno.EROFS, ANY_CHANGE),
    "forbidden": (errno.EACCES, ANY_CHANGE - {"write", "truncate"}),
    "failing": (errno.EIO, ANY_CHANGE | {"sync", "read"}),
}


class Refusal:
    """A disk that refuses some kinds of calls from the n-th on, or that one only."""

    def __init__(self, name: str, first: int, *, once: bool) -> None:
        self._code, self._kinds = REFUSALS[name]
        self._first, self._once = first, once
        self._seen = 0
        self.refused = 0

    def __call__(self, kind: str, path: Path) -> None:
        if kind not in self._kinds:
            return
        self._seen += 1
        if self._seen == self._first or (self._seen > self._first and not self._once):
            self.refused += 1
            raise OSError(self._code, os.strerror(self._code), str(path))


def train_on_a_bad_disk(home: Path, refusal: Refusal) -> str:
    """What ended the peer, or nothing."""
    home.mkdir()
    with FileLayer(home, fault=refusal):
        try:
            train(home)
        except RunnelError as error:
            return str(error) or type(error).__name__
    return ""


def check_refusals(
    course: Course, home: Path, caplog: pytest.LogCaptureFixture, *, name: str, draws: int
) -> None:
    """A refusal at any time: a line or a peer that goes on, and what was promised is there afterwards."""
    rng = Random(f"{name} {draws}")
    calls = sum(kind in REFUSALS[name][1] for kind in course.asked)
    for _ in range(draws):
        first, once = rng.randrange(1, calls), rng.random() < 0.5
        promised: list[int] = []
        refusal = Refusal(name, first, once=once)
        write = DurableLog.write

        def marked(log: DurableLog, updates: Any, write: Any = write, seen: Any = promised) -> None:
            write(log, updates)
            if HEAD in log.load():
                seen.append(head_number(log.load()))

        caplog.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DurableLog, "write", marked)
            said = train_on_a_bad_disk(home, refusal)
        where = f"{name} from call {first} of {calls}{' once' if once else ''}: {said}"
        assert len(said.splitlines()) <= 1, where
        assert not said or str(home) in said or "disk" in said, where
        traces = [record.getMessage() for record in caplog.records if record.exc_info]
        assert not traces, f"{where}; {traces}"
        assert "should not have happened" not in caplog.text, where
        assert refusal.refused or once, where
        peer = train(home, rounds=2)
        assert peer.round >= min(9, max(promised, default=-1)), where
        shutil.rmtree(home)


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusing_disk_ends_a_peer_in_one_line_or_not_at_all(
    course: Course, home: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    check_refusals(course, home, caplog, name=name, draws=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusing_disk_never_costs_what_was_promised(
    course: Course, home: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    check_refusals(course, home, caplog, name=name, draws=25)


# -- a disk that has gone bad


def damaged(path: Path, how: str, rng: Random) -> None:
    content = path.read_bytes()
    place = rng.randrange(max(1, len(content)))
    match how:
        case "flipped":
            path.write_bytes(
                content[:place]
                + bytes((content[place] ^ (1 << rng.randrange(8)),))
                + content[place + 1 :]
            )
        case "cut":
            path.write_bytes(content[:place])
        case "missing":
            path.unlink()
        case "swapped":
            others = [o for o in sorted(path.parent.iterdir()) if o.is_file() and o != path]
            if others:
                other = rng.choice(others)
                path.write_bytes(other.read_bytes())
                other.write_bytes(content)


def kind_of(path: Path) -> str:
    return path.suffix if path.suffix in {".log", ".state"} else path.name.partition("-")[0]


def check_damage(
    course: Course, home: Path, caplog: pytest.LogCaptureFixture, *, seed: int, count: int
) -> None:
    """Whatever is damaged: a peer starts and goes on, or says in one line which file it is."""
    rng = Random(seed)
    middle = [c for c in course.crashes(seed=0, share=1.0) if c.how == "killed"]
    crash = next(c for c in middle if c.marks > 0.6 * len(course.states))
    crash.write(home)
    files = [p.relative_to(home) for p in sorted(home.rglob("*")) if p.is_file()]
    shutil.rmtree(home)
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kinds.setdefault(kind_of(file), []).append(file)
    todo = [
        (kind, how) for kind in sorted(kinds) for how in ("flipped", "cut", "missing", "swapped")
    ]
    for kind, how in rng.sample(todo, min(count, len(todo))):
        crash.write(home)
        file = rng.choice(kinds[kind])
        damaged(home / file, how, rng)
        before = {path: path.read_bytes() for path in home.rglob("*.log")}
        caplog.clear()
        try:
            train(home, rounds=1)
            said = ""
        except RunnelError as error:
            said = str(error)
        where = f"{file} {how}, seed {seed}: {said}"
        assert len(said.splitlines()) <= 1, where
        assert not [r.getMessage() for r in caplog.records if r.exc_info], where
        if said:
            assert "this peer" in said or str(home) in said, where
            assert all(path.read_bytes() == content for path, content in before.items()), where
        shutil.rmtree(home)


def test_a_damaged_file_is_named_or_made_anew(
    course: Course, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_damage(course, home, caplog, seed=5, count=3)


@pytest.mark.slow
def test_damaged_files_of_every_kind_are_named_or_made_anew(
    course: Course, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_damage(course, home, caplog, seed=6, count=1000)
