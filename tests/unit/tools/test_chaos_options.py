"""Options of a chaos run: what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.errors import ConfigError
from runnel.tools.chaos_options import parse_options
from runnel.tools.chaos_plan import Kind


def test_the_defaults_are_those_that_help_names(tmp_path: Path) -> None:
    options = parse_options(["--out", str(tmp_path / "new")], 0.0)
    assert options is not None
    assert (options.peers, options.minutes, options.seed) == (6, 10.0, 0)
    assert options.kinds == tuple(Kind)


def test_help_is_printed_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_options(["--help"], 0.0) is None
    assert "--kinds" in capsys.readouterr().out


def test_kinds_are_taken_once_and_in_their_order(tmp_path: Path) -> None:
    options = parse_options(["--kinds", "freeze,kill,freeze", "--out", str(tmp_path / "new")], 0.0)
    assert options is not None
    assert options.kinds == (Kind.FREEZE, Kind.KILL)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peers", "2"], "--peers is 2, expected 3 to 16"),
        (["--peers", "17"], "--peers is 17"),
        (["--minutes", "0"], "--minutes is 0"),
        (["--minutes", "nan"], "--minutes is nan"),
        (["--seed", "-1"], "--seed is -1"),
        (["--kinds", "kill,maim"], "expected some of kill, freeze"),
        (["--kinds", ""], "expected some of"),
        (["--peers", "many"], "--help"),
        (["--nonsense"], "--help"),
    ],
)
def test_bad_options_end_in_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        parse_options([*arguments, "--out", str(tmp_path / "new")], 0.0)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="new or an empty folder"):
        parse_options(["--out", str(tmp_path)], 0.0)
