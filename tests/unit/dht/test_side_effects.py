"""Modules whose loading is put off until something of them is used."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from runnel.dht.hivemind.side_effects import postponed

NAME = "postponed_by_a_test"


def module_in(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file behind when its code runs."""
    trace = folder / "ran"
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\nanswer = 42\n"
    (folder / f"{NAME}.py").write_text(code)
    patch.syspath_prepend(folder)
    patch.delitem(sys.modules, NAME, raising=False)
    return trace


def test_a_postponed_module_runs_at_its_first_use_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = module_in(tmp_path, monkeypatch)
    with postponed(NAME):
        module = importlib.import_module(NAME)
    assert not trace.exists()
    assert module.answer == 42
    assert trace.exists()
    assert importlib.import_module(NAME) is not module  # others get the module itself
    assert importlib.import_module(NAME).answer == 42
    monkeypatch.delitem(sys.modules, NAME)


def test_what_is_used_at_once_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module_in(tmp_path, monkeypatch)
    with postponed(NAME):
        assert importlib.import_module(NAME).answer == 42
    assert sys.modules[NAME].answer == 42
    monkeypatch.delitem(sys.modules, NAME)


def test_a_module_that_is_loaded_already_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module_in(tmp_path, monkeypatch)
    loaded = importlib.import_module(NAME)
    with postponed(NAME):
        assert importlib.import_module(NAME) is loaded
    assert sys.modules[NAME] is loaded
    monkeypatch.delitem(sys.modules, NAME)
