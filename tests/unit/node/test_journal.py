"""The journal: order, torn lines, rotation, a disk that refuses."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel import files
from runnel.errors import StorageError
from runnel.node.events import Event, MemberJoined, PeerWarned
from runnel.node.journal import Journal, JournalLimits, checked_line, parse_line, read_events


def joined(number: int) -> MemberJoined:
    return MemberJoined(unix_s=float(number), peer=f"{number:08d}")


def filled(path: Path, count: int, limits: JournalLimits | None = None) -> list[Event]:
    events: list[Event] = [joined(number) for number in range(count)]
    journal = Journal(path, limits=limits)
    for event in events:
        journal.append(event)
    journal.close()
    return events


def test_events_come_back_in_order_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "home" / "journal.jsonl"
    first = filled(path, 3)
    again = filled(path, 2)
    assert list(read_events(path)) == first + again


def test_each_line_is_plain_json(tmp_path: Path) -> None:
    filled(tmp_path / "j", 2)
    kinds = [json.loads(line)["event"] for line in (tmp_path / "j").read_text().splitlines()]
    assert kinds == ["MemberJoined", "MemberJoined"]


def test_a_crash_at_any_byte_loses_at_most_the_torn_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j"
    events = filled(path, 3)
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == 0x0A]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        caplog.clear()
        complete = sum(end - 1 <= size for end in ends)  # a line may lack only its newline
        assert list(read_events(path)) == events[:complete]
        if size and size not in ends and size + 1 not in ends:
            assert f"line {complete + 1} is damaged or cut off" in caplog.text


def test_what_is_appended_after_a_torn_line_is_read_and_the_torn_line_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j"
    first = filled(path, 2)
    path.write_bytes(path.read_bytes()[:-7])
    again = filled(path, 1)
    assert list(read_events(path)) == first[:1] + again
    assert f"{path}, line 2 is damaged" in caplog.text


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_byte_never_makes_a_wrong_event(position: int, mask: int) -> None:
    line = bytearray(checked_line(joined(7)).encode())
    line[position % len(line)] ^= mask
    assert parse_line(line.decode("utf-8", "replace")) is None


def test_rotation_bounds_the_total_and_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "j"
    limits = JournalLimits(max_file_bytes=500, old_files=2)
    events = filled(path, 100, limits)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["j", "j.1", "j.2"]
    assert sum(file.stat().st_size for file in files) <= 500 * 3
    kept = list(read_events(path))
    assert len(kept) > 5
    assert kept == events[-len(kept) :]


def test_flush_returns_when_the_events_are_on_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(joined(1))
    assert journal.flush(10.0)
    assert list(read_events(tmp_path / "j")) == [joined(1)]
    journal.close()
    journal.close()


def test_a_closed_journal_says_what_it_did_not_keep(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "j")
    journal.close()
    journal.append(joined(1))
    assert "MemberJoined was not kept" in caplog.text


def test_a_full_disk_is_reported_once_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = threading.Event()

    def write_all(descriptor: int, data: bytes) -> None:
        if full.is_set():
            os.write(descriptor, data[: len(data) // 2])  # a real disk takes a part
            raise OSError(errno.ENOSPC, "No space left on device")
        files.write_all(descriptor, data)

    monkeypatch.setattr("runnel.node.journal.write_all", write_all)
    errors: list[StorageError] = []
    path = tmp_path / "j"
    journal = Journal(path, on_error=errors.append)
    journal.append(joined(0))
    assert journal.flush(10.0)
    full.set()
    for number in (1, 2):
        journal.append(joined(number))
        assert not journal.flush(10.0)
    assert len(errors) == 1
    assert str(path) in str(errors[0])
    assert "free some space" in str(errors[0])
    full.clear()
    journal.append(joined(3))
    assert journal.flush(10.0)
    journal.close()
    assert list(read_events(path)) == [joined(0), joined(3)]
    assert "training goes on without a journal" in caplog.text


def test_a_callback_that_fails_does_not_end_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def complain(error: StorageError) -> None:
        raise RuntimeError("callback")

    journal = Journal(tmp_path / "j", on_error=complain)
    with monkeypatch.context() as patch:
        patch.setattr("runnel.node.journal.sync_file", refuse)
        journal.append(joined(0))
        assert not journal.flush(10.0)
    journal.append(joined(1))
    assert journal.flush(10.0)
    journal.close()


def test_a_path_that_cannot_be_opened_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot open the journal"):
        Journal(tmp_path / "file" / "journal.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot open the journal"):
        Journal(tmp_path / "folder")


def test_an_event_json_cannot_hold_is_named_and_the_rest_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(MemberJoined(unix_s=1.0, peer=b"raw"))  # type: ignore[arg-type]
    journal.append(joined(2))
    journal.close()
    assert list(read_events(tmp_path / "j")) == [joined(2)]
    assert "JSON cannot hold" in caplog.text


def test_a_full_queue_drops_and_records_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    entered, gate = threading.Event(), threading.Event()

    def write_all(descriptor: int, data: bytes) -> None:
        entered.set()
        assert gate.wait(30)
        files.write_all(descriptor, data)

    monkeypatch.setattr("runnel.node.journal.write_all", write_all)
    journal = Journal(tmp_path / "j", limits=JournalLimits(queue_events=2))
    journal.append(joined(0))
    assert entered.wait(30)
    for number in range(1, 6):
        journal.append(joined(number))  # two wait, three are dropped
    gate.set()
    assert journal.flush(10.0)
    journal.append(joined(6))
    journal.close()
    assert list(read_events(tmp_path / "j")) == [
        joined(0),
        joined(1),
        joined(2),
        PeerWarned(unix_s=6.0, text="the journal fell behind and dropped 3 events"),
        joined(6),
    ]
    assert "events are being dropped" in caplog.text


def test_reading_a_journal_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_events(tmp_path / "none"))
