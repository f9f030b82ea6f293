"""The schedule of a simulation once more, by real peers: processes with a daemon each, on the loopback.

All are members before the first step, train on what the simulation's peers train on, and wait for
each round where the simulation merges it. What remains to chance are the draws: who reduces which
slice, and in which order payloads are added up. A simulation that is told the draws ends with the
same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.chars import Task
from benchmarks.processes import Children
from benchmarks.simulated_rounds import Draw
from runnel.node.manifest_sections import InnerSection, OuterSection

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
        states: name of each peer's outer state, in hexadecimal digits.
        sent_bytes: by each peer from the first step on: headers, commitments, votes and all.
        payload_bytes: the part of them that carried contributions and results.
        rounds: decided by the run.
        rounds_of_all: in which everything that all peers contributed is.
        draws: of all rounds, if these are all rounds; else none.
    """

    val_loss: float
    states: tuple[str, ...]
    sent_bytes: tuple[int, ...]
    payload_bytes: tuple[int, ...]
    rounds: int
    rounds_of_all: int
    draws: tuple[Draw, ...]

    def facts(self) -> dict[str, Any]:
        """What JSON has of it besides losses."""
        peers = len(self.states)
        return {
            "identical_bits": len(set(self.states)) == 1,
            "sent_bytes_per_peer": round(sum(self.sent_bytes) / peers),
            "payload_bytes_per_peer": round(sum(self.payload_bytes) / peers),
            "rounds": self.rounds,
            "rounds_of_all": self.rounds_of_all,
        }


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
        trained = peers.ask_all({"do": "train"})
        val_loss = peers.ask(0, {"do": "evaluate"})["val_loss"]
        kept = peers.ask_all({"do": "leave"})
    draws = [draw_of(row, names) for row in kept[0]["records"]]
    full = [draw for draw in draws if draw is not None]
    return RealRun(
        val_loss=val_loss,
        states=tuple(answer["state"] for answer in kept),
        sent_bytes=tuple(answer["sent_bytes"] for answer in trained),
        payload_bytes=tuple(answer["payload_bytes"] for answer in trained),
        rounds=len(draws),
        rounds_of_all=len(full),
        draws=tuple(full) if len(full) == len(draws) else (),
    )


def draw_of(record: Mapping[str, Any], names: Sequence[str]) -> Draw | None:
    """The draw of a record as a child tells it; None if something that was contributed is not in it."""
    senders = tuple(names.index(name) for name in record["senders"])
    if len(senders) < len(names) or not all(record["complete"]):
        return None
    return Draw(senders, tuple(names.index(name) for name in record["reducers"]))
