"""Child processes that take commands as lines of JSON, and what they and all theirs cost in CPU time (Linux)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Self

from runnel.errors import RunnelError

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_END_S = 20.0

Command = Mapping[str, Any]
Answer = dict[str, Any]
Starter = Callable[..., "subprocess.Popen[str]"]
"""As `subprocess.Popen`."""


class ChildError(RunnelError):
    """A benchmark's child process failed."""


class Children:
    """Copies of one module, each in a process of its own; commands go to all of them at once."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[Sequence[str]],
        log: Path,
        starters: Sequence[Starter] = (),
    ) -> None:
        """Starts one process for each list of arguments; what they say on stderr goes to `log`.

        `starters` start them on machines of their own, instead of all on this one.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._log = log
        self._children: list[subprocess.Popen[str]] = []
        with log.open("a") as said:
            for place, row in enumerate(arguments):
                start: Starter = starters[place] if starters else subprocess.Popen
                self._children.append(
                    start(
                        [sys.executable, "-m", module, *row],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=said,
                        text=True,
                        env=environment,
                    )
                )
        self._pool = ThreadPoolExecutor(len(self._children))

    def ask(self, place: int, command: Command) -> Answer:
        """One child's answer to a command.

        Raises:
            ChildError: it answered with an error, or ended.
        """
        child = self._children[place]
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(command) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except OSError as error:
            raise ChildError(f"peer {place} of {self._log.stem}: {error}") from error
        answer: Answer = json.loads(line) if line else {"error": f"it ended; see {self._log}"}
        if "error" in answer:
            raise ChildError(f"peer {place} of {self._log.stem}: {answer['error']}")
        return answer

    def ask_all(self, command: Command) -> list[Answer]:
        """The answers of all, each working at the same time."""
        return list(self._pool.map(lambda place: self.ask(place, command), range(len(self))))

    def __len__(self) -> int:
        return len(self._children)

    def cpu_s(self) -> float:
        """CPU seconds, user and system, of the children and all that descends from them."""
        return cpu_of({child.pid for child in self._children})

    def close(self) -> None:
        """Ends them: closes their input, waits, kills."""
        for child in self._children:
            if child.stdin is not None:
                child.stdin.close()
        for child in self._children:
            try:
                child.wait(_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._pool.shutdown()
        for child in self._children:
            if child.stdout is not None:
                child.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def answer_calls(make: Callable[[], object]) -> None:
    """A child's life: each line of stdin names a method of what `make` gives under "do", and its arguments.

    What libraries print, also while they are loaded, goes to stderr: it must not land between the answers.
    """
    sink = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    subject = make()

    def handle(command: Command) -> Answer:
        options = dict(command)
        answer: Answer = getattr(subject, options.pop("do"))(**options)
        return answer

    answer_commands(handle, sys.stdin, sink)


def answer_commands(handle: Callable[[Command], Answer], source: IO[str], sink: IO[str]) -> None:
    """A child's life: answers each line of `source` on `sink` until there are no more."""
    for line in source:
        try:
            answer = handle(json.loads(line))
        except Exception as error:  # noqa: BLE001 - a task border: the parent reports it and stops
            answer = {"error": f"{type(error).__name__}: {error}"}
        sink.write(json.dumps(answer) + "\n")
        sink.flush()


def cpu_of(roots: set[int]) -> float:
    """CPU seconds of processes and their living descendants, wherever their sessions are."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        pid = int(path.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    total = 0
    for pid, spent in ticks.items():
        ancestor = pid
        while ancestor not in roots and ancestor in parents:
            ancestor = parents[ancestor]
        total += spent if ancestor in roots else 0
    return total / _TICKS_PER_S
