"""Machines in namespaces: what they promise to tests and benchmarks. Needs root, on Linux."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.namespaces import Namespaces, named, why_not

pytestmark = [
    pytest.mark.swarm,
    pytest.mark.skipif(bool(why_not()), reason=f"no network namespaces: {why_not()}"),
]


def test_namespaces_go_with_their_processes_also_after_a_failure() -> None:
    def fail() -> None:
        with Namespaces("fails") as made:
            host = made.host("a", rate_mbit=5, behind="router")
            host.popen(["sleep", "600"])
            assert len(named("fails")) == 3
            raise LookupError("on purpose")

    with pytest.raises(LookupError):
        fail()
    assert named("fails") == []


def test_what_a_dead_process_left_is_removed_by_the_next_one() -> None:
    program = (
        "import os\nfrom benchmarks.namespaces import Namespaces\nNamespaces('left')\nos._exit(1)"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[2], env=os.environ
    )
    assert named("left")
    with Namespaces("left"):
        assert len(named("left")) == 1
    assert named("left") == []


def test_a_link_has_the_rate_it_was_given_and_a_router_lets_nobody_in() -> None:
    with Namespaces("rates") as net:
        fast, slow = net.host("fast"), net.host("slow", rate_mbit=16, behind="router")
        size = 2_000_000
        taker = fast.popen([sys.executable, "-c", TAKE, str(size)])
        slow.run([sys.executable, "-c", SEND, fast.address, str(size)])
        assert taker.wait(30) == 0
        assert slow.link_bytes().sent >= size
        waiting = slow.popen([sys.executable, "-c", TAKE, "1"])
        refused = fast.run([sys.executable, "-c", TRY, slow.outside])
        waiting.kill()
        waiting.wait()
        assert refused.strip() == "TimeoutError"


TAKE = """
import socket, sys
listener = socket.create_server(("0.0.0.0", 5000))
stream, _ = listener.accept()
left = int(sys.argv[1])
while left > 0 and (data := stream.recv(1 << 16)):
    left -= len(data)
sys.exit(left > 0)
"""
SEND = """
import socket, sys, time
until = time.monotonic() + 20
while True:
    try:
        stream = socket.create_connection((sys.argv[1], 5000), 5)
        break
    except ConnectionRefusedError:
        assert time.monotonic() < until
        time.sleep(0.05)
stream.sendall(bytes(int(sys.argv[2])))
stream.close()
"""
TRY = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 5000), 2)
except OSError as error:
    print(type(error).__name__)
"""
