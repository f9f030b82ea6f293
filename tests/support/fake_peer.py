"""Stands for the `runnel` command where only the handling of processes is tested.

Writes the journal and the status that a peer would, at a pace of ten rounds a second, from the
second at which ``run.toml`` was written until ``end.minutes`` later. Starts a process of its own, as
a peer starts its daemon. ``FAKE_PEER`` changes what it does: "differs", "hangs", "fails", "refuses".
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


def main() -> int:
    command, home = sys.argv[1], Path(sys.argv[sys.argv.index("--home") + 1])
    mode = os.environ.get("FAKE_PEER", "") if command == "join" else ""
    if os.environ.get("FAKE_PEER") == "refuses":
        print("runnel: port 1 is in use, expected a free one", file=sys.stderr)
        return 4
    name = home.name.ljust(8, "0")
    stopped: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: stopped.append(number))
    daemon = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    folder = home / "runs" / "demo-00000000"
    journal = Journal(folder / "journal.jsonl")
    note = journal.append
    began = Path("run.toml").stat().st_mtime
    ends = began + 60 * tomllib.loads(Path("run.toml").read_text())["end"]["minutes"]
    note(PeerStarted(unix_s=time.time(), peer=name, run="0" * 64))
    if command == "join":
        note(StateFetched(unix_s=time.time(), round=0, size_bytes=9, seconds=0.1, donors=("a",)))
    note(PeerReady(unix_s=time.time(), round=0, members=1, seconds=0.1))
    status = {"parameters": 1000, "sent_by_purpose": {"slice": 70}}
    (folder / "status.json").write_text(json.dumps(status))
    if command == "launch":
        print(f"Others join with:\n\n  runnel join {INVITE}\n", flush=True)
    elif sys.argv[2] != INVITE:
        return 2
    number = int((time.time() - began) / ROUND_S) + 1
    while time.time() < ends or mode == "hangs":
        if stopped and mode != "hangs":
            note(PeerStopped(unix_s=time.time(), reason="left"))
            break
        if mode == "fails" and time.time() > began + (ends - began) / 2:
            print("runnel: the disk is full", file=sys.stderr)
            journal.close()
            return 6
        root = f"{number:064x}" if mode != "differs" else "f" * 64
        now = time.time()
        note(InnerProgress(unix_s=now, step=number, round=number, loss=5 / number, tokens=10, tokens_per_s=9.0, lr=0.1))
        note(RoundDecided(unix_s=now, round=number, kind="record", fragment=0, contributors=(name, "peer-000"), members=2, seconds=ROUND_S, state_root=root))
        if number % 10 == 9:
            note(MemberRemoved(unix_s=now, peer="peer-200", reason="not heard"))
        number += 1
        time.sleep(max(0.0, began + number * ROUND_S - time.time()))
    else:
        root = "e" * 64 if mode != "differs" else "f" * 64
        note(TrafficCounted(unix_s=time.time(), sent={"slice": 80, "blob": 20}))
        note(RunEnded(unix_s=time.time(), round=999, reason="minutes", state_root=root))
    daemon.kill()
    daemon.wait()
    journal.close()
    print("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
