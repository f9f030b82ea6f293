"""Stands for the `runnel` command where only the handling of processes is tested.

Writes the journal and the status that a peer would, ten rounds a second, from the moment at which
``run.toml`` was written until its ``end.minutes`` are over. Starts a process of its own, as a peer
starts its daemon, and leaves its number in ``daemon.pid``. ``FAKE_PEER`` changes what it does:
"differs", "hangs" and "fails" those who join, "refuses" the one that launches.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from runnel.clock import SystemClock
from runnel.node.events import (
    InnerProgress,
    MemberRemoved,
    PeerReady,
    PeerStarted,
    PeerStopped,
    RoundDecided,
    RunEnded,
    StateFetched,
    TrafficCounted,
)
from runnel.node.journal import Journal

ROUND_S = 0.1
INVITE = "runnel:" + "x" * 60


class FakePeer:
    def __init__(self, command: str, home: Path, mode: str) -> None:
        self.name, self.mode = home.name.ljust(8, "0"), mode
        self.now = SystemClock().unix_s
        self.folder = home / "runs" / "demo-00000000"
        self.journal = Journal(self.folder / "journal.jsonl")
        self.began = Path("run.toml").stat().st_mtime
        minutes = tomllib.loads(Path("run.toml").read_text())["end"]["minutes"]
        self.ends = self.began + 60 * minutes
        self.stopped: list[int] = []
        self.note = self.journal.append
        self.note(PeerStarted(unix_s=self.now(), peer=self.name, run="0" * 64))
        if command == "join":
            self.note(
                StateFetched(unix_s=self.now(), round=0, size_bytes=9, seconds=0.1, donors=("a",))
            )
        self.note(PeerReady(unix_s=self.now(), round=0, members=1, seconds=0.1))

    def run(self) -> int:
        number = int((self.now() - self.began) / ROUND_S) + 1
        while self.now() < self.ends or self.mode == "hangs":
            if self.stopped and self.mode != "hangs":
                self.note(PeerStopped(unix_s=self.now(), reason="left"))
                return 0
            if self.mode == "fails" and self.now() > self.ends - 1:
                print("runnel: the disk is full", file=sys.stderr)
                return 6
            self.round(number)
            number += 1
            time.sleep(max(0.0, self.began + number * ROUND_S - self.now()))
        self.note(TrafficCounted(unix_s=self.now(), sent={"slice": 80, "blob": 20}))
        root = self.root("e")
        self.note(RunEnded(unix_s=self.now(), round=999, reason="minutes", state_root=root))
        return 0

    def round(self, number: int) -> None:
        now = self.now()
        self.note(
            InnerProgress(
                unix_s=now,
                step=number,
                round=number,
                loss=5 / number,
                tokens=10,
                tokens_per_s=9.0,
                lr=0.1,
            )
        )
        self.note(
            RoundDecided(
                unix_s=now,
                round=number,
                kind="record",
                fragment=0,
                contributors=(self.name, "peer-000"),
                members=2,
                seconds=ROUND_S,
                state_root=self.root(f"{number:x}"),
            )
        )
        if number % 10 == 9:
            self.note(MemberRemoved(unix_s=now, peer="peer-200", reason="not heard"))

    def root(self, text: str) -> str:
        return ("f" if self.mode == "differs" else text) * 8


def main() -> int:
    command, home = sys.argv[1], Path(sys.argv[sys.argv.index("--home") + 1])
    mode = os.environ.get("FAKE_PEER", "")
    if mode == "refuses":
        print("runnel: port 1 is in use, expected a free one", file=sys.stderr)
        return 4
    if command == "join" and sys.argv[2] != INVITE:
        return 2
    peer = FakePeer(command, home, mode if command == "join" else "")
    signal.signal(signal.SIGTERM, lambda number, _: peer.stopped.append(number))
    asleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(asleep, start_new_session=True) as daemon:
        (home / "daemon.pid").write_text(str(daemon.pid))
        status = {"parameters": 1000, "sent_by_purpose": {"slice": 70}}
        (peer.folder / "status.json").write_text(json.dumps(status))
        if command == "launch":
            print(f"Others join with:\n\n  runnel join {INVITE}\n", flush=True)
        code = peer.run()
        daemon.kill()
    peer.journal.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
