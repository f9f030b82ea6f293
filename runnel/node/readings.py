"""What only the I/O and disk threads may look at, read now and then for metrics."""

from __future__ import annotations

import os
from pathlib import Path

from runnel.node.contacts import Contacts
from runnel.node.metrics import Figures
from runnel.node.pinning import Pinning
from runnel.node.pins import pins
from runnel.node.protocol_state import ProtocolState


def read_protocol(
    figures: Figures, state: ProtocolState, contacts: Contacts, pinning: Pinning, now: float
) -> None:
    """Who is heard and waited for, how long, and what is pinned; on the I/O thread."""
    view, deadlines = state.chain.head.view, state.deadlines
    figures.put("runnel_heard_peers", len(contacts.near(now)))
    figures.put("runnel_overdue_peers", sum(map(state.members.is_overdue, view)))
    for what, window in (
        ("commitment", deadlines.commits),
        ("data", deadlines.data),
        ("vote", deadlines.votes),
        ("arithmetic", deadlines.finish),
    ):
        figures.put("runnel_deadline_seconds", window.deadline_s(), (what,))
    figures.put("runnel_pinned_round", pins(state.chain, state.chain.path, pinning.every)[0])
    figures.put("runnel_pinned_states", pinning.shown)


def read_home(figures: Figures, home: Path) -> None:
    """How much the home's files take; on the disk thread, as it looks at each of them."""
    figures.put("runnel_home_bytes", _folder_bytes(home))


def _folder_bytes(folder: Path) -> int:
    """Sizes of all files below; what goes away meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).lstat().st_size
            except OSError:
                continue
    return total
