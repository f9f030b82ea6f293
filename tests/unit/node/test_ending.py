"""A peer that nobody ends ends anyway."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from runnel.node.ending import Ending

SOON_S = 20.0


class Node:
    """Notes how it was ended."""

    def __init__(self, trouble: BaseException | None = None) -> None:
        self.said: list[str] = []
        self.closed = threading.Event()
        self._trouble = trouble

    @property
    def is_closed(self) -> bool:
        return self.closed.is_set()

    def leave(self, timeout_s: float) -> None:
        if self._trouble is not None:
            raise self._trouble
        self.close("left")

    def close(self, reason: str = "stopped") -> None:
        if not self.is_closed:
            self.said.append(reason)
            self.closed.set()


class Owner:
    """What an author holds."""


def test_leaving_ends_the_node_once_and_removes_its_scratch_folder(tmp_path: Path) -> None:
    node, folder = Node(), tmp_path / "scratch"
    (folder / "runs").mkdir(parents=True)
    ending = Ending(node, folder)
    ending.leave(1.0)
    ending.leave(1.0)
    ending.close("stopped")
    assert node.said == ["left"]
    assert not folder.exists()


def test_a_home_that_is_not_scratch_stays(tmp_path: Path) -> None:
    Ending(Node(), None).close("stopped")
    assert tmp_path.exists()


def test_an_interrupt_while_leaving_still_closes() -> None:
    node = Node(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        Ending(node, None).leave(1.0)
    assert node.said == ["interrupted"]


def test_a_dropped_owner_ends_its_node() -> None:
    node, owner = Node(), Owner()
    Ending(node, None).watch(owner)
    assert not node.is_closed
    del owner
    gc.collect()
    assert node.closed.wait(SOON_S)
    assert node.said == ["dropped"]


def test_a_forked_child_leaves_the_parents_peer_alone_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node, owner = Node(), Owner()
    ending = Ending(node, tmp_path)
    ending.watch(owner)
    monkeypatch.setattr("runnel.node.ending.os", SimpleNamespace(getpid=lambda: 0))
    ending.leave(1.0)
    ending.close("stopped")
    [line] = caplog.messages
    assert "cannot be used in a forked child" in line
    before = threading.active_count()
    del owner
    gc.collect()
    assert threading.active_count() == before
    assert not node.said
    assert tmp_path.exists()


def test_an_owner_that_is_dropped_after_the_end_changes_nothing() -> None:
    node, owner = Node(), Owner()
    ending = Ending(node, None)
    ending.watch(owner)
    ending.close("stopped")
    del owner
    gc.collect()
    assert node.said == ["stopped"]
