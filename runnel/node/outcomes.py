"""The two outcomes of a round as records. Pure: everybody builds the same bytes from the same inputs."""

from __future__ import annotations

from statistics import median_low

from runnel.node.membership import next_members
from runnel.node.records import FULL_PROGRESS, Record, RecordKind, SliceResult
from runnel.node.rounds import Round
from runnel.types import Digest, PeerId


def round_record(
    parent: Record, state: Round, slices: tuple[SliceResult, ...], state_root: Digest
) -> Record:
    """The record of a round that took place. The round's set must be decided."""
    commitments = state.decided or ()
    used = {index for piece in slices for index in piece.included}
    view, unproven = next_members(parent, commitments)
    progress = min(median_low([c.progress for c in commitments]), FULL_PROGRESS)
    finished = set(parent.finished) | ({state.fragment} if state.final else set())
    return Record(
        number=state.key.number,
        parent=parent.hash,
        kind=RecordKind.ROUND,
        shares=state.shares,
        slices=slices,
        state_root=state_root,
        view=view,
        unproven=unproven,
        tokens=parent.tokens + sum(c.tokens for i, c in enumerate(commitments) if i in used),
        progress=max(parent.progress, progress),
        finished=tuple(sorted(finished)),
    )


def abort_record(parent: Record) -> Record:
    """The record of a round given up: everything repeats, and what was sent stays with its senders."""
    return Record(
        number=parent.number + 1,
        parent=parent.hash,
        kind=RecordKind.ABORT,
        shares=(),
        slices=(),
        state_root=Digest(b""),
        view=parent.view,
        unproven=parent.unproven,
        tokens=parent.tokens,
        progress=parent.progress,
        finished=parent.finished,
    )


def genesis_record(view: tuple[PeerId, ...], state_root: Digest) -> Record:
    """The record before the first round; `state_root` names the initial outer state."""
    return Record(
        number=-1,
        parent=Digest(b""),
        kind=RecordKind.GENESIS,
        shares=(),
        slices=(),
        state_root=state_root,
        view=tuple(sorted(view)),
        unproven=(),
        tokens=0,
        progress=0,
        finished=(),
    )
