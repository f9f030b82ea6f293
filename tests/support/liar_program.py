"""A peer of the command line that negates every scalar it contributes. Run as a peer by tests/swarm.

liar_program.py ARGUMENTS: as ``python -m runnel`` takes them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from runnel.optim import just_one_byte, seed_walks
from runnel.tools.cli import main


def negated(codes: Sequence[int | None]) -> bytes:
    return just_one_byte.pack_codes([None if code is None else -code for code in codes])


if __name__ == "__main__":
    vars(seed_walks)["pack_codes"] = negated
    sys.exit(main(sys.argv[1:]))
