from __future__ import annotations

import json
from pathlib import Path

import pytest

from runnel.tools.cli import main
from runnel.tools.cli_plan import rate_text

TINY = ("--set", "model.width=16", "--set", "model.layers=1", "--set", "model.context=16")


@pytest.fixture
def run_toml(tmp_path: Path) -> str:
    path = tmp_path / "run.toml"
    assert main(["new", "planned", "--out", str(path)]) == 0
    return str(path)


def test_people_see_what_each_kind_of_link_is_asked_for(
    run_toml: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["plan", run_toml, *TINY, "--links", "home:3,lab:1", "--step-s", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "planned: 7,216 parameters in 4 fragments, 4 peers" in said
    assert "a round every 10 steps (5 s at 0.5 s a step)" in said
    rows = [line.split() for line in said.splitlines() if line.startswith(("home", "lab"))]
    assert [row[:2] for row in rows] == [["home", "3"], ["lab", "1"]]
    assert all("all" in row for row in rows)


def test_what_a_codec_that_measures_first_may_take_is_said_so(
    run_toml: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    codec = ("--set", "outer.codec=l-greco+int4", "--step-s", "0.5")
    assert main(["plan", run_toml, *TINY, *codec]) == 0
    line = next(each for each in capsys.readouterr().out.splitlines() if "a round:" in each)
    assert line.startswith("a round: share up to ")
    assert " B (l-greco+int4), results " in line
    assert "about" not in line
    assert main(["plan", run_toml, *TINY, *codec, "--set", "outer.result_codec=l-greco+int4"]) == 0
    assert "results about " in capsys.readouterr().out


def test_a_budget_is_settled_first_and_bits_by_layer_are_said_with_what_to_expect(
    run_toml: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    auto = ("--set", "outer.codec=auto", "--set", "outer.budget=1/150 of data parallel for 4 peers")
    size = ("--set", "model.width=128", "--set", "model.layers=3")
    assert main(["plan", run_toml, *auto, *size, "--step-s", "9"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert "l-greco+e3m0 for contributions, e3m0 for results" in first
    assert "bits are by layer, more where the model changes more" in first
    line = next(each for each in lines if "a round:" in each)
    assert "share up to " in line
    assert "(l-greco+e3m0, expected " in line
    assert "(e3m0), control" in line


def test_an_authors_model_is_planned_as_its_program_settles_it(
    run_toml: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    auto = ("--set", "outer.codec=auto", "--set", "model.kind=custom", "--set")
    model = ("--parameters", "10000000", "--step-s", "9")
    assert main(["plan", run_toml, *model, *auto, "outer.budget=1/150 of data parallel"]) == 0
    assert "same bits, as the speed of this model is not known" in capsys.readouterr().out
    assert main(["plan", run_toml, *model, *auto, "outer.budget=200 kbit/s"]) == 0
    assert "bits are by layer" in capsys.readouterr().out


def test_a_model_that_fits_no_memory_is_planned_if_its_step_is_known(
    run_toml: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    huge = ("layers=100", "width=65536", "heads=2")
    sets = [part for each in huge for part in ("--set", f"model.{each}")]
    assert main(["plan", run_toml, *sets, "--step-s", "1"]) == 0
    assert "5,153,990,705,152 parameters in 4 fragments" in capsys.readouterr().out
    assert main(["plan", run_toml, *sets]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "takes over 82.5 TB of memory" in line
    assert "give --step-s SECONDS" in line


def test_programs_get_one_object(run_toml: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["plan", run_toml, *TINY, "--json"]) == 0  # measures a step
    facts = json.loads(capsys.readouterr().out)
    assert facts["members"] == facts["links"][0]["peers"] == 4
    assert facts["step_s"] > 0
    assert facts["links"][0]["name"] == "home"


def test_an_authors_model_is_described_by_its_size_and_speed(
    run_toml: str, capsys: pytest.CaptureFixture[str]
) -> None:
    custom = ["plan", run_toml, "--set", "model.kind=custom"]
    assert main(custom) == 2
    assert "--parameters N and --step-s SECONDS" in capsys.readouterr().err
    given = [*custom, "--parameters", "10500000", "--step-s", "0.1", "--links", "2/20:4"]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "10,500,000 parameters" in said
    assert "2/20 is too slow for whole shares" in said
    assert main(["plan", run_toml, "--parameters", "5"]) == 2


def test_links_nobody_can_read_end_in_one_line(
    run_toml: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["plan", run_toml, "--links", "moon:3"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "runnel: --links has 'moon:3', expected KIND:PEERS with a kind of phone, home, fiber, lab or"
        " UP/DOWN in Mbit/s"
    ]


@pytest.mark.parametrize(
    ("bits_s", "text"),
    [
        (0, "0 bit/s"),
        (999, "999 bit/s"),
        (4_100, "4.1 kbit/s"),
        (2e7, "20 Mbit/s"),
        (1e9, "1 Gbit/s"),
    ],
)
def test_rates_are_told_in_fitting_units(bits_s: float, text: str) -> None:
    assert rate_text(bits_s) == text
