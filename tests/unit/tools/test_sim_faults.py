"""Faults as data: in code, in a file, from a seed; what is refused, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.errors import ConfigError, InputFileError
from runnel.tools.sim_faults import (
    Crash,
    Faults,
    Freeze,
    Partition,
    Restart,
    Slow,
    Weather,
    draw_faults,
    read_faults,
)

WEATHER = Weather(churn=20.0, freeze=10.0, slow=0.25, partition=2)


def written(folder: Path, text: str) -> Path:
    path = folder / "faults.toml"
    path.write_text(text)
    return path


def test_a_list_of_faults_is_the_file_that_it_writes(tmp_path: Path) -> None:
    faults = (
        Faults()
        .at(round=3, peer=2, do=Crash(after_bytes=10_000))
        .at(second=40.5, peer=2, do=Restart())
        .at(second=0, peer=1, do=Slow(factor=4.0))
        .at(second=90, do=Partition(peers=(0, 3), lasts_s=20.0))
    )
    assert read_faults(written(tmp_path, faults.to_toml())) == faults


def test_drawn_faults_are_those_of_their_seed_and_survive_a_file(tmp_path: Path) -> None:
    first, again, other = (draw_faults(seed, WEATHER, peers=8, lasts_s=600.0) for seed in (1, 1, 2))
    assert first == again != other
    assert read_faults(written(tmp_path, first.to_toml())) == first
    first.check(8)


def test_who_goes_in_a_drawn_simulation_is_back_before_its_end() -> None:
    for seed in range(20):
        away: dict[int, str] = {}
        for fault in draw_faults(seed, WEATHER, peers=8, lasts_s=600.0).all:
            word = type(fault.do).__name__
            if word in {"Crash", "Leave"}:
                assert fault.peer not in away
                away[fault.peer] = word
            elif word in {"Restart", "Join"}:
                assert away.pop(fault.peer) == {"Restart": "Crash", "Join": "Leave"}[word]
            lasts_s = fault.do.lasts_s if isinstance(fault.do, Freeze | Partition) else 0.0
            assert fault.second is not None
            assert fault.second + lasts_s <= 570.1
        assert not away


def test_no_weather_draws_nothing() -> None:
    assert draw_faults(3, Weather(), peers=64, lasts_s=3600.0).all == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected tables [[fault]]"),
        ("[faults]\n", "'faults', expected tables"),
        ("fault = 3\n", "expected tables"),
        ("[[fault]]\npeer = 1\nsecond = 2\n", "fault 1: do is None, expected one of crash"),
        ('[[fault]]\ndo = "maim"\n', "do is 'maim'"),
        ('[[fault]]\ndo = "crash"\npeer = 1\n', "either second or round"),
        ('[[fault]]\ndo = "crash"\npeer = 1\nsecond = 1\nround = 1\n', "either second or round"),
        ('[[fault]]\ndo = "crash"\nsecond = 1\n', "needs its number"),
        ('[[fault]]\ndo = "partition"\npeer = 1\nsecond = 1\n', "a partition none"),
        ('[[fault]]\ndo = "crash"\npeer = 1\nsecond = -1\n', "second is -1"),
        ('[[fault]]\ndo = "crash"\npeer = 1\nsecond = nan\n', "second is nan"),
        ('[[fault]]\ndo = "crash"\npeer = 1.5\nsecond = 1\n', "peer is 1.5"),
        ('[[fault]]\ndo = "crash"\npeer = 1\nround = true\n', "round is True"),
        ('[[fault]]\ndo = "crash"\npeer = 1\nsecond = 1\nlasts_s = 3\n', "lasts_s is unknown"),
        ('[[fault]]\ndo = "slow"\npeer = 1\nsecond = 1\nfactor = 0\n', "factor is 0"),
        ('[[fault]]\ndo = "lossy"\npeer = 1\nsecond = 1\nloss = 2\n', "loss is 2"),
        ('[[fault]]\ndo = "partition"\nsecond = 1\npeers = []\n', "a list of peers"),
        ("[[fault]\n", "faults.toml: "),
    ],
)
def test_a_file_that_holds_something_else_is_refused_in_one_line(
    text: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        read_faults(written(tmp_path, text))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="cannot be read"):
        read_faults(tmp_path / "none.toml")


def test_a_peer_that_does_not_take_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="peer 8, expected 0 to 7"):
        Faults().at(second=1, peer=8, do=Crash()).check(8)
    with pytest.raises(ConfigError, match="peer 9, expected 0 to 7"):
        Faults().at(second=1, do=Partition(peers=(1, 9))).check(8)
