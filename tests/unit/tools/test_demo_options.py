"""Options of the demo: what is refused, and which run follows from the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.errors import ConfigError
from runnel.node.manifest_text import load_spec
from runnel.tools.demo import main
from runnel.tools.demo_folder import prepare
from runnel.tools.demo_options import DemoOptions, parse_model, parse_options, run_spec


def test_the_folder_is_named_after_the_time_of_day() -> None:
    options = parse_options([], 1_700_000_000.0)
    assert options is not None
    assert options.out.name.startswith("runnel-demo-202311")
    assert options.out.parent == Path.cwd()


def test_every_option_arrives(tmp_path: Path) -> None:
    text = "--peers 5 --minutes 1.5 --model small --seed 7 --text t.txt --no-faults --json --out"
    assert parse_options([*text.split(), str(tmp_path / "o")], 0) == DemoOptions(
        out=tmp_path / "o",
        peers=5,
        minutes=1.5,
        model="small",
        seed=7,
        text=Path("t.txt"),
        faults=False,
        as_json=True,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--peers", "2"], 2, "--peers is 2, expected 3 to 16"),
        (["--peers", "1", "--no-faults"], 2, "--peers is 1, expected 2 to 16"),
        (["--peers", "17"], 2, "--peers is 17"),
        (["--peers", "four"], 2, "argument --peers"),
        (["--minutes", "0.1"], 2, "--minutes is 0.1"),
        (["--minutes", "nan"], 2, "--minutes is nan"),
        (["--model", "huge"], 2, "--model is 'huge', expected one of tiny, small"),
        (["--model", "gpt:layers"], 2, "--model has 'layers'"),
        (["--model", "gpt:layers=²"], 2, "--model has"),
        (["--model", "gpt:width=33"], 2, "model.width is 33"),
        (["--seed", "-1"], 2, "--seed is -1, expected 0 to"),
        (["--text", "missing.txt"], 3, "missing.txt"),
        (["--bogus"], 2, "--bogus"),
        (["stray"], 2, "stray"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out)]) == code
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not out.exists()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(ConfigError, match="exists already"):
        DemoOptions(out=tmp_path)


def test_help_is_printed_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--no-faults" in capsys.readouterr().out


def test_a_model_is_named_or_described() -> None:
    assert parse_model("small")["layers"] == 4
    described = parse_model("gpt:layers=3,width=160,context=64")
    assert described == {"layers": 3, "heads": 4, "width": 160, "context": 64}


def test_the_run_file_says_what_was_asked_for(tmp_path: Path) -> None:
    text = tmp_path / "my text"
    text.write_bytes(bytes(range(256)) * 300)
    options = DemoOptions(out=tmp_path / "out", minutes=1, seed=3, text=text)
    run_file = prepare(options)
    spec = load_spec(run_file)
    assert spec == run_spec(options)
    assert (spec.end.minutes, spec.run.seed) == (1.0, 3)
    assert (run_file.parent / spec.data.text).read_bytes() == text.read_bytes()
