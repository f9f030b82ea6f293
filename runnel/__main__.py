"""``python -m runnel``: the same as the `runnel` command."""

from __future__ import annotations

import sys

from runnel.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
