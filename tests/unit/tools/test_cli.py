"""The command line: what it passes on, what it says, how it exits, and how little it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import runnel
from runnel.dht.identity import Identity
from runnel.errors import BugError, ConfigError, NetworkError, PeerError, StorageError
from runnel.hashing import digest
from runnel.node.config import LaunchPlan
from runnel.node.events import InnerProgress
from runnel.node.invite import Invite
from runnel.node.manifest_text import load_spec
from runnel.tools import cli_run
from runnel.tools.cli import app, main
from runnel.tools.cli_errors import exit_code_of

OWNER = Identity.generate()
ROOT = Path(runnel.__file__).parents[1]
FUTURE, PAST = 2**32 - 1, 1_700_000_000


def invite_text(expires_unix_s: int = FUTURE) -> str:
    from runnel.dht.identity import to_base58

    address = f"/ip4/203.0.113.1/tcp/4001/p2p/{to_base58(OWNER.peer_id)}"
    return str(Invite.issue(OWNER, digest(b"run"), [address], expires_unix_s=expires_unix_s))


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNEL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RUNNEL_DEBUG", raising=False)
    monkeypatch.delenv("RUNNEL_LOG", raising=False)
    monkeypatch.setenv("RUNNEL_NETWORK", "auto")


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[LaunchPlan]:
    """What the commands would start."""
    seen: list[LaunchPlan] = []
    monkeypatch.setattr(cli_run, "run", seen.append)
    return seen


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[str]]:
    code = main(argv)
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err.splitlines()


# --- what it costs and shows -------------------------------------------------------------------


def test_help_is_cheap_and_loads_nothing_heavy() -> None:
    program = """
import sys, time
from runnel.tools.cli import main
code = main(["--help"])
heavy = {"torch", "numpy", "hivemind", "numba", "uvloop", "cryptography"} & set(sys.modules)
print(code, sorted(heavy), time.process_time())
"""
    cpu_s = []
    for _ in range(3):  # the least of three: other processes only ever add to it
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd=ROOT,
        )
        assert "launch" in done.stdout
        code, heavy, seconds = done.stdout.splitlines()[-1].split()
        assert (code, heavy) == ("0", "[]")
        cpu_s.append(float(seconds))
        if min(cpu_s) < 0.4:
            break
    assert min(cpu_s) < 0.4


@pytest.mark.parametrize("command", ["new", "launch", "join", "status", "checkpoint", "sample"])
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "--home" in result.output or command == "new"


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "launch" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"runnel {runnel.__version__}\n"


# --- new ---------------------------------------------------------------------------------------


def test_new_writes_a_file_that_launch_takes(plans: list[LaunchPlan]) -> None:
    assert main(["new", "demo", "--set", "outer.lr=0.5"]) == 0
    assert load_spec(Path("run.toml")).outer.lr == 0.5
    assert main(["launch", "run.toml", "--set", "end.rounds=3", "--port", "4001"]) == 0
    [plan] = plans
    assert plan.spec is not None
    assert (plan.spec.run.name, plan.spec.end.rounds) == ("demo", 3)
    assert plan.machine.listen_port == 4001


def test_new_knows_the_methods(plans: list[LaunchPlan], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "tune", "--method", "ferret", "--set", "seeds.lr=0.05"]) == 0
    assert main(["launch", "run.toml", "--base", "weights"]) == 0
    (plan,) = plans
    assert plan.base == Path("weights")
    assert plan.spec is not None
    assert (plan.spec.seeds.method, plan.spec.seeds.lr) == ("ferret", 0.05)
    assert (plan.spec.num_fragments, plan.spec.open_rounds) == (1, 1)
    assert plan.spec.rounds.snapshot_every == 64
    capsys.readouterr()
    code, lines = failure(capsys, "new", "other", "--method", "off", "--out", "other.toml")
    assert code == 2
    assert lines == ["runnel: --method off is none, expected streaming, spsa, fedkseed, ferret"]
    assert not Path("other.toml").exists()


def test_new_does_not_replace_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.toml").write_text("mine")
    code, lines = failure(capsys, "new", "demo")
    assert (code, len(lines)) == (2, 1)
    assert "run.toml exists" in lines[0]
    assert Path("run.toml").read_text() == "mine"


@pytest.mark.parametrize("argv", [["new", "Demo"], ["new", "demo", "--set", "outer.lr=7000"]])
def test_new_writes_nothing_for_a_wrong_value(
    argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, lines = failure(capsys, *argv)
    assert (code, len(lines)) == (2, 1)
    assert list(tmp_path.iterdir()) == []


# --- launch and join ---------------------------------------------------------------------------


def test_launch_names_each_wrong_field_on_its_line(
    capsys: pytest.CaptureFixture[str], plans: list[LaunchPlan], tmp_path: Path
) -> None:
    Path("run.toml").write_text('[run]\nname = "demo"\n[outer]\nlr = 7000\ncodec = "e4"\n')
    code, lines = failure(capsys, "launch", "run.toml")
    assert code == 2
    assert [line.split(",")[0] for line in lines] == [
        "runnel: run.toml: outer.lr is 7000",
        'runnel: run.toml: outer.codec is "e4"',
    ]
    assert plans == []
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["launch", "none.toml"], 3, "none.toml does not exist"),
        (["launch", "."], 3, "cannot be read"),
        (["launch"], 2, "Missing argument"),
        (["launch", "run.toml", "--port", "65536"], 2, "--port"),
        (["launch", "run.toml", "--prot", "1"], 2, "--prot"),
        (["lunch", "run.toml"], 2, "lunch"),
        (["join", "hello"], 2, "'hello' is not an invite"),
        (["join", "runnel:AAAA"], 2, "this invite"),
        (["join", invite_text()[:100]], 2, "cut short: 100 of"),
        (["join", invite_text(PAST)], 2, "expired"),
        (["join", invite_text(), "--threads", "0"], 2, "--threads"),
        (["join", invite_text(), "--host", "here"], 2, "host is 'here'"),
        (["join", invite_text(), "--announce", "here"], 2, "announced address is 'here'"),
        (["status"], 3, "no run under"),
        (["sample", "--tokens", "0"], 2, "--tokens"),
        (["checkpoint"], 3, "no run under"),
        (["apply", "base", "."], 3, ". cannot be read (is a directory): name a log of seeds"),
    ],
)
def test_bad_input_ends_in_one_line_and_its_exit_code(
    argv: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    plans: list[LaunchPlan],
    tmp_path: Path,
) -> None:
    seen, lines = failure(capsys, *argv)
    assert (seen, len(lines)) == (code, 1), lines
    assert lines[0].startswith("runnel: ")
    assert said in lines[0]
    assert plans == []
    assert list(tmp_path.iterdir()) == []


def test_the_network_is_that_of_the_command_line_or_the_environment(
    plans: list[LaunchPlan], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["join", invite_text()]) == 0
    assert main(["--network", "libp2p", "join", invite_text()]) == 0
    monkeypatch.setenv("RUNNEL_NETWORK", "daemon")
    assert main(["join", invite_text()]) == 0
    assert [plan.machine.network for plan in plans] == ["auto", "libp2p", "daemon"]
    code, lines = failure(capsys, "--network", "quic", "join", invite_text())
    assert code == ConfigError.exit_code
    assert len(lines) == 1
    assert "expected one of auto, daemon, libp2p" in lines[0]


def test_join_passes_the_invite_and_the_machine_on(plans: list[LaunchPlan], tmp_path: Path) -> None:
    text = invite_text()
    argv = ["join", text, "--home", "there", "--threads", "2", "--host", "127.0.0.1"]
    assert main([*argv, "--announce", "/ip4/203.0.113.9/tcp/4001"]) == 0
    [plan] = plans
    assert str(plan.invite) == text
    assert plan.machine.home == tmp_path / "there"
    assert plan.machine.codec_threads == 2
    assert plan.machine.listen_host == "127.0.0.1"
    assert plan.machine.announce == ("/ip4/203.0.113.9/tcp/4001",)


def test_a_home_that_cannot_be_written_to_is_found_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("home").write_text("")
    code, lines = failure(capsys, "join", invite_text())
    assert (code, len(lines)) == (6, 1)
    assert f"{tmp_path / 'home'} cannot be written to" in lines[0]


def test_a_run_shows_the_invite_and_the_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    way = object()

    def run_peer(
        plan: LaunchPlan, there: object, *, stop: Any, on_event: Any, on_invite: Any
    ) -> str:
        assert there is way
        assert not stop.is_set()
        on_invite("runnel:abc")
        on_event(
            InnerProgress(unix_s=0.0, step=1, round=0, loss=2.5, tokens=8, tokens_per_s=4.0, lr=0.1)
        )
        return "trained 8 tokens"

    fake = SimpleNamespace(run_peer=run_peer)
    monkeypatch.setitem(sys.modules, "runnel.node.volunteer", fake)
    monkeypatch.setattr("runnel.node.approach.approach", lambda plan, stop, meanwhile: way)
    assert main(["join", invite_text()]) == 0
    out = capsys.readouterr().out
    assert "runnel join runnel:abc" in out
    assert out.endswith("trained 8 tokens\n")


# --- status, checkpoint, sample ----------------------------------------------------------------


def write_status(folder: Path, **changes: object) -> dict[str, object]:
    status: dict[str, object] = {
        "run": "demo", "run_id": "ab" * 32, "peer": "0011223344", "round": 7,
        "members": ["00112233", "44556677"], "loss": 2.5, "tokens": 81920, "sent_bytes": 312044,
        "received_bytes": 1000, "state": "training", "updated_unix_s": 1.0, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps(status))
    return status


def test_status_as_json_is_what_the_peers_wrote_and_whether_they_still_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old = write_status(tmp_path / "home/runs/demo-abababab")
    new = write_status(
        tmp_path / "home/peers/2/runs/demo-abababab", peer="44", updated_unix_s=FUTURE
    )
    over = write_status(
        tmp_path / "home/peers/3/runs/demo-abababab", state="left", updated_unix_s=0.5
    )
    assert main(["status", "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said == [{**new, "silent": False}, {**old, "silent": True}, {**over, "silent": False}]


def test_status_for_people_shows_peers_rounds_loss_and_bytes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_status(tmp_path / "home/runs/demo-abababab")
    assert main(["status"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["run", "peer", "state", "round"]
    for word in ("demo", "00112233", "silent (training)", "7", "2", "2.5000", "81,920", "312 kB"):
        assert word in line


def test_sample_and_checkpoint_get_the_folder_of_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "home/runs/demo-abababab"
    write_status(folder)

    def sample_text(run: Path, *, prompt: str, tokens: int, seed: int) -> str:
        return f"{run} {prompt} {tokens} {seed}"

    def save_checkpoint(run: Path, out: Path) -> Path:
        assert run == folder
        return out

    monkeypatch.setattr(cli_run, "sample_text", sample_text)
    monkeypatch.setattr(cli_run, "save_checkpoint", save_checkpoint)
    assert main(["sample", "--prompt", "Once", "--tokens", "5", "--seed", "3"]) == 0
    assert main(["checkpoint", "demo"]) == 0
    assert main(["checkpoint", "abab", "--out", "here"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{folder} Once 5 3",
        "wrote demo-checkpoint",
        "wrote here",
    ]


def test_new_needs_the_name_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    code, [line] = failure(capsys, "new", "a", "--out", "")
    assert code == 2
    assert "expected the path of a file to write" in line


@pytest.mark.parametrize("name", ["manifest.json", "latest"])
def test_sample_takes_a_folder_that_checkpoint_wrote(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / "demo-checkpoint").mkdir()
    (tmp_path / "demo-checkpoint" / name).touch()
    monkeypatch.setattr(cli_run, "sample_text", lambda folder, **_: f"from {folder.name}")
    assert main(["sample", str(tmp_path / "demo-checkpoint")]) == 0
    assert capsys.readouterr().out == "from demo-checkpoint\n"


def test_sample_of_what_is_no_checkpoint_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "tuned.safetensors").touch()
    for others in (False, True):
        for given, kind in (("empty", "folder without a run"), ("tuned.safetensors", "file")):
            code, [line] = failure(capsys, "sample", given)
            assert code == 3
            assert f"{given} is a {kind}, expected the name or folder of a run, or" in line
            assert "`runnel checkpoint` wrote" in line
        if not others:
            write_status(tmp_path / "home/runs/demo-abababab")
    code, [line] = failure(capsys, "status", "empty")
    assert (code, "empty is a folder without a run" in line) == (3, True)


def test_of_several_runs_one_must_be_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_status(tmp_path / "home/runs/demo-abababab")
    write_status(tmp_path / "home/runs/other-cdcdcdcd", run="other", run_id="cd" * 32)
    code, [line] = failure(capsys, "sample")
    assert code == 2
    assert "demo-abababab" in line
    assert "other-cdcdcdcd" in line
    code, [line] = failure(capsys, "sample", "third")
    assert code == 3
    assert "expected one of demo, other" in line


# --- demo --------------------------------------------------------------------------------------


def test_the_demo_gets_its_own_options_and_gives_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Sequence[str]] = []

    def run_demo(argv: Sequence[str]) -> int:
        seen.append(argv)
        return 5

    monkeypatch.setitem(sys.modules, "runnel.tools.demo", SimpleNamespace(main=run_demo))
    assert main(["demo", "--peers", "2", "--no-faults", "--help"]) == 5
    assert seen == [["--peers", "2", "--no-faults", "--help"]]


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("a is 1\nb is 2"), 2, ["runnel: a is 1", "runnel: b is 2"]),
        (NetworkError("port 4001 is in use"), 4, ["runnel: port 4001 is in use"]),
        (StorageError("disk"), 6, ["runnel: disk"]),
        (BugError("odd"), 70, ["runnel: odd"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_an_error_has_its_lines_and_its_code(
    error: BaseException, code: int, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert exit_code_of(fail) == code
    assert capsys.readouterr().err.splitlines() == said


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), PeerError("malformed", "x")])
def test_what_should_not_happen_is_one_line_too(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    assert exit_code_of(fail) == 70
    [line] = capsys.readouterr().err.splitlines()
    assert "please report it" in line
    monkeypatch.setenv("RUNNEL_DEBUG", "1")
    assert exit_code_of(fail) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_anywhere_is_a_storage_error(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device", "/x/y")

    assert exit_code_of(fail) == 6
    assert "/x/y: no space left on device" in capsys.readouterr().err
