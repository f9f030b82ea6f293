"""Following a journal that grows."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from runnel.node.events import Event, PeerStopped, PeerWarned
from runnel.node.journal import checked_line
from runnel.tools.journal_tail import JournalTail

PATTERN = "runs/*/journal.jsonl"


def journal_in(folder: Path) -> Path:
    path = folder / "runs" / "demo" / "journal.jsonl"
    path.parent.mkdir(parents=True)
    return path


def test_before_there_is_a_journal_there_is_nothing_to_tell(tmp_path: Path) -> None:
    tail = JournalTail(tmp_path, PATTERN)
    assert tail.new_events() == []
    assert tail.path is None


@given(
    texts=st.lists(st.text(max_size=20), max_size=8), cuts=st.lists(st.integers(0, 900), max_size=8)
)
def test_every_event_comes_once_however_the_writes_are_cut(
    texts: list[str], cuts: list[int]
) -> None:
    events: list[Event] = [PeerWarned(unix_s=1.0, text=text) for text in texts]
    data = b"".join(checked_line(event).encode() + b"\n" for event in events)
    with tempfile.TemporaryDirectory() as folder:
        path = journal_in(Path(folder))
        tail = JournalTail(Path(folder), PATTERN)
        seen: list[Event] = []
        edges = sorted({0, *(min(cut, len(data)) for cut in cuts), len(data)})
        for start, stop in pairwise(edges):
            with path.open("ab") as file:
                file.write(data[start:stop])
            seen += tail.new_events()
        assert seen == events


def test_a_damaged_line_is_skipped(tmp_path: Path) -> None:
    line = checked_line(PeerStopped(unix_s=1.0, reason="left"))
    journal_in(tmp_path).write_text(f"{line[:20]}\n{line}\n")
    assert JournalTail(tmp_path, PATTERN).new_events() == [PeerStopped(unix_s=1.0, reason="left")]


def test_after_a_rotation_the_new_file_is_read(tmp_path: Path) -> None:
    path, tail = journal_in(tmp_path), JournalTail(tmp_path, PATTERN)
    path.write_text(checked_line(PeerWarned(unix_s=1.0, text="long " * 9)) + "\n")
    assert len(tail.new_events()) == 1
    path.write_text(checked_line(PeerStopped(unix_s=2.0, reason="left")) + "\n")
    assert tail.new_events() == [PeerStopped(unix_s=2.0, reason="left")]
