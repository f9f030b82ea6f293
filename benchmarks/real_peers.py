"""The schedule of a simulation once more, by real peers: processes with a daemon each, on the loopback.

All are members before the first step, train on what the simulation's peers train on, and wait for
each round where the simulation merges it. What is left to differ is rounding: the order in which a
reducer adds, which peer reduces which slice, and the kernels of one replica instead of all at once.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.chars import Task
from benchmarks.processes import Children
from benchmarks.report_line import Say
from runnel.clock import SystemClock
from runnel.node.manifest_spec import InnerSection, OuterSection

DEADLINE_S = 120.0
"""Nobody is left out of a round for being slower than the others: the simulation leaves nobody out."""

_WAIT_S = 600.0
_STALL_S = 3600.0
_OPEN = 2


@dataclass(frozen=True, slots=True)
class Job:
    """What all real peers are told.

    Attributes:
        text: the file to train on; None for what `benchmarks.chars.read_text` then takes.
    """

    task: Task
    outer: OuterSection
    text: Path | None = None

    def encode(self) -> str:
        """As one argument of a command line."""
        task = {**asdict(self.task), "inner": self.task.inner.model_dump()}
        text = None if self.text is None else str(self.text)
        return json.dumps({"task": task, "outer": self.outer.model_dump(), "text": text})

    @classmethod
    def decode(cls, argument: str) -> Self:
        """The inverse of `encode`."""
        values = json.loads(argument)
        inner = InnerSection(**values["task"].pop("inner"))
        text = None if values["text"] is None else Path(values["text"])
        return cls(Task(**values["task"], inner=inner), OuterSection(**values["outer"]), text)

    @property
    def num_rounds(self) -> int:
        """Rounds of the run, as many as the simulation has."""
        return self.task.steps // self.outer.every_steps * self.outer.fragments

    def settings(self) -> list[str]:
        """The run's settings, for `runnel.local`."""
        outer = self.outer.model_copy(update={"wait_s": _WAIT_S})
        rounds = {
            "open": max(1, min(_OPEN, outer.fragments - 1)),
            "deadline_floor_s": DEADLINE_S,
            "deadline_ceiling_s": DEADLINE_S,
            "stall_s": _STALL_S,
            "max_members": self.task.peers,
        }
        tables: Mapping[str, Mapping[str, Any]] = {
            "outer": outer.model_dump(),
            "rounds": rounds,
            "end": {"rounds": self.num_rounds},
        }
        return [
            f"{section}.{name}={json.dumps(value)}"
            for section, table in tables.items()
            for name, value in table.items()
        ]


@dataclass(frozen=True, slots=True)
class RealRun:
    """What real peers made of a job.

    Attributes:
        val_loss: of the outer parameters, in nats per character.
        states: digest of each peer's outer parameters, in hexadecimal digits.
        sent_bytes: by each peer from the first step on: headers, commitments, votes and all.
        payload_bytes: the part of them that carried contributions and results.
        rounds: decided by the run.
        rounds_of_all: in which the contributions of all peers are.
    """

    val_loss: float
    states: tuple[str, ...]
    sent_bytes: tuple[int, ...]
    payload_bytes: tuple[int, ...]
    rounds: int
    rounds_of_all: int

    def row(self, simulated_loss: float) -> dict[str, Any]:
        """As JSON has it; `simulated_loss` is that of the same schedule in one process."""
        peers = len(self.states)
        return {
            "val_loss": round(self.val_loss, 4),
            "gap_to_simulation": round(self.val_loss / simulated_loss - 1, 5),
            "identical_bits": len(set(self.states)) == 1,
            "sent_bytes_per_peer": round(sum(self.sent_bytes) / peers),
            "payload_bytes_per_peer": round(sum(self.payload_bytes) / peers),
            "rounds": self.rounds,
            "rounds_of_all": self.rounds_of_all,
        }


def compare(job: Job, simulated_loss: float, say: Say) -> dict[str, Any]:
    """Runs real peers and says how they did, as JSON has it; `simulated_loss` is that of one process.

    Their folder is deleted if all went well.

    Raises:
        ChildError: a peer failed.
    """
    clock = SystemClock()
    start_s = clock.monotonic_s()
    folder = Path(tempfile.mkdtemp(prefix="real-peers-"))
    row = run_real_peers(job, folder).row(simulated_loss)
    shutil.rmtree(folder)
    say(
        f"real peers: val_loss {row['val_loss']:.4f}, {row['gap_to_simulation']:+.2%} against the"
        f" simulation; {row['rounds_of_all']} of {row['rounds']} rounds with all peers;"
        f" {row['sent_bytes_per_peer'] / 1e6:.2f} MB sent by each,"
        f" {row['payload_bytes_per_peer'] / 1e6:.2f} MB of it payloads;"
        f" {clock.monotonic_s() - start_s:.1f} s"
    )
    return row


def run_real_peers(job: Job, folder: Path) -> RealRun:
    """Trains with one process for each peer; their homes and what they log go below `folder`.

    Raises:
        ChildError: a peer failed.
    """
    rows = [
        [str(peer), str(folder / f"peer-{peer}"), job.encode()] for peer in range(job.task.peers)
    ]
    with Children("benchmarks.real_peers_child", rows, folder / "peers.log") as peers:
        names = [answer["peer"] for answer in peers.ask_all({"do": "identify"})]
        invite = peers.ask(0, {"do": "found", "members": names})["invite"]
        peers.ask_all({"do": "join", "invite": invite})
        peers.ask_all({"do": "meet"})
        done = peers.ask_all({"do": "train"})
        val_loss = peers.ask(0, {"do": "evaluate"})["val_loss"]
        peers.ask_all({"do": "close"})
    return RealRun(
        val_loss=val_loss,
        states=tuple(answer["state"] for answer in done),
        sent_bytes=tuple(answer["sent_bytes"] for answer in done),
        payload_bytes=tuple(answer["payload_bytes"] for answer in done),
        rounds=done[0]["rounds"],
        rounds_of_all=done[0]["rounds_of_all"],
    )
