"""The first signal asks the peer to leave, the second one ends the process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import runnel
from runnel.tools.cli_signals import stop_on_signals

PROGRAM = """
import signal
import threading
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a suite under nohup hands on that it is ignored
from runnel.tools.cli_signals import stop_on_signals
stop = threading.Event()
with stop_on_signals(stop):
    print("ready", flush=True)
    while not stop.wait(0.05):
        pass
    print("leaving", flush=True)
    {then}
print("left", flush=True)
"""


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(then=request.param)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(runnel.__file__).parents[1],
    )
    with child:
        yield child
        child.kill()


@pytest.mark.parametrize("process", ["pass"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_leaves_in_order(
    process: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert out == "leaving\nleft\n"
    assert "leaving in order" in err
    assert process.returncode == 0


@pytest.mark.parametrize(
    "process", ["threading.Event().wait()"], indirect=True, ids=["stuck while leaving"]
)
def test_the_second_signal_exits_at_once(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "leaving\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""


def test_the_handlers_before_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals(threading.Event()):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals(threading.Event()):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
