"""The write-ahead store: every crash leaves the state after some prefix of the writes."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.errors import ConfigError, InputFileError, StorageError
from runnel.node import durable
from runnel.node.durable import DurableLog, read_snapshot
from runnel.node.log_records import decode_records, encode_record

Updates = Mapping[str, bytes | None]

names = st.sampled_from(["head", "vote", "lock", "pending"])
updates = st.dictionaries(names, st.none() | st.binary(max_size=40), max_size=4)
contents = st.binary(max_size=20).map(lambda value: value + b"!")
"""None that look like what some file systems leave of an unfinished write."""
histories = st.lists(updates, min_size=1, max_size=6)


def states(history: list[Updates]) -> list[dict[str, bytes]]:
    """The states before the first and after each write."""
    result: list[dict[str, bytes]] = [{}]
    for update in history:
        state = dict(result[-1])
        for name, value in update.items():
            if value is None:
                state.pop(name, None)
            else:
                state[name] = value
        result.append(state)
    return result


def written(directory: Path, history: list[Updates], *, compact_bytes: int = 1 << 20) -> None:
    log = DurableLog(directory, compact_bytes=compact_bytes)
    for update in history:
        log.write(update)
    log.close()


def reopened(directory: Path) -> dict[str, bytes]:
    log = DurableLog(directory)
    try:
        return log.load()
    finally:
        log.close()


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@settings(max_examples=30, deadline=None)
@given(histories, st.integers(1, 300))
def test_the_state_survives_a_restart_with_and_without_compaction(
    history: list[Updates], compact_bytes: int
) -> None:
    with folder() as directory:
        written(directory, history, compact_bytes=compact_bytes)
        assert reopened(directory) == states(history)[-1]


@settings(max_examples=8, deadline=None)
@given(st.lists(updates, min_size=1, max_size=3))
def test_a_log_cut_at_any_byte_holds_the_state_after_some_prefix_of_the_writes(
    history: list[Updates],
) -> None:
    with folder() as directory:
        written(directory, history)
        path = directory / "00000000.log"
        whole = path.read_bytes()
        expected = states(history)
        reached = 0
        for size in range(len(whole) + 1):
            path.write_bytes(whole[:size])
            records, good = decode_records(0, whole[:size], path)
            assert reopened(directory) == expected[len(records)]
            assert path.stat().st_size == good
            assert len(records) in {reached, reached + 1}
            reached = len(records)
        assert reached == len(history)


def test_after_a_torn_tail_is_dropped_writing_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, [{"a": b"1"}, {"a": b"2"}])
    path = tmp_path / "00000000.log"
    path.write_bytes(path.read_bytes()[:-1])
    written(tmp_path, [{"b": b"3"}])
    assert "unfinished write: dropped" in caplog.text
    assert reopened(tmp_path) == {"a": b"1", "b": b"3"}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.dictionaries(names, contents, min_size=1), min_size=1, max_size=4),
    st.integers(0, 10_000),
    st.integers(1, 255),
)
def test_a_flipped_byte_anywhere_is_refused_and_nothing_is_changed(
    history: list[Updates], position: int, mask: int
) -> None:
    with folder() as directory:
        written(directory, history)
        path = directory / "00000000.log"
        data = bytearray(path.read_bytes())
        data[position % len(data)] ^= mask
        path.write_bytes(data)
        with pytest.raises(InputFileError, match="damaged at byte"):
            DurableLog(directory)
        assert path.read_bytes() == data


def test_a_flipped_byte_in_a_compacted_state_is_refused(tmp_path: Path) -> None:
    written(tmp_path, [{"a": b"x" * 50}], compact_bytes=10)
    (path,) = tmp_path.glob("*.state")
    whole = path.read_bytes()
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1
        path.write_bytes(data)
        with pytest.raises(InputFileError, match="damaged"):
            DurableLog(tmp_path)


def test_records_swapped_or_taken_from_another_generation_are_refused(tmp_path: Path) -> None:
    written(tmp_path, [{"a": b"1"}, {"a": b"2"}])
    path = tmp_path / "00000000.log"
    whole = path.read_bytes()
    half = len(whole) // 2
    for data in (whole[half:] + whole[:half], whole[:half] * 2):
        path.write_bytes(data)
        with pytest.raises(InputFileError, match="damaged"):
            DurableLog(tmp_path)


@pytest.mark.parametrize("foreign", [b"44460", b"RNL1\0\0\0\0\0\0\0\0", b"RNL2"])
def test_a_tail_that_is_no_beginning_of_the_next_record_is_refused(
    tmp_path: Path, foreign: bytes
) -> None:
    written(tmp_path, [{"a": b"1"}])
    path = tmp_path / "00000000.log"
    path.write_bytes(path.read_bytes() + foreign)
    with pytest.raises(InputFileError, match="damaged at byte"):
        DurableLog(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 30, 41])
def test_zeros_where_an_unfinished_write_would_be_are_dropped(tmp_path: Path, kept: int) -> None:
    written(tmp_path, [{"a": b"1"}])
    path = tmp_path / "00000000.log"
    good = path.read_bytes()
    record = encode_record(0, 1, b"p" * 1000)
    path.write_bytes(good + record[:kept] + bytes(len(record) - kept))
    assert reopened(tmp_path) == {"a": b"1"}
    assert path.read_bytes() == good


@pytest.mark.parametrize("tail", [1, 40, 511])
def test_zeros_in_the_last_sector_of_an_unfinished_write_are_dropped(
    tmp_path: Path, tail: int
) -> None:
    written(tmp_path, [{"a": b"1"}])
    path = tmp_path / "00000000.log"
    good = path.read_bytes()
    record = encode_record(0, 1, b"p" * (512 + tail - len(good) - len(encode_record(0, 1, b""))))
    path.write_bytes((good + record)[:512] + bytes(tail))
    assert reopened(tmp_path) == {"a": b"1"}
    assert path.read_bytes() == good


def test_compaction_bounds_the_files(tmp_path: Path) -> None:
    log = DurableLog(tmp_path, compact_bytes=2_000)
    for number in range(300):
        log.write({"head": number.to_bytes(100, "big")})
        assert sum(path.stat().st_size for path in tmp_path.glob("0*")) < 3_000
    log.close()
    assert reopened(tmp_path) == {"head": (299).to_bytes(100, "big")}
    assert len(list(tmp_path.glob("*.state"))) == 1
    assert len(list(tmp_path.glob("*.log"))) == 1


def test_a_lost_state_file_is_named(tmp_path: Path) -> None:
    written(tmp_path, [{"a": b"x" * 50}], compact_bytes=10)
    written(tmp_path, [{"b": b"y"}])
    (path,) = tmp_path.glob("*.state")
    path.unlink()
    with pytest.raises(InputFileError, match="is missing"):
        DurableLog(tmp_path)


@pytest.mark.parametrize("compact_bytes", [10, 1 << 20])
def test_a_lost_log_is_named_and_not_taken_for_a_new_one(
    tmp_path: Path, compact_bytes: int
) -> None:
    log = DurableLog(tmp_path, compact_bytes=compact_bytes)
    log.write_blob("contribution", [b"x"])
    log.write({"vote": b"x" * 50})
    log.close()
    (path,) = tmp_path.glob("*.log")
    path.unlink()
    with pytest.raises(InputFileError, match=r"\.log is missing and what it held"):
        DurableLog(tmp_path)
    assert not list(tmp_path.glob("*.log"))


def test_a_full_disk_leaves_the_state_as_it_was_and_later_writes_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = DurableLog(tmp_path)
    log.write({"a": b"1"})

    def half(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_all", half)
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            log.write({"a": b"2"})
    assert log.load() == {"a": b"1"}
    log.write({"b": b"3"})
    log.close()
    assert reopened(tmp_path) == {"a": b"1", "b": b"3"}


def test_after_a_failed_sync_nothing_more_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = DurableLog(tmp_path)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_file", fail)
        with pytest.raises(StorageError, match="start this peer again"):
            log.write({"a": b"1"})
    with pytest.raises(StorageError, match="start this peer again"):
        log.write({"a": b"2"})
    log.close()
    assert reopened(tmp_path) in [{}, {"a": b"1"}]


def test_a_compaction_that_fails_costs_nothing_but_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    log = DurableLog(tmp_path, compact_bytes=10)

    def full(path: Path, parts: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "replace_file", full)
        log.write({"a": b"1" * 20})
    assert "tried again" in caplog.text
    log.write({"b": b"2" * 200})
    log.close()
    assert reopened(tmp_path) == {"a": b"1" * 20, "b": b"2" * 200}


def test_two_owners_of_one_folder_are_refused_by_process_id(tmp_path: Path) -> None:
    log = DurableLog(tmp_path)
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        DurableLog(tmp_path)
    log.close()
    DurableLog(tmp_path).close()


def test_another_process_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path: Path) -> None:
    log = DurableLog(tmp_path)
    script = (
        "import sys; from pathlib import Path; from runnel.node.durable import DurableLog\n"
        "log = DurableLog(Path(sys.argv[1])); log.write({'a': b'1'})\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    root = Path(durable.__file__).parents[2]
    refused = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert f"in use by process {os.getpid()}" in refused.stderr
    log.close()
    killed = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert killed.returncode == -9
    assert reopened(tmp_path) == {"a": b"1"}


def test_a_closed_log_refuses_to_write(tmp_path: Path) -> None:
    log = DurableLog(tmp_path)
    log.close()
    log.close()
    with pytest.raises(StorageError, match="is closed"):
        log.write({"a": b"1"})


def test_a_folder_that_cannot_be_made_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the folder"):
        DurableLog(tmp_path / "file" / "home")


@settings(max_examples=20, deadline=None)
@given(histories, st.integers(1, 300))
def test_a_snapshot_beside_the_owner_is_the_state_after_each_write(
    history: list[Updates], compact_bytes: int
) -> None:
    with folder() as directory:
        log = DurableLog(directory, compact_bytes=compact_bytes)
        try:
            for update, expected in zip(history, states(history)[1:], strict=True):
                log.write(update)
                assert read_snapshot(directory) == expected == log.load()
        finally:
            log.close()


@settings(max_examples=8, deadline=None)
@given(st.lists(updates, min_size=1, max_size=3))
def test_a_snapshot_of_a_write_under_way_is_the_state_after_some_prefix_of_the_writes(
    history: list[Updates],
) -> None:
    with folder() as directory:
        written(directory, history)
        (path,) = directory.glob("*.log")
        data = path.read_bytes()
        for size in range(len(data) + 1):
            path.write_bytes(data[:size])
            assert read_snapshot(directory) in states(history)
            assert path.read_bytes() == data[:size]  # what is unfinished is the owner's to drop


def test_a_snapshot_finds_files_that_a_compaction_took_away_under_their_new_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = DurableLog(tmp_path, compact_bytes=1)
    log.write({"a": b"1" * 400})
    looked = durable._newest_generation
    stale = [looked(tmp_path)]

    def late(directory: Path) -> int:
        if not stale:
            return looked(directory)
        seen = stale.pop()
        log.write({"a": b"2" * 4000})  # compacts: the generation that was seen is gone
        return seen

    monkeypatch.setattr(durable, "_newest_generation", late)
    assert looked(tmp_path) == stale[0]
    try:
        assert read_snapshot(tmp_path) == {"a": b"2" * 4000}
    finally:
        monkeypatch.undo()
        log.close()


def test_a_snapshot_of_nothing_says_what_to_do_and_leaves_nothing(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputFileError, match="start the peer once"):
            read_snapshot(place)
    assert not list(tmp_path.iterdir())


def test_a_snapshot_of_damaged_files_is_refused(tmp_path: Path) -> None:
    written(tmp_path, [{"head": b"1" * 600}, {"head": b"2" * 600}])
    (path,) = tmp_path.glob("*.log")
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputFileError, match="is damaged"):
        read_snapshot(tmp_path)
