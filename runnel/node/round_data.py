"""A round's data on its way: slices to their reducers, results from them, the state after them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from runnel.node.actions import Action, Reduce, Scatter
from runnel.node.records import Commitment
from runnel.node.rounds import Round, SliceState
from runnel.types import Digest, PeerId

_RESULT_PATIENCE = 1.5
"""A worker waits this much shorter for its senders than they wait for its result."""


@dataclass(frozen=True, slots=True)
class DataWait:
    """How a round waits for data.

    Attributes:
        waited_s: since its set was decided.
        patience_s: the deadline for one transfer.
        is_gone: whether a peer let a deadline pass without a word, so that nobody waits for it again.
    """

    waited_s: float
    patience_s: float
    is_gone: Callable[[PeerId], bool] = lambda _: False


def advance_data(
    state: Round,
    me: PeerId,
    held: Container[Digest],
    *,
    wait: DataWait,
) -> list[Action]:
    """Scatter, reduce and prepare as far as the inputs and the clock allow.

    The standby is sent data only if the worker's result is not here in time or the worker seems to be
    gone, so that its work is wasted only then. A result that is announced and not handed out counts
    as missing.
    """
    actions: list[Action] = []
    if state.facts.carried:
        actions += _reduce_carried(state)
    elif state.decided is None:
        return []
    else:
        for index in range(len(state.slices)):
            actions += _scatter(state, index, me, held, wait)
            actions += _reduce(state, index, me, wait)
    chosen = state.best_held(held)
    actions += state.prepare(chosen) if chosen else []
    for record in state.candidates.values():
        if state.could_be(record) and all(piece.root in held for piece in record.slices):
            actions += state.prepare(record.slices)
    return actions


def _owes(commitment: Commitment, index: int, piece: SliceState) -> bool:
    """Whether a slice is still to come from who committed to it."""
    return commitment.id not in piece.arrived and index not in commitment.withheld


def overdue_for_data(state: Round, me: PeerId, held: Container[Digest]) -> set[PeerId]:
    """Whose data is missing: workers whose result is not here, and senders to slices that we reduce."""
    missing: set[PeerId] = set()
    if state.facts.carried:
        return missing
    for index, piece in enumerate(state.slices):
        if any(result.root in held for result in piece.results):
            continue
        missing.add(state.reducers(index)[0])
        if me in state.reducers(index) and piece.arrived:
            missing |= {c.peer for c in state.decided or () if _owes(c, index, piece)}
    return missing - {me}


def _scatter(
    state: Round, index: int, me: PeerId, held: Container[Digest], wait: DataWait
) -> list[Action]:
    mine, piece = state.own(me), state.slices[index]
    if mine is None or any(result.root in held for result in piece.results):
        return []
    worker, standby = state.reducers(index)
    actions: list[Action] = []
    late = wait.waited_s > _RESULT_PATIENCE * wait.patience_s or wait.is_gone(worker)
    for target in (worker, standby) if late else (worker,):
        if target in piece.sent_to or (target == worker and piece.results):
            continue
        piece.sent_to.add(target)
        if target == me:
            piece.arrived.add(mine.id)
        elif index not in mine.withheld:
            actions.append(Scatter(state.key, index, mine.id, target))
    return actions


def _reduce(state: Round, index: int, me: PeerId, wait: DataWait) -> list[Action]:
    piece, members = state.slices[index], state.decided or ()
    worker, standby = state.reducers(index)
    if piece.reducing or me not in (worker, standby):
        return []
    senders = tuple(c for c in members if c.id in piece.arrived)
    coming = any(_owes(c, index, piece) and not wait.is_gone(c.peer) for c in members)
    patience_s = wait.patience_s if me == worker else 2 * wait.patience_s
    if not senders or (coming and wait.waited_s <= patience_s):
        return []
    piece.reducing = True
    return [_job(state, index, senders, me)]


def _reduce_carried(state: Round) -> list[Action]:
    """All of the set is here with the set: everybody makes the results that name the drawn reducers."""
    senders, actions = state.decided or state.expected, list[Action]()
    if senders is None:
        return actions
    for index, piece in enumerate(state.slices):
        if not piece.reducing:
            piece.reducing = True
            actions.append(_job(state, index, senders, state.reducers(index)[0]))
    return actions


def _job(state: Round, index: int, senders: tuple[Commitment, ...], reducer: PeerId) -> Reduce:
    members = [share.commitment for share in state.shares]
    return Reduce(
        state.key,
        index,
        senders,
        tuple(members.index(c.id) for c in senders),
        reducer,
        tuple(state.view.index(c.peer) for c in senders),
        state.facts.progress,
    )
