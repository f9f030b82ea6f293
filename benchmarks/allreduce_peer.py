"""A child process of `benchmarks.allreduce`: one peer of one of the two sides, driven by lines of JSON."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.processes import answer_calls


def main(arguments: list[str]) -> int:
    """``SIDE INDEX FOLDER``; SIDE is runnel or hivemind."""
    side, index, folder = arguments
    logging.basicConfig(
        level=os.environ.get("RUNNEL_LOG", "WARNING").upper(),
        format="%(relativeCreated)d %(threadName)s %(name)s %(message)s",
    )
    peer: Any
    if side == "runnel":
        from benchmarks.allreduce_runnel import RunnelPeer

        peer = RunnelPeer(int(index), Path(folder))
    else:
        from benchmarks.allreduce_hivemind import HivemindPeer

        peer = HivemindPeer(int(index), Path(folder))
    answer_calls(peer)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
