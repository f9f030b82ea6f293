"""A child process of `benchmarks.allreduce`: one peer of one of the two sides, driven by lines of JSON."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from benchmarks.processes import answer_calls


def main(arguments: list[str]) -> int:
    """``SIDE INDEX FOLDER``; SIDE is runnel or hivemind."""
    side, index, folder = arguments
    logging.basicConfig(
        level=os.environ.get("RUNNEL_LOG", "WARNING").upper(),
        format="%(relativeCreated)d %(threadName)s %(name)s %(message)s",
    )
    answer_calls(lambda: _peer(side, int(index), Path(folder)))
    return 0


def _peer(side: str, index: int, folder: Path) -> object:
    """One side's peer; neither loads the other's libraries."""
    if side == "runnel":
        from benchmarks.allreduce_runnel import RunnelPeer

        return RunnelPeer(index, folder)
    from benchmarks.allreduce_hivemind import HivemindPeer

    return HivemindPeer(index, folder)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
