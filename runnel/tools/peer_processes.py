"""Peers of one swarm as processes on this machine, and nothing left of them afterwards.

Each has a session of its own, so that Ctrl-C in the terminal reaches the program that started them
alone, which then stops the peers. An environment variable marks them and whatever they start, so
that this can be found after its parent is gone.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

import runnel
from runnel.clock import Clock, SystemClock
from runnel.errors import StorageError
from runnel.tools.journal_tail import JournalTail

PROGRAM = (sys.executable, "-m", "runnel")
LEAVE_S = 40.0
"""How long peers that were asked to leave may take before they are killed: seconds if all is well."""

MARK = "RUNNEL_SWARM"
"""The variable that names the swarm which a process belongs to."""

_KILLED_S = 10.0
_POLL_S = 0.05
_JOURNAL = "runs/*/journal.jsonl"
_STATUS = "runs/*/status.json"
_INVITE = re.compile(r"runnel:[A-Za-z0-9_-]{40,}")
_LOOPBACK = ("--host", "127.0.0.1")


@dataclass(slots=True)
class Fate:
    """What became of a peer's process; of the newest one, if it was started again.

    Attributes:
        name: that a reader sees.
        started_unix_s: when its process was started.
        killed_unix_s: when it was killed, as planned.
        forced: it did not end when it should have, and was made to.
        exit_code: None while it runs; negative for a signal.
    """

    name: str
    started_unix_s: float
    killed_unix_s: float | None = None
    forced: bool = False
    exit_code: int | None = None


class PeerProcess:
    """One peer: its process, its folder and its log.

    Args:
        fate: with its name.
        folder: of the swarm; home and log appear in there.
        command: what to run; where to listen and the home are added.
        variables: its environment.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self, fate: Fate, folder: Path, command: Sequence[str], variables: Mapping[str, str]
    ) -> None:
        self.fate, name = fate, fate.name
        self.home = folder / "homes" / name.replace(" ", "-")
        self.log_path = folder / "logs" / f"{self.home.name}.log"
        self._said_path = self.log_path.with_suffix(".out")
        self.tail = JournalTail(self.home, _JOURNAL)
        self.home.mkdir(parents=True)
        self.log_path.parent.mkdir(exist_ok=True)
        self._folder, self._variables = folder, variables
        self._command = [*command, *_LOOPBACK, "--home", str(self.home)]
        self._process = self._spawn()

    def start_again(self, unix_s: float) -> None:
        """Another process on the same home; the one before has ended.

        Raises:
            OSError: it cannot be started.
        """
        self._process = self._spawn()
        self.fate.started_unix_s, self.fate.exit_code = unix_s, None

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._said_path.open("ab") as said, self.log_path.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own program
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=log,
                cwd=self._folder,
                env=self._variables,
                start_new_session=True,
            )

    @property
    def runs(self) -> bool:
        """Whether the process is there; notes its exit code."""
        if self.fate.exit_code is None:
            self.fate.exit_code = self._process.poll()
        return self.fate.exit_code is None

    @property
    def pid(self) -> int:
        """Its process id; of the newest process, if it was started again."""
        return self._process.pid

    def invite(self) -> str | None:
        """The invite it printed, if it did."""
        found = _INVITE.search(self._said_path.read_text(encoding="utf-8", errors="replace"))
        return found[0] if found else None

    def status_path(self) -> Path | None:
        """Its status.json, once it knows its run."""
        return next(iter(sorted(self.home.glob(_STATUS))), None)

    def last_words(self) -> str:
        """The last line of its log: why it ended, if it did by itself."""
        lines = [
            line
            for line in self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
            if line
        ]
        return lines[-1].removeprefix("runnel: ") if lines else "it said nothing"

    def ask_to_leave(self) -> None:
        """What the first Ctrl-C does. Not SIGINT: scripts start what they put aside with that ignored."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """Ends its process alone, with SIGKILL; what it had started must notice by itself."""
        with suppress(ProcessLookupError):
            self._process.kill()  # knows whether the process is still ours

    def freeze(self) -> None:
        """Stops its process alone, with SIGSTOP."""
        if self.runs:
            with suppress(psutil.Error):
                psutil.Process(self._process.pid).suspend()

    def thaw(self) -> None:
        """Lets a stopped one go on, with SIGCONT."""
        if self.runs:
            with suppress(psutil.Error):
                psutil.Process(self._process.pid).resume()

    def daemons(self) -> list[psutil.Process]:
        """What its process has started: its network daemon, if that runs."""
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def wait(self, timeout_s: float) -> bool:
        """Waits until the process has ended; False if it has not within that time."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return not self.runs


class PeerProcesses:
    """All peers of a swarm. Leaving the context ends those that still run: in order, or at once after an error.

    Args:
        folder: of the swarm.
        program: what is run with the arguments of the `runnel` command.
        clock: for the times of starts and deaths.
    """

    def __init__(
        self, folder: Path, *, program: Sequence[str] = PROGRAM, clock: Clock | None = None
    ) -> None:
        self._folder, self._program = folder, tuple(program)
        self._clock = clock or SystemClock()
        self._variables = {**environment(os.environ), MARK: secrets.token_hex(16)}
        self.all: dict[int, PeerProcess] = {}

    def __enter__(self) -> Self:
        """Nothing runs yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing runs any more."""
        try:
            if kind is None:
                self.leave()
        finally:
            self.end_at_once()

    def launch(self, run_file: Path) -> PeerProcess:
        """Starts number 0, which founds the run."""
        return self._start(0, "launch", str(run_file))

    def join(self, index: int, invite: str) -> PeerProcess:
        """Starts number `index`, which joins."""
        return self._start(index, "join", invite)

    def kill(self, index: int) -> float:
        """Kills a peer as planned; when, in seconds since 1970."""
        peer = self.all[index]
        peer.kill()
        peer.fate.killed_unix_s = self._clock.unix_s()
        peer.wait(_KILLED_S)
        return peer.fate.killed_unix_s

    def start_again(self, index: int) -> float:
        """Starts a peer whose process has ended, on the same home; when, in seconds since 1970.

        Raises:
            StorageError: it cannot be started.
        """
        now_s = self._clock.unix_s()
        try:
            self.all[index].start_again(now_s)
        except OSError as error:
            raise _no_room(index, error) from None
        return now_s

    def running(self) -> list[PeerProcess]:
        """Those whose process is there."""
        return [peer for peer in list(self.all.values()) if peer.runs]

    def leave(self) -> None:
        """Asks those who joined to leave, then the first one, and makes those end that do not."""
        running = self.running()
        self._let_go([peer for peer in running if peer is not self.all[0]])
        self._let_go(self.running())

    def kill_all(self) -> bool:
        """Kills everything that is left, also what peers started; whether there was anything.

        Does not wait. Any time, any thread.
        """
        running = self.running()
        for peer in running:
            peer.kill()
        strays = self._marked() if self.all else []
        for process in strays:
            with suppress(psutil.Error):
                process.kill()  # psutil compares start times: a reused number is left alone
        return bool(running or strays)

    def end_at_once(self) -> None:
        """`kill_all`, and nothing runs afterwards. Idempotent."""
        until = self._clock.monotonic_s() + _KILLED_S
        while self.kill_all() and self._clock.monotonic_s() < until:
            for peer in self.all.values():
                peer.wait(_KILLED_S)
            time.sleep(_POLL_S)

    def _let_go(self, peers: Sequence[PeerProcess]) -> None:
        for peer in peers:
            peer.ask_to_leave()
        until = self._clock.monotonic_s() + LEAVE_S
        for peer in peers:
            if not peer.wait(max(0.0, until - self._clock.monotonic_s())):
                peer.fate.forced = True
                peer.kill()
                peer.wait(_KILLED_S)

    def _marked(self) -> list[psutil.Process]:
        """Living processes that bear this swarm's mark."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self._variables[MARK]:
                    found.append(process)
        return found

    def _start(self, index: int, *arguments: str) -> PeerProcess:
        command = [*self._program, *arguments]
        try:
            fate = Fate(f"peer {index}", self._clock.unix_s())
            peer = PeerProcess(fate, self._folder, command, self._variables)
        except OSError as error:
            raise _no_room(index, error) from None
        self.all[index] = peer
        return peer


def _no_room(index: int, error: OSError) -> StorageError:
    reason = (error.strerror or str(error)).lower()
    return StorageError(
        f"peer {index} cannot be started ({reason}), expected room for another process and its"
        " folder: free some"
    )


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """What a peer's process shall see: this very runnel, one thread for arithmetic, the plain log."""
    source = str(Path(runnel.__file__).parents[1])
    paths = [source, *filter(None, own.get("PYTHONPATH", "").split(os.pathsep))]
    changed = {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": "1",
        "RUNNEL_LOG": "INFO",
    }
    return {**own, **changed}
