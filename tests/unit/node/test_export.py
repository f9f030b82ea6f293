"""What a run's folder gives away: checkpoints and samples, checked, also beside a peer that writes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from runnel.dht.blobs import tree_root
from runnel.dht.identity import Identity
from runnel.dht.virtual_loop import run_virtual
from runnel.errors import ConfigError, InputFileError, RunMismatchError, StorageError
from runnel.hashing import digest
from runnel.node import last_checkpoint
from runnel.node.checkpoint import (
    RUN_NAME,
    CheckpointContent,
    read_checkpoint,
    read_manifest,
    read_run,
    write_checkpoint,
)
from runnel.node.durable import DurableLog
from runnel.node.events import Checkpointed, Event, PeerWarned
from runnel.node.export import load_checkpoint, restored_model, sample_text, save_checkpoint
from runnel.node.gpt import Gpt
from runnel.node.joining import genesis_blob
from runnel.node.keepsakes import result_name
from runnel.node.last_checkpoint import LastCheckpoint
from runnel.node.manifest import Genesis, SignedManifest, make_spec, parse_overrides
from runnel.node.outcomes import abort_record, genesis_record
from runnel.node.outer_parts import optimizer_of
from runnel.node.outer_state import last_members, plan_updates, read_outer_state
from runnel.node.records import Record, RecordKind, SliceResult
from runnel.node.run_model import build_model
from runnel.node.saved_states import StateKey, state_name
from runnel.node.storage_keys import HEAD, record_updates
from runnel.optim.binding import ModelBinding, plan_model
from runnel.optim.codecs import codec_named
from runnel.optim.fragments import FragmentPlan
from runnel.optim.stepping import Stepper
from runnel.protocols import Float32
from runnel.types import Digest

OWNER = Identity.generate()
TINY = (
    "run.name=tiny",
    "model.layers=2",
    "model.heads=2",
    "model.width=16",
    "model.context=16",
    "outer.fragments=3",
    "rounds.open=2",
)
CUSTOM = ("run.name=own", "model.kind=custom", "outer.fragments=2", "rounds.open=1")


class Odd(nn.Module):
    """A model that nobody could guess: a scalar, an empty parameter and a frozen one among others."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.größe = nn.Parameter(torch.tensor(0.25))
        self.nothing = nn.Parameter(torch.zeros(0, 4))
        self.still = nn.Parameter(torch.ones(5), requires_grad=False)
        self.table = nn.Parameter(torch.randn(3, 7, 2, generator=generator))


@dataclass
class Run:
    """A run's folder as a peer leaves it, and the records that stand in it."""

    folder: Path
    manifest: SignedManifest
    plan: FragmentPlan
    log: DurableLog
    head: Record
    values: list[tuple[Float32, Float32]]

    def result(self, mean: Float32) -> None:
        """The next round of the only fragment, of which there is the result alone; `values` are after it."""
        outer, turn = self.manifest.spec.outer, self.head.number + 1
        payload = codec_named(outer.result_codec).encode(mean)
        stepper = Stepper(codec_named(outer.result_codec), optimizer_of(outer))
        stepper.step(
            self.values[0], self.values[0], [(0, mean.size)], [payload], turn=turn, final=False
        )
        root = digest(payload)
        self.log.write_blob(result_name(root), [payload])
        record = replace(
            abort_record(self.head),
            kind=RecordKind.ROUND,
            slices=(SliceResult(root, OWNER.peer_id, (0,)),),
            state_root=tree_root([part.data for part in self.values[0]]),
        )
        self._follow(record, {"state/0": StateKey(turn, -1, "residual-0").encode()})

    def round(self, *, values: tuple[Float32, Float32] | None = None, lie: bool = False) -> None:
        """The next round: a new state of its fragment, all of it in one write."""
        number = self.head.number + 1
        fragment = number % self.plan.num_fragments
        rng = np.random.default_rng(number)
        size = self.plan.sizes[fragment]
        theta: Float32 = rng.standard_normal(size, dtype=np.float32)
        momentum: Float32 = rng.standard_normal(size, dtype=np.float32)
        theta *= np.float32(0.25)
        theta, momentum = values or (theta, momentum)
        self.values[fragment] = (theta, momentum)
        record = Record(
            number=number,
            parent=self.head.hash,
            kind=RecordKind.ROUND,
            shares=(),
            slices=(SliceResult(digest(b"result"), OWNER.peer_id, (0,)),),
            state_root=digest(b"lie") if lie else tree_root([theta.data, momentum.data]),
            view=self.head.view,
            unproven=(),
            tokens=self.head.tokens + 300,
            progress=0,
            finished=(),
        )
        self.log.write_blob(state_name(fragment, number), [theta.tobytes(), momentum.tobytes()])
        self._follow(
            record, {f"state/{fragment}": StateKey(number, number, f"residual-{fragment}").encode()}
        )

    def abort(self) -> None:
        self._follow(abort_record(self.head), {})

    def _follow(self, record: Record, updates: dict[str, bytes]) -> None:
        self.log.write({**record_updates(record, None), **updates, HEAD: record.hash})
        self.head = record

    def expected(self) -> tuple[dict[str, Float32], dict[str, Float32]]:
        """Parameters and momentum by name, put together value by value."""
        both = []
        for part in range(2):
            flat = {s.name: np.zeros(s.numel, dtype=np.float32) for s in self.plan.shapes}
            for fragment, pieces in enumerate(self.plan.fragments):
                for piece in pieces:
                    for place in range(piece.numel):
                        value = self.values[fragment][part][piece.offset + place]
                        flat[piece.parameter][piece.start + place] = value
            both.append({s.name: flat[s.name].reshape(s.shape) for s in self.plan.shapes})
        return both[0], both[1]


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> Any:
    """Makes runs at genesis whose logs are open, as beside a peer that runs."""
    logs: list[DurableLog] = []

    def make(
        *settings: str, model: nn.Module | None = None, plan: bool = True, compact: int = 1 << 20
    ) -> Run:
        folder = tmp_path / f"run{len(logs)}"
        folder.mkdir()
        run = founded(folder, settings or TINY, model, plan=plan, compact=compact)
        logs.append(run.log)
        return run

    yield make
    for log in logs:
        log.close()


def founded(
    folder: Path, settings: Sequence[str], model: nn.Module | None, *, plan: bool, compact: int
) -> Run:
    spec = make_spec(parse_overrides(settings), source="a test")
    model = model or build_model(spec)
    cut = plan_model(model, spec.outer.fragments)
    binding, values = ModelBinding(model, cut), []
    for fragment in range(cut.num_fragments):
        buffer = binding.new_buffer(fragment)
        binding.read(fragment, buffer)
        kept = optimizer_of(spec.outer).slots * buffer.size
        values.append((buffer, np.zeros(kept, dtype=np.float32)))
    names = genesis_blob([tree_root([t.data, m.data]) for t, m in values])
    marked = spec.model.model_copy(update={"fingerprint": cut.fingerprint().hex()})
    genesis = Genesis(
        state_root=digest(names),
        members=(OWNER.peer_id,),
        created_unix_s=1,
        data_root=Digest(bytes(32)),
    )
    manifest = SignedManifest.issue(OWNER, spec.model_copy(update={"model": marked}), genesis)
    manifest.write(folder / "manifest.bin")
    log = DurableLog(folder / "state", compact_bytes=compact)
    first = genesis_record(genesis.members, genesis.state_root)
    updates = {"genesis": names, HEAD: first.hash}
    for fragment, (theta, momentum) in enumerate(values):
        log.write_blob(state_name(fragment, -1), [theta.tobytes(), momentum.tobytes()])
        updates[f"state/{fragment}"] = StateKey(-1, -1, f"residual-{fragment}").encode()
    log.write({**updates, **(plan_updates(cut) if plan else {})})
    return Run(folder, manifest, cut, log, first, values)


def assert_is_state_of(content: CheckpointContent, run: Run) -> None:
    parameters, momentum = run.expected()
    for seen, expected in ((content.parameters, parameters), (content.momentum, momentum)):
        assert seen.keys() == expected.keys()
        for name, value in expected.items():
            assert seen[name].shape == value.shape
            assert seen[name].tobytes() == value.tobytes(), name


def test_a_checkpoint_holds_the_outer_parameters_bit_for_bit_and_gives_the_same_loss(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    for _ in range(5):
        run.round()
    written = save_checkpoint(run.folder, tmp_path / "out")
    assert written.parent == tmp_path / "out"
    content = read_checkpoint(tmp_path / "out")
    assert_is_state_of(content, run)
    assert content.meta.round == 4
    assert content.meta.record_hash == run.head.hash
    assert content.meta.run_id == run.manifest.run_id
    assert content.meta.tokens == 5 * 300 // 3

    trained = build_model(run.manifest.spec)
    binding = ModelBinding(trained, run.plan)
    for fragment, (theta, _) in enumerate(run.values):
        binding.write(fragment, theta)
    batch = torch.randint(0, 256, (4, 17), generator=torch.Generator().manual_seed(1))
    restored = restored_model(run.manifest.spec, content)
    assert restored.loss(batch).item() == trained.loss(batch).item()


def test_a_checkpoint_holds_all_that_adam_keeps_of_each_parameter(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(*TINY, "outer.optimizer=adam", "outer.lr=0.02")
    rows = []
    for fragment, size in enumerate(run.plan.sizes):
        rng = np.random.default_rng(fragment)
        theta, both = rng.random(size, np.float32), rng.random(2 * size, np.float32)
        run.round(values=(theta, both))
        rows.append((theta, both[:size], both[size:]))
    content = read_checkpoint(save_checkpoint(run.folder, tmp_path / "out"))
    for slot in range(2):
        run.values = [(row[0], row[1 + slot]) for row in rows]
        expected = run.expected()[1]
        assert content.momentum.keys() == expected.keys()
        for name, value in expected.items():
            assert content.momentum[name].shape == (2, *value.shape)
            assert content.momentum[name][slot].tobytes() == value.tobytes()


def test_a_checkpoint_takes_results_of_one_bit_adam_in_their_turns(make_run: MakeRun) -> None:
    settings = ("outer.fragments=1", "rounds.open=1", "outer.beta2=0.5", "outer.lr=0.02")
    run = make_run(*TINY, *settings, "outer.optimizer=one-bit-adam")
    for turn in range(5):
        run.result(np.random.default_rng(turn).random(run.plan.numel, np.float32))
    theta, kept = run.values[0]
    _, content = read_outer_state(run.folder)
    run.values = [(theta, kept[theta.size :])]
    parameters, squares = run.expected()
    for name, value in parameters.items():
        assert content.parameters[name].tobytes() == value.tobytes()
        assert content.momentum[name][1].tobytes() == squares[name].tobytes()


def test_a_checkpoint_without_momentum_has_none(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(*TINY, "outer.optimizer=sgd")
    for fragment, size in enumerate(run.plan.sizes):
        theta = np.random.default_rng(fragment).random(size, np.float32)
        run.round(values=(theta, np.empty(0, np.float32)))
    content = read_checkpoint(save_checkpoint(run.folder, tmp_path / "out"))
    assert content.momentum == {}
    assert sum(value.size for value in content.parameters.values()) == run.plan.numel


def test_before_the_first_round_a_checkpoint_holds_the_first_state(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    written = save_checkpoint(run.folder, tmp_path / "out")
    assert written.name.startswith("initial-")
    assert_is_state_of(read_checkpoint(written), run)


def test_a_model_of_an_authors_own_needs_only_the_folder(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(*CUSTOM, model=Odd())
    for _ in range(3):
        run.round()
    content = read_checkpoint(save_checkpoint(run.folder, tmp_path / "out"))
    assert sorted(content.parameters) == ["größe", "nothing", "table"]
    assert content.parameters["größe"].shape == ()
    assert_is_state_of(content, run)


def test_the_built_in_model_needs_no_saved_names(make_run: MakeRun) -> None:
    run = make_run(plan=False)
    run.round()
    assert_is_state_of(read_outer_state(run.folder)[1], run)


def test_a_model_of_an_authors_own_without_saved_names_says_what_to_do(make_run: MakeRun) -> None:
    run = make_run(*CUSTOM, model=Odd(), plan=False)
    with pytest.raises(InputFileError, match="start the peer once"):
        read_outer_state(run.folder)


def test_names_that_are_not_the_runs_are_refused(make_run: MakeRun) -> None:
    run = make_run(*CUSTOM, model=Odd())
    run.log.write(plan_updates(plan_model(nn.Linear(2, 2), 2)))
    with pytest.raises(RunMismatchError, match="fingerprint"):
        read_outer_state(run.folder)
    run.log.write({"plan": b"[[1"})
    with pytest.raises(InputFileError, match="damaged"):
        read_outer_state(run.folder)


def test_rounds_that_were_aborted_afterwards_change_no_byte_of_a_checkpoint(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    run.round()
    first = save_checkpoint(run.folder, tmp_path / "out")
    run.abort()
    run.abort()
    assert save_checkpoint(run.folder, tmp_path / "out") == first
    run.round()
    assert save_checkpoint(run.folder, tmp_path / "out") != first
    assert read_checkpoint(first).meta.round == 0


def test_a_file_in_the_place_of_the_folder_is_named_and_stays(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run, out = make_run(), tmp_path / "text.txt"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="expected a folder of checkpoints: choose another --out"):
        save_checkpoint(run.folder, out)
    with pytest.raises(StorageError, match="a file is in the place of a folder: choose another"):
        save_checkpoint(run.folder, out / "below")
    assert out.read_text() == "mine"


def test_checkpoints_of_earlier_rounds_stay(make_run: MakeRun, tmp_path: Path) -> None:
    run, written = make_run(), []
    for _ in range(5):
        run.round()
        written.append(save_checkpoint(run.folder, tmp_path / "out"))
    assert [read_manifest(path).meta.round for path in written] == [0, 1, 2, 3, 4]


def test_a_state_that_is_not_the_records_is_refused_in_one_line(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    run.round()
    run.round(lie=True)
    with pytest.raises(RunMismatchError, match=r"fragment 1 .* round 1") as caught:
        save_checkpoint(run.folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_values_that_were_changed_on_disk_are_refused(make_run: MakeRun) -> None:
    run = make_run()
    run.round()
    theta, momentum = run.values[0]
    theta[0] += 1
    run.log.write_blob(state_name(0, 0), [theta.tobytes(), momentum.tobytes()])
    with pytest.raises(RunMismatchError, match="fragment 0"):
        read_outer_state(run.folder)


def test_a_state_of_another_round_than_the_newest_record_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    run.round()
    run.log.write({"state/0": StateKey(-1, -1, "residual-0").encode()})
    with pytest.raises(RunMismatchError, match="of round -1, its newest record of round 0"):
        read_outer_state(run.folder)


@pytest.mark.parametrize("key", ["state/1", "genesis", HEAD])
def test_a_folder_that_lacks_a_part_is_refused(make_run: MakeRun, key: str) -> None:
    run = make_run()
    run.round()
    run.log.write({key: None})
    with pytest.raises((InputFileError, RunMismatchError)) as caught:
        read_outer_state(run.folder)
    assert "\n" not in str(caught.value)


def test_a_blob_that_is_lost_is_named(make_run: MakeRun) -> None:
    run = make_run()
    run.log.blob_path(state_name(2, -1)).unlink()
    with pytest.raises(InputFileError, match="state-2--1 is missing"):
        read_outer_state(run.folder)


def test_the_last_members_are_those_of_the_newest_record(make_run: MakeRun) -> None:
    run = make_run()
    assert last_members(run.manifest, run.folder) == (OWNER.peer_id,)
    run.round()
    assert last_members(run.manifest, run.folder) == run.head.view
    with pytest.raises(InputFileError, match="no saved state"):
        last_members(run.manifest, run.folder / "elsewhere")


def test_no_run_and_no_state_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="manifest"):
        read_outer_state(tmp_path)
    run = make_run()
    (tmp_path / "new").mkdir()
    run.manifest.write(tmp_path / "new" / "manifest.bin")
    with pytest.raises(InputFileError, match="holds no saved state"):
        read_outer_state(tmp_path / "new")


def test_every_state_read_beside_a_writer_is_whole(make_run: MakeRun) -> None:
    """The log is compacted all the time, and blobs go as soon as no key names them."""
    run = make_run(*CUSTOM, model=Odd(), compact=600)
    failures: list[BaseException] = []

    def train() -> None:
        try:
            for number in range(120):
                fragment = number % 2
                size = run.plan.sizes[fragment]
                filled = np.full(size, float(number), dtype=np.float32)
                run.round(values=(filled, -filled))
                named = {state_name(number % 2, number), state_name((number - 1) % 2, number - 1)}
                kept = named if number else {*named, state_name(1, -1)}
                run.log.delete_blobs(run.log.blob_names() - kept)
        except BaseException as error:  # for the test's own thread
            failures.append(error)

    writer = threading.Thread(target=train)
    writer.start()
    rounds = []
    while writer.is_alive():
        _, content = read_outer_state(run.folder)
        rounds.append(content.meta.round)
        if content.meta.round >= 1:
            newest = {float(v) for tensor in content.parameters.values() for v in tensor.flat}
            assert newest == {content.meta.round, content.meta.round - 1.0}
    writer.join()
    assert not failures
    assert rounds == sorted(rounds)
    assert read_outer_state(run.folder)[1].meta.round == 119


def test_a_sample_begins_with_its_prompt_and_follows_from_the_seed(make_run: MakeRun) -> None:
    run = make_run()
    for _ in range(3):
        run.round()
    text = sample_text(run.folder, prompt="def grüße(", tokens=40, seed=7)
    assert text.startswith("def grüße(")
    assert len(text) > len("def grüße(")
    assert sample_text(run.folder, prompt="def grüße(", tokens=40, seed=7) == text
    assert sample_text(run.folder, prompt="def grüße(", tokens=40, seed=8) != text
    before = text
    for _ in range(3):
        run.round()
    assert sample_text(run.folder, prompt="def grüße(", tokens=40, seed=7) != before


def test_a_checkpoint_writes_the_text_that_its_run_writes(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    for _ in range(3):
        run.round()
    written = save_checkpoint(run.folder, tmp_path / "out")
    text = sample_text(run.folder, prompt="ab", tokens=20, seed=7)
    assert sample_text(written, prompt="ab", tokens=20, seed=7) == text
    assert sample_text(tmp_path / "out", prompt="ab", tokens=20, seed=7) == text
    assert read_run(written).encode() == run.manifest.encode()


def test_torch_has_one_thread_while_the_model_writes_and_its_own_number_afterwards(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before, seen = make_run(), torch.get_num_threads(), list[int]()

    def generate(*_: object, **__: object) -> bytes:
        seen.append(torch.get_num_threads())
        if len(seen) == 2:
            raise ValueError("it stopped writing")
        return b"!"

    monkeypatch.setattr(Gpt, "generate", generate)
    torch.set_num_threads(3)
    try:
        assert sample_text(run.folder, prompt="a", tokens=1, seed=0) == "a!"
        assert torch.get_num_threads() == 3
        with pytest.raises(ValueError, match="stopped"):
            sample_text(run.folder, prompt="a", tokens=1, seed=0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1]


@pytest.mark.parametrize("name", ["manifest.json", "parameters.safetensors", RUN_NAME])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_damaged_checkpoint_writes_nothing_and_is_named_in_one_line(
    make_run: MakeRun, tmp_path: Path, name: str, is_there: bool
) -> None:
    written = save_checkpoint(make_run().folder, tmp_path / "out")
    content = bytearray((written / name).read_bytes())
    (written / name).unlink()
    if is_there:
        content[len(content) // 2] ^= 1
        (written / name).write_bytes(content)
    with pytest.raises(InputFileError, match=name) as caught:
        sample_text(tmp_path / "out", prompt="a", tokens=1, seed=0)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_another_runs_settings_is_refused(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run, other = make_run(), make_run(*TINY, "model.width=32")
    written = save_checkpoint(run.folder, tmp_path / "out")
    (written / RUN_NAME).write_bytes(other.manifest.encode())
    with pytest.raises(InputFileError, match="is the manifest of run") as caught:
        sample_text(written, prompt="a", tokens=1, seed=0)
    assert run.manifest.run_id.hex()[:8] in str(caught.value)


def test_parameters_that_are_not_those_of_the_settings_are_refused(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run, wider = make_run(), make_run(*TINY, "model.width=32")
    ours, theirs = (read_outer_state(one.folder)[1] for one in (run, wider))
    forged = CheckpointContent(theirs.parameters, {}, ours.meta)
    written = write_checkpoint(tmp_path / "out", forged, run=run.manifest.encode())
    with pytest.raises(InputFileError, match=r"has shape .* as the run's settings say"):
        sample_text(written, prompt="a", tokens=1, seed=0)


def test_a_checkpoint_that_lacks_the_runs_settings_is_completed(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    written = save_checkpoint(run.folder, tmp_path / "out")
    (written / RUN_NAME).unlink()
    assert save_checkpoint(run.folder, tmp_path / "out") == written
    assert read_run(written).run_id == run.manifest.run_id


def test_authors_load_a_checkpoint_into_their_model(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(*CUSTOM, model=Odd())
    for _ in range(3):
        run.round()
    save_checkpoint(run.folder, tmp_path / "out")
    model, loaded = Odd(), load_checkpoint(tmp_path / "out")
    assert sorted(loaded) == ["größe", "nothing", "table"]
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert model.load_state_dict(loaded, strict=False).unexpected_keys == []
    for name, value in run.expected()[0].items():
        assert model.get_parameter(name).detach().numpy().tobytes() == value.tobytes()


def test_models_that_write_no_bytes_are_named(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match=r"a model of its own.*runnel\.load_checkpoint"):
        sample_text(make_run(*CUSTOM, model=Odd()).folder, prompt="a", tokens=1, seed=0)
    with pytest.raises(ConfigError, match="300 tokens"):
        sample_text(make_run(*TINY, "model.vocab=300").folder, prompt="a", tokens=1, seed=0)


def last_of(run: Run, events: list[Event]) -> LastCheckpoint:
    async def disk(job: Callable[[], Checkpointed]) -> Checkpointed:
        return await asyncio.get_running_loop().run_in_executor(None, job)

    return LastCheckpoint(run.folder, run.manifest, run.log, disk=disk, note=events.append)


async def write_thrice(last: LastCheckpoint) -> None:
    await asyncio.gather(last.write(), last.write())
    await last.write()


def test_all_members_of_a_run_that_is_over_write_the_same_checkpoint_once(
    make_run: MakeRun,
) -> None:
    written = []
    for aborted in (0, 2):
        run, events = make_run(), list[Event]()
        for _ in range(4):
            run.round()
        for _ in range(aborted):
            run.abort()

        run_virtual(partial(write_thrice, last_of(run, events)))
        (event,) = events
        assert isinstance(event, Checkpointed)
        assert event.round == 3
        path = Path(event.path)
        assert path.parent == run.folder / "checkpoints"
        assert read_manifest(path).seal.hex() == event.digest
        assert_is_state_of(read_checkpoint(run.folder / "checkpoints"), run)
        written.append({file.name: file.read_bytes() for file in path.iterdir()})
    assert written[0] == written[1]


def test_a_last_checkpoint_that_cannot_be_written_is_a_warning(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Path:
        raise StorageError("cannot write a checkpoint: no space left; free some space")

    monkeypatch.setattr(last_checkpoint, "write_checkpoint", full)
    run, events = make_run(), list[Event]()
    run.round()
    run_virtual(lambda: last_of(run, events).write())
    (event,) = events
    assert isinstance(event, PeerWarned)
    assert "free some space" in event.text
    assert "runnel checkpoint" in event.text
