"""A crash at any call to the disk: what was promised is there, and nothing half-written passes for whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from runnel.dht.blob_sinks import FileSink
from runnel.dht.blobs import MIN_CHUNK_BYTES, Tree, split
from runnel.dht.identity import Identity
from runnel.dht.multiaddr import parse_peer_address
from runnel.dht.peer_cache import PeerCache
from runnel.errors import InputFileError
from runnel.hashing import digest
from runnel.node.atomic import write_atomically
from runnel.node.checkpoint import (
    CheckpointContent,
    CheckpointMeta,
    read_checkpoint,
    write_checkpoint,
)
from runnel.node.durable import DurableLog, read_snapshot
from runnel.node.events import MemberJoined
from runnel.node.journal import Journal, JournalLimits, read_events
from tests.support.crash_images import check_every_crash, crashes
from tests.support.file_layer import FileLayer

Updates = Mapping[str, bytes | None]

SEED = 20
HISTORY: tuple[Updates, ...] = tuple(
    {"a": bytes([n]) * 90, f"k{n % 3}": b"v" * n, f"k{(n + 1) % 3}": None} for n in range(9)
)


def states(history: tuple[Updates, ...]) -> list[dict[str, bytes]]:
    """The states before the first and after each write."""
    found: list[dict[str, bytes]] = [{}]
    for updates in history:
        merged = {**found[-1], **updates}
        found.append({name: value for name, value in merged.items() if value is not None})
    return found


# -- the write-ahead log


def write_log(home: Path, layer: FileLayer) -> None:
    log = DurableLog(home / "run" / "state", compact_bytes=400)
    for updates in HISTORY:
        log.write(updates)
        layer.mark()
    log.close()
    assert list((home / "run" / "state").glob("*.state")), "it was compacted on the way"


def check_log(home: Path, marks: int) -> None:
    allowed = states(HISTORY)[marks : marks + 2]
    if marks:
        assert read_snapshot(home / "run" / "state") in allowed
    log = DurableLog(home / "run" / "state")
    try:
        assert log.load() in allowed
        log.write({"z": b"1"})
    finally:
        log.close()
    assert read_snapshot(home / "run" / "state")["z"] == b"1"


def test_the_log_holds_every_acknowledged_write_after_a_crash_at_any_call() -> None:
    assert check_every_crash(write_log, check_log, seed=SEED) > 100


# -- blobs and the keys that name them


def write_blobs(home: Path, layer: FileLayer) -> None:
    log = DurableLog(home / "state")
    for number in range(5):
        name = f"residual-{number}"
        log.write_blob(name, [bytes([number]) * 3000, b"end"], large=bool(number % 2))
        log.write_blob("same", [bytes([number]) * 200])
        log.write({"named": name.encode()})
        layer.mark()
        log.delete_blobs(log.blob_names() - {name, "same"})
    log.close()


def check_blobs(home: Path, marks: int) -> None:
    log = DurableLog(home / "state")
    try:
        name = log.load().get("named", b"").decode()
        assert name in {f"residual-{marks - 1}", f"residual-{marks}", *([""] if not marks else [])}
        if name:
            number = int(name.rpartition("-")[2])
            assert log.read_blob(name) == bytes([number]) * 3000 + b"end"
            assert log.read_blob("same")[0] in {number, number + 1}
        for leftover in log.blob_names():
            log.read_blob(leftover)  # whatever has a name is whole
    finally:
        log.close()


def test_a_blob_that_a_key_names_is_whole_after_a_crash_at_any_call() -> None:
    assert check_every_crash(write_blobs, check_blobs, seed=SEED) > 100


# -- the journal

LIMITS = JournalLimits(max_file_bytes=400, old_files=2)
KEPT = 8
"""Events that are at least in the two files that rotation leaves."""


def joined(number: int) -> MemberJoined:
    return MemberJoined(unix_s=float(number), peer=f"{number:08d}")


def write_journal(home: Path, layer: FileLayer) -> None:
    journal = Journal(home / "run" / "journal.jsonl", limits=LIMITS)
    for number in range(24):
        journal.append(joined(number))
        if number % 2:
            assert journal.flush(10.0)
            layer.mark()
    journal.close()
    assert (home / "run" / "journal.jsonl.2").exists(), "it was rotated on the way"


def check_journal(home: Path, marks: int) -> None:
    path, promised = home / "run" / "journal.jsonl", 2 * marks
    journal = Journal(path, limits=LIMITS)
    journal.append(joined(99))
    assert journal.flush(10.0)
    journal.close()
    numbers = [int(event.unix_s) for event in read_events(path)]
    assert numbers == sorted(numbers)
    assert numbers.pop() == 99
    newest = max(numbers, default=-1)
    assert newest >= promised - 1
    assert numbers == list(range(newest + 1))[-len(numbers) :] if numbers else newest < 0
    assert len(numbers) >= min(promised, KEPT - 2)


def test_the_journal_keeps_what_was_flushed_in_order_after_a_crash_at_any_call() -> None:
    assert check_every_crash(write_journal, check_journal, seed=SEED) > 60


# -- checkpoints


def content(number: int) -> CheckpointContent:
    values = np.full(700, number, dtype=np.float32)
    roots = (digest(b"record %d" % number), digest(b"state %d" % number))
    meta = CheckpointMeta(
        run_id=digest(b"run"),
        round=number,
        tokens=number,
        record_hash=roots[0],
        state_root=roots[1],
    )
    return CheckpointContent({"w": values, "b": values[:3]}, {"w": -values}, meta)


def write_checkpoints(home: Path, layer: FileLayer) -> None:
    for number in range(3):
        write_checkpoint(home / "checkpoints", content(number), run=b"run", keep=1)
        layer.mark()


def check_checkpoints(home: Path, marks: int) -> None:
    folder = home / "checkpoints"
    try:
        found = read_checkpoint(folder)
    except InputFileError:
        assert not marks
    else:
        assert found.meta.round in {marks - 1, marks}
        np.testing.assert_array_equal(
            found.parameters["w"], content(found.meta.round).parameters["w"]
        )
    for place in folder.glob("round-*"):
        read_checkpoint(place)  # whatever has the name of a checkpoint is one
    write_checkpoint(folder, content(9), keep=1)
    assert read_checkpoint(folder).meta.round == 9
    assert not list(folder.glob(".*"))


def test_the_newest_checkpoint_is_whole_after_a_crash_at_any_call() -> None:
    assert check_every_crash(write_checkpoints, check_checkpoints, seed=SEED) > 60


# -- files that are replaced as a whole


def write_replaced(home: Path, layer: FileLayer) -> None:
    for number in range(4):
        text = json.dumps({"number": number, "padding": "x" * 300})
        write_atomically(home / "run" / "status.json", text.encode())
        layer.mark()


def check_replaced(home: Path, marks: int) -> None:
    path = home / "run" / "status.json"
    if marks or path.exists():
        assert json.loads(path.read_bytes())["number"] in {marks - 1, marks}


def test_a_file_replaced_as_a_whole_is_old_or_new_after_a_crash_at_any_call() -> None:
    assert check_every_crash(write_replaced, check_replaced, seed=SEED) > 20


def test_a_new_identity_is_there_whole_or_made_anew_after_a_crash_at_any_call() -> None:
    made: list[Identity] = []

    def work(home: Path, layer: FileLayer) -> None:
        made.append(Identity.load_or_create(home / "new" / "identity.key"))
        layer.mark()

    def check(home: Path, marks: int) -> None:
        found = Identity.load_or_create(home / "new" / "identity.key")
        assert found == made[0] or not marks
        assert Identity.load_or_create(home / "new" / "identity.key") == found

    assert check_every_crash(work, check, seed=SEED) > 5


def test_known_peers_are_some_earlier_list_after_a_crash_at_any_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peers = [
        parse_peer_address(
            f"/ip4/203.0.113.{n}/tcp/4001/p2p/12D3KooWBbkCD5MpJhMc1mfPAVGEyVkQnyxPKGS7AHwDqQM2JUsk"
        )
        for n in range(1, 5)
    ]

    def work(home: Path, layer: FileLayer) -> None:
        cache = PeerCache(home / "peers.json")
        for peer in peers:
            cache.add([peer])

    def check(home: Path, marks: int) -> None:
        found = PeerCache(home / "peers.json").addresses
        assert found == tuple(reversed(peers[: len(found)]))

    assert check_every_crash(work, check, seed=SEED) > 10
    assert "damaged" not in caplog.text


# -- downloads into files

CONTENT = bytes(range(256)) * (5 * MIN_CHUNK_BYTES // 256) + b"end"
_, ROOT_BLOB, CHUNKS = split((CONTENT,), chunk_bytes=MIN_CHUNK_BYTES)
TREE = Tree.decode(ROOT_BLOB, max_total_bytes=len(CONTENT))


def download(home: Path) -> None:
    sink = FileSink(TREE, home / "text" / "file")
    try:
        missing = sink.open()
        for index in reversed(missing):
            sink.put(index, memoryview(CHUNKS[index]))
        sink.finish()
    finally:
        sink.close()


def test_a_download_goes_on_after_a_crash_at_any_call_and_its_file_is_never_half_there() -> None:
    def work(home: Path, layer: FileLayer) -> None:
        download(home)
        layer.mark()

    def check(home: Path, marks: int) -> None:
        path = home / "text" / "file"
        if marks or path.exists():
            assert path.read_bytes() == CONTENT
        download(home)
        assert path.read_bytes() == CONTENT

    assert check_every_crash(work, check, seed=SEED) > 10


# -- the model of a disk itself


@pytest.mark.parametrize("lost", ["sync_file", "sync_directory"])
def test_a_sync_that_is_left_out_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    for module in ("disk", "durable"):
        monkeypatch.setattr(f"runnel.node.{module}.{lost}", lambda _: None)
    with pytest.raises((AssertionError, InputFileError)):
        check_every_crash(write_log, check_log, seed=SEED)


def test_the_last_crash_is_the_folder_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with FileLayer(tmp_path / "home") as layer:
        write_blobs(tmp_path / "home", layer)
    *_, last = [c for c in crashes(layer.calls, seed=SEED) if c.how == "killed"]
    last.write(tmp_path / "copy")
    files = {
        path.relative_to(tmp_path / "home"): path.read_bytes()
        for path in (tmp_path / "home").rglob("*")
        if path.is_file() and path.name != "lock"
    }
    assert len(files) > 2
    for name, data in files.items():
        assert (tmp_path / "copy" / name).read_bytes() == data
