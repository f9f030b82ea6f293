"""Two daemons behind two routers and one that both can reach. Needs root, on Linux."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.namespaces import Host, Namespaces, why_not
from runnel.dht.identity import to_base58
from runnel.types import PeerId

pytestmark = [
    pytest.mark.swarm,
    pytest.mark.timeout(150),
    pytest.mark.skipif(bool(why_not()), reason=f"no network namespaces: {why_not()}"),
]
ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


class Node:
    """A program `tests.support.middle_program` on a machine."""

    def __init__(self, host: Host, folder: Path, address: str) -> None:
        command = [sys.executable, "-m", "tests.support.middle_program"]
        folder.mkdir()
        self._process = host.popen(
            [*command, str(folder), host.address, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        first = self._lines.get(timeout=PATIENCE_S)
        self.name: str = first["peer"]
        self.address = f"{first['address']}/p2p/{to_base58(PeerId(bytes.fromhex(self.name)))}"
        self.facts: dict[str, Any] = {"ways": {}}

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))

    def take(self) -> None:
        """The next thing it says."""
        self.facts |= self._lines.get(timeout=PATIENCE_S)

    def talk_to(self, other: Node) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{other.name}\n".encode())
        self._process.stdin.flush()

    def wait_for_way(self, other: Node, expected: str, *, within_s: float = PATIENCE_S) -> None:
        until = time.perf_counter() + within_s
        while self.facts["ways"].get(other.name) != expected:
            try:
                self.facts |= self._lines.get(timeout=max(0.0, until - time.perf_counter()))
            except queue.Empty:
                raise AssertionError(
                    f"not {expected} within {within_s:g} s: {self.facts}"
                ) from None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def three(folder: Path, *, random: bool) -> Iterator[tuple[Node, Node, Node]]:
    """A public one, and two behind routers of their own, of which the first talks to the second."""
    with Namespaces("punch") as net:
        net.router("leftrouter")
        net.router("rightrouter", random=random)
        public = Node(net.host("public"), folder / "public", "")
        nodes = [public]
        try:
            for name in ("left", "right"):
                host = net.host(name, behind=f"{name}router")
                nodes.append(Node(host, folder / name, public.address))
            nodes[1].talk_to(nodes[2])
            yield nodes[0], nodes[1], nodes[2]
        finally:
            for node in nodes:
                node.end()


def test_two_behind_routers_meet_and_need_nobody_in_the_middle(tmp_path: Path) -> None:
    with three(tmp_path, random=False) as (public, left, right):
        left.wait_for_way(right, public.name)
        left.wait_for_way(right, "directly")
        right.wait_for_way(left, "directly")
        public.end()
        echoes = left.facts.get("echoes", 0)
        while left.facts.get("echoes", 0) < echoes + 5:
            left.take()
        assert left.facts["ways"][right.name] == "directly"


@pytest.mark.slow
def test_behind_a_router_with_random_ports_the_middle_goes_on_to_carry(tmp_path: Path) -> None:
    with three(tmp_path, random=True) as (public, left, right):
        left.wait_for_way(right, public.name)
        while left.facts.get("echoes", 0) < 25:  # an attempt or two, and talk in between
            left.take()
        assert left.facts["ways"][right.name] == public.name
