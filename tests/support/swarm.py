"""Real peers on the loopback, for tests: each a process of its own that can be killed, frozen and restarted.

What a peer does is read from its journal. Waiting is always for a condition, with a deadline that
only a broken swarm reaches; a wait that fails says what the peers said last.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.namespaces import Host
from runnel.dht.identity import Identity
from runnel.types import short

ROOT = Path(__file__).parents[2]
PATIENCE_S = 90.0
"""Long enough for a machine with other things to do; a healthy swarm needs a tenth of it."""
PROGRAM = Path(__file__).with_name("peer_program.py")

TINY = (
    "model.layers=1",
    "model.heads=2",
    "model.width=32",
    "model.context=32",
    "data.batch_size=2",
    "data.chunk_bytes=4096",
    "outer.every_steps=16",
    "outer.wait_s=5",
    "rounds.deadline_ceiling_s=6",
    "rounds.stall_s=6",
    "rounds.snapshot_every=8",
)
"""A model of some thousand values, and deadlines for the loopback. Trainers wait, so that the
processors are free for those who start."""

Facts = dict[str, Any]
Condition = Callable[[], Any]


def wait_until(
    condition: Condition, what: Callable[[], str], *, within_s: float = PATIENCE_S
) -> Any:
    """The first true value of `condition`; AssertionError with `what()` if there is none in time."""
    until = time.perf_counter() + within_s
    while True:
        found = condition()
        if found:
            return found
        if time.perf_counter() > until:
            raise AssertionError(f"not within {within_s:g} s: {what()}")
        time.sleep(0.05)


class Journal:
    """A peer's journal, of which each line is read once: whoever waits looks many times a second."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._facts: list[Facts] = []

    def read(self) -> list[Facts]:
        """All that is in it by now, but for the line that is being written."""
        with self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._offset:  # another file took its place
                self._offset, self._facts = 0, []
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                self._facts.append(json.loads(line))
        return self._facts


class PeerProcess:
    """One peer: its home, its process (the newest, if it was restarted) and its journal."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        host: Host | None = None,
        interpreter: str = sys.executable,
    ) -> None:
        """`host` is the machine it runs on; None is this one."""
        self.folder, self.home, self.host = folder, folder / "home", host
        self.arguments = [interpreter, *arguments]
        self.process: subprocess.Popen[bytes] | None = None
        self._journals: dict[Path, Journal] = {}
        folder.mkdir(parents=True, exist_ok=True)

    # -- life

    def start(self) -> None:
        """Starts it, or starts it again on the same home."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RUNNEL_HOME": str(self.home),
            "RUNNEL_DEBUG": "1",
            "PYTHONWARNINGS": "ignore",
        }
        popen = subprocess.Popen if self.host is None else self.host.popen
        with self.out.open("ab") as out, self.err.open("ab") as err:
            self.process = popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                cwd=self.folder.parent,
            )

    def kill(self) -> None:
        """SIGKILL: no goodbye, no clean-up."""
        self._signal(signal.SIGKILL)
        self._running().wait(PATIENCE_S)

    def freeze(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._signal(signal.SIGINT)

    def exit_code(self, *, within_s: float = PATIENCE_S) -> int:
        """Waits for the end of the process."""
        process = self._running()
        wait_until(
            lambda: process.poll() is not None,
            lambda: f"{self.folder.name} ends; it said last:\n{self.said()}",
            within_s=within_s,
        )
        return process.returncode

    def end(self) -> None:
        """Kills it if it runs, and what it left."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "not started"
        return self.process

    def _signal(self, number: int) -> None:
        assert self.is_running, f"{self.folder.name} has ended; it said last:\n{self.said()}"
        self._running().send_signal(number)

    # -- what it says

    @property
    def out(self) -> Path:
        """Its standard output, of all its processes."""
        return self.folder / "out.txt"

    @property
    def err(self) -> Path:
        """Its standard error, of all its processes."""
        return self.folder / "err.txt"

    @property
    def name(self) -> str:
        """How journals call it; waits until it has a key."""
        key = self.home / "identity.key"
        wait_until(
            key.exists, lambda: f"{self.folder.name} has a key; it said last:\n{self.said()}"
        )
        return short(Identity.load(key).peer_id)

    @property
    def run_folder(self) -> Path:
        """Where its state is."""
        found: Path = wait_until(
            lambda: next(iter((self.home / "runs").glob("*")), None),
            lambda: f"{self.folder.name} has a run; it said last:\n{self.said()}",
        )
        return found

    def said(self, lines: int = 12) -> str:
        """The end of its standard error."""
        text = self.err.read_text(errors="replace") if self.err.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def events(self, kind: str = "", *, since: int = 0) -> list[Facts]:
        """What its journal holds, from line `since` on; only events of one `kind`, if given."""
        found = []
        for path in (self.home / "runs").glob("*/journal.jsonl"):
            found += self._journals.setdefault(path, Journal(path)).read()[since:]
        return [fact for fact in found if not kind or fact["event"] == kind]

    def mark(self) -> int:
        """Where its journal ends now, for `events(since=...)`."""
        return len(self.events())

    def status(self) -> Facts:
        """What its status file says; nothing while there is none."""
        for path in (self.home / "runs").glob("*/status.json"):
            return dict(json.loads(path.read_text()))
        return {}

    def wait_for(
        self,
        kind: str,
        where: Callable[[Facts], Any] = lambda _: True,
        *,
        since: int = 0,
        within_s: float = PATIENCE_S,
    ) -> Facts:
        """The first event of a kind that fits, from line `since` of its journal on."""

        def look() -> Facts | None:
            found = next((f for f in self.events(kind, since=since) if where(f)), None)
            if found is None and not self.is_running:
                raise AssertionError(
                    f"{self.folder.name} ended without {kind}; it said last:\n{self.said()}"
                )
            return found

        fact: Facts = wait_until(
            look,
            lambda: f"{self.folder.name} notes {kind}; it said last:\n{self.said()}",
            within_s=within_s,
        )
        return fact

    def decided(self, *, since: int = 0) -> dict[int, Facts]:
        """The newest outcome of each round that this peer has followed."""
        return {fact["round"]: fact for fact in self.events("RoundDecided", since=since)}

    @property
    def round(self) -> int:
        """The newest decided round in its journal; -1 before the first."""
        return max(self.decided(), default=-1)

    def wait_for_rounds(self, count: int, *, within_s: float = PATIENCE_S) -> None:
        """Waits until so many more rounds are decided."""
        last = self.round + count
        self.wait_for("RoundDecided", lambda f: f["round"] >= last, within_s=within_s)

    def wait_for_contribution_of(
        self, peer: PeerProcess, *, since: int = 0, within_s: float = PATIENCE_S
    ) -> Facts:
        """The first decided round with a contribution of `peer` in it."""
        name = peer.name

        def includes(fact: Facts) -> bool:
            assert peer.is_running, f"{peer.folder.name} ended; it said last:\n{peer.said()}"
            return name in fact["contributors"]

        return self.wait_for("RoundDecided", includes, since=since, within_s=within_s)


class Swarm:
    """Peers of one run in one folder; all of them, and their daemons, are gone when it is closed."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        self.settings = (*TINY, *settings)
        self.peers: list[PeerProcess] = []

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def launch(
        self,
        name: str = "owner",
        *options: str,
        without_daemon: str | None = None,
        host: Host | None = None,
    ) -> PeerProcess:
        """The run's first peer, by the command line; see `join` for what is special."""
        text = self.folder / "text.txt"
        write_text(text)
        wanted = [f"data.text={text}", *self.settings]
        sets = [part for setting in wanted for part in ("--set", setting)]
        file = self.folder / "run.toml"
        file.write_text('[run]\nname = "tiny"\n')
        words = ("launch", str(file), *sets, *_listening(host), *options)
        return self._command(name, words, without_daemon, host)

    def join(
        self,
        name: str,
        invite: str,
        *options: str,
        without_daemon: str | None = None,
        host: Host | None = None,
    ) -> PeerProcess:
        """Another peer, by the command line.

        Args:
            name: of its folder.
            invite: as `invite_of` gives it.
            options: what else stands on the command line.
            without_daemon: the interpreter of a peer that uses libp2p for Python.
            host: the machine it runs on; None is this one.
        """
        words = ("join", invite, *_listening(host), *options)
        return self._command(name, words, without_daemon, host)

    def _command(
        self, name: str, words: Sequence[str], without_daemon: str | None, host: Host | None
    ) -> PeerProcess:
        network = "daemon" if without_daemon is None else "libp2p"
        arguments = ("-m", "runnel", "--network", network, *words)
        return self._started(name, arguments, host, without_daemon or sys.executable)

    def author(self, name: str, invite: str = "") -> PeerProcess:
        """A peer that runs an author's own loop; see peer_program.py."""
        return self.program(name, str(PROGRAM), str(self.folder / name), *filter(None, [invite]))

    def program(self, name: str, *arguments: str, host: Host | None = None) -> PeerProcess:
        """Any Python program as a peer; started."""
        return self._started(name, arguments, host, sys.executable)

    def _started(
        self, name: str, arguments: Sequence[str], host: Host | None, interpreter: str
    ) -> PeerProcess:
        peer = PeerProcess(self.folder / name, arguments, host, interpreter)
        self.peers.append(peer)
        peer.start()
        return peer

    def close(self) -> None:
        """Kills what runs, daemons included."""
        for peer in self.peers:
            peer.end()
        for daemon in self.daemons():
            with contextlib.suppress(psutil.NoSuchProcess):
                daemon.kill()
        wait_until(
            lambda: not self.daemons(), lambda: "all daemons of this test are gone", within_s=10
        )

    def daemons(self, peer: PeerProcess | None = None) -> list[psutil.Process]:
        """Living daemons of this swarm, or of one peer; a killed peer's lives on for some seconds."""
        mine = str(peer.home if peer else self.folder)
        found = []
        for process in psutil.process_iter(["name", "cmdline", "status"]):
            line = process.info["cmdline"] or ()
            if process.info["name"] == "p2pd" and any(mine in part for part in line):
                found.append(process)
        return found


def _listening(host: Host | None) -> tuple[str, str]:
    return "--host", "127.0.0.1" if host is None else "0.0.0.0"


def invite_of(peer: PeerProcess) -> str:
    """The invite that a launched peer printed."""

    def look() -> str:
        text = peer.out.read_text() if peer.out.exists() else ""
        found = re.search(r"runnel:[A-Za-z0-9_=-]+", text)
        if not found and not peer.is_running:
            raise AssertionError(f"ended without an invite; it said last:\n{peer.said()}")
        return found.group() if found else ""

    invite: str = wait_until(look, lambda: f"{peer.folder.name} prints an invite")
    return invite


def differing_rounds(peers: Iterable[PeerProcess]) -> dict[int, set[str]]:
    """Rounds after which peers that followed them hold different bits; empty if all is well.

    A round that a branch gave up counts with what took its place.
    """
    roots: dict[int, set[str]] = {}
    for peer in peers:
        for number, fact in peer.decided().items():
            roots.setdefault(number, set()).add(fact["kind"] + fact["state_root"])
    return {number: found for number, found in roots.items() if len(found) > 1}


def write_text(path: Path) -> None:
    """Some text to train on, the same each time."""
    words = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "into", "runnels")
    lines: Iterator[str] = (
        " ".join(words[(7 * i + j * j) % len(words)] for j in range(8)) for i in range(4000)
    )
    path.write_text("\n".join(lines))
