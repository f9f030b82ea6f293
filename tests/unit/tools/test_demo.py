"""The demo's own part: its processes, its course and its verdict, with a stand-in for the peers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from runnel.clock import SystemClock
from runnel.errors import InputFileError, NetworkError
from runnel.node.events import Event
from runnel.tools import cli_run, demo_options, demo_swarm, peer_processes
from runnel.tools.demo import Demo
from runnel.tools.demo_options import DemoOptions
from runnel.tools.demo_plan import DemoPlan
from runnel.tools.demo_swarm import Conductor, launch
from runnel.tools.live import PlainView
from runnel.tools.peer_processes import PROGRAM, PeerProcesses, environment

ROOT = Path(__file__).parents[3]
FAKE = (sys.executable, str(ROOT / "tests" / "support" / "fake_peer.py"))
MINUTES = 0.15

pytestmark = pytest.mark.swarm


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_options, "MIN_MINUTES", 0.01)
    monkeypatch.setattr(cli_run, "save_checkpoint", lambda folder, out: out)
    monkeypatch.setattr(cli_run, "sample_text", lambda folder, **_: "def sampled(): ...")


def options_in(folder: Path, **changes: object) -> DemoOptions:
    given: dict[str, object] = {"out": folder / "demo", "minutes": MINUTES, **changes}
    return DemoOptions(**given)  # type: ignore[arg-type]


def run_demo(options: DemoOptions) -> tuple[int, str]:
    said = StringIO()
    code = Demo(options, Console(file=said, width=200), program=FAKE).run()
    return code, said.getvalue()


def daemons_of(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in (folder / "demo" / "homes").glob("*/daemon.pid")]


def still_there(pids: list[int]) -> list[int]:
    def lives(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [pid for pid in pids if lives(pid)]


def until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    end = time.perf_counter() + timeout_s
    while not condition():
        assert time.perf_counter() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def kept_homes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runnel.tools.demo.tidy", lambda peers: None)


@pytest.mark.usefixtures("kept_homes")
def test_a_whole_demo_kills_one_lets_one_join_late_and_leaves_its_folder(tmp_path: Path) -> None:
    code, said = run_demo(options_in(tmp_path))
    assert code == 0, said
    out = tmp_path / "demo"
    assert "peer 2: killed" in said
    assert "Killing peer 2 cost 0 aborted rounds" in said
    assert "peer 3 joined late and was up to date" in said
    assert "All 3 replicas that reached the end (round 999) hold the same bits" in said
    assert "peer 0 sent 100 B: 80 B slice, 20 B blob" in said
    assert "peer 2 sent 70 B: 70 B slice" in said
    assert "def sampled(): ..." in said
    expected = {"run.toml", "report.html", "summary.txt", "outcome.json", "sample.txt", "journals"}
    assert expected <= {path.name for path in out.iterdir()}
    assert sorted(path.name for path in (out / "journals").iterdir()) == [
        f"peer-{number}.jsonl" for number in range(4)
    ]
    assert "Killing peer 2" in (out / "report.html").read_text()
    assert json.loads((out / "outcome.json").read_text())["ok"] is True
    assert len(daemons_of(tmp_path)) == 4
    assert still_there(daemons_of(tmp_path)) == []


def test_in_json_every_line_is_an_object_and_the_last_is_the_outcome(tmp_path: Path) -> None:
    code, said = run_demo(options_in(tmp_path, peers=2, minutes=0.05, faults=False, as_json=True))
    assert code == 0, said
    lines = [json.loads(line) for line in said.splitlines()]
    assert lines[-1]["event"] == "DemoEnded"
    assert lines[-1]["out"] == str(tmp_path / "demo")
    assert {line.get("source") for line in lines[:-1]} == {"peer 0", "peer 1"}


def test_only_the_first_home_stays_after_a_sound_demo(tmp_path: Path) -> None:
    run_demo(options_in(tmp_path, peers=2, minutes=0.05, faults=False))
    assert [path.name for path in (tmp_path / "demo" / "homes").iterdir()] == ["peer-0"]


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("differs", "The replicas DIFFER"),
        ("fails", "peer 1 ended with code 6: the disk is full"),
        ("hangs", "peer 1 still ran"),
    ],
)
def test_what_goes_wrong_fails_the_demo_and_is_told(
    mode: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PEER", mode)
    monkeypatch.setattr(demo_swarm, "GRACE_S", 0.5)
    monkeypatch.setattr(peer_processes, "LEAVE_S", 0.5)
    code, said = run_demo(options_in(tmp_path, peers=2, minutes=0.06, faults=False))
    assert code == 1
    assert "THIS DEMO FAILED" in said
    problems = said.partition("FAILED")[2]
    assert re.search(rf"- .*{told}", problems)
    assert "code -" not in problems
    assert len(daemons_of(tmp_path)) == 2
    assert still_there(daemons_of(tmp_path)) == []


def test_without_a_checkpoint_the_demo_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, out: Path) -> Path:
        raise InputFileError(f"{folder.name} holds no state")

    monkeypatch.setattr(cli_run, "save_checkpoint", refuse)
    code, said = run_demo(options_in(tmp_path, peers=2, minutes=0.05, faults=False))
    assert code == 1
    assert "no checkpoint or sample: demo-00000000 holds no state" in said


def test_a_first_peer_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PEER", "refuses")
    with pytest.raises(NetworkError, match=r"peer 0 did not start: port 1 is in use"):
        run_demo(options_in(tmp_path))


class BrokenView(PlainView):
    def feed(self, event: Event, *, source: str = "") -> None:
        raise ValueError("a broken screen")


def test_after_an_error_nothing_runs(tmp_path: Path) -> None:
    folder, clock, stop = tmp_path / "demo", SystemClock(), threading.Event()
    folder.mkdir()
    (folder / "run.toml").write_text("[end]\nminutes = 5.0\n")
    peers = PeerProcesses(folder, program=FAKE)

    def conduct() -> None:
        with peers:
            launched = launch(peers, folder / "run.toml", stop, clock)
            assert launched is not None
            plan = DemoPlan(3, 300.0, faults=False)
            conductor = Conductor(peers, plan, launched.invite, 300.0, clock)
            conductor.run(BrokenView(Console(file=StringIO())), stop)

    with pytest.raises(ValueError, match="broken"):
        conduct()
    assert peers.all
    assert peers.running() == []
    assert still_there(daemons_of(tmp_path)) == []


DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from runnel.tools import demo_options
from runnel.tools.demo import Demo
demo_options.MIN_MINUTES = 0.01
options = demo_options.DemoOptions(out=Path({out!r}), minutes=5, peers=3, faults=False)
sys.exit(Demo(options, Console(), program={program!r}).run())
"""


@pytest.fixture
def driven(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A demo in a process of its own, with the stand-ins in the mode that the test asks for."""
    source = DRIVER.format(out=str(tmp_path / "demo"), program=FAKE)
    with subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment(os.environ), "FAKE_PEER": request.param},
    ) as process:
        yield process
        process.kill()
        for pid in daemons_of(tmp_path):
            try:
                psutil.Process(pid).kill()
            except psutil.NoSuchProcess:
                continue


@pytest.mark.parametrize("driven", [""], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_all_peers_in_order_and_still_reports(
    driven: subprocess.Popen[str], number: signal.Signals, tmp_path: Path
) -> None:
    until(lambda: len(daemons_of(tmp_path)) == 3)
    driven.send_signal(number)
    said, _ = driven.communicate(timeout=60)
    assert driven.returncode == 130, said
    assert said.count("stopped: left") == 3
    assert "FAILED" not in said
    assert (tmp_path / "demo" / "report.html").exists()
    assert still_there(daemons_of(tmp_path)) == []


@pytest.mark.parametrize("driven", ["hangs"], indirect=True)
def test_the_second_ctrl_c_kills_what_does_not_leave(
    driven: subprocess.Popen[str], tmp_path: Path
) -> None:
    until(lambda: len(daemons_of(tmp_path)) == 3)
    driven.send_signal(signal.SIGINT)
    assert driven.stdout is not None
    until(lambda: "leaving in order" in driven.stdout.readline())  # type: ignore[union-attr]
    driven.send_signal(signal.SIGINT)
    driven.communicate(timeout=10)
    assert driven.returncode == 130
    until(lambda: not still_there(daemons_of(tmp_path)))


def test_peers_get_this_very_runnel_and_one_thread_each() -> None:
    given = environment({"PYTHONPATH": "/elsewhere", "OMP_NUM_THREADS": "8", "PATH": "/bin"})
    assert given["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere"]
    assert (given["OMP_NUM_THREADS"], given["PATH"]) == ("1", "/bin")
    assert PROGRAM[1:] == ("-m", "runnel")
