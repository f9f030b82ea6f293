"""This peer's own part in a round: opening it, committing to it, repeating what may have been lost. Pure."""

from __future__ import annotations

from runnel.node.actions import Action, Handover, RoundKey, Send, WantHandover
from runnel.node.messages import Commit, ResultReady, signed
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Commitment
from runnel.node.rounds import Round, RoundFacts, SliceState
from runnel.types import PeerId

_REPEAT_SHARE = 0.5
"""What was said is repeated after this share of its age: whoever trains long says it as seldom."""
_TELLERS = 8
"""So many holders tell of late results first; as many more each data deadline later."""


def open_round(state: ProtocolState, key: RoundKey, now: float) -> Round:
    """Opens a round, with what this peer promised in it before it closed or before a restart."""
    chain, saved, settings = state.chain, state.saved, state.settings
    view, base = chain.view_of(key.number), chain.record(key.base)
    facts = RoundFacts(
        key=key,
        fragment=key.number % len(settings.fragment_sizes),
        final=chain.is_final(key.number),
        view=view,
        voters=chain.voters_of(key.number),
        opened=now,
        forgotten=saved.past.may_have_promised(key.number, base.number),
        carried=settings.carries is not None,
        progress=base.progress,
    )
    slices = [SliceState() for _ in range(settings.slices(key.number, len(view)))]
    place = state.rounds[key] = Round(facts, slices)
    place.sets.update(saved.proposed.get(key, {}))
    for record in saved.candidates.get(key.number, {}).values():
        place.take_candidate(record)
    if key in saved.sets:
        place.decide(*saved.sets[key], now)
    return place


def commitment_of(
    state: ProtocolState, handover: Handover, progress: int, now: float
) -> Commitment:
    """The signed commitment to a handed-over contribution, with what this peer saw of the others."""
    members, head = state.members, state.chain.head
    commitment = Commitment(
        peer=state.me,
        round=handover.key.number,
        base=handover.key.base,
        payload_root=handover.payload_root,
        slice_norms=handover.slice_norms,
        withheld=_withheld(state, handover),
        tokens=handover.tokens,
        steps=handover.steps,
        loss=handover.loss,
        progress=progress,
        joins=members.joins(head.view, now),
        leaves=members.leaves(head.view, now),
        unheard=members.unheard(head.view, head.unproven, now, state.chain.number),
        window=handover.window,
        carried=handover.carried,
    )
    statement = commitment.statement(state.settings.run)
    return signed(commitment, state.signer.sign(statement))


def _withheld(state: ProtocolState, handover: Handover) -> tuple[int, ...]:
    """Slices of a share that this peer's link would not carry in time."""
    slices = len(handover.slice_norms)
    if handover.carried or state.rounds[handover.key].view == (state.me,):
        return ()
    return state.deadlines.pace.withheld(
        handover.key.number % len(state.settings.fragment_sizes),
        slices,
        max(1, handover.payload_bytes // slices),
        time_s=state.deadlines.sure_s,
        every_s=state.deadlines.interval_s,
    )


def hurry(state: ProtocolState, place: Round, now: float) -> list[Action]:
    """Some time after half has committed, asks the trainer for what it has."""
    late = place.half_at is not None and now - place.half_at > state.deadlines.hurry_s
    if not late or state.me in place.commits or place.decided or not place.takes(state.me):
        return []
    return [want(place, state.me, urgent=True)]


def want(place: Round, me: PeerId, *, urgent: bool) -> WantHandover:
    """Asks for this peer's share of a round that it may take part in."""
    return WantHandover(
        place.key, place.fragment, len(place.slices), urgent, seat=place.view.index(me)
    )


def repeat(state: ProtocolState, place: Round, now: float) -> list[Action]:
    """Own commitment and results again, in case they were lost; late ones from others who hold them.

    A reducer may be gone before everybody heard of its result. Of many holders not all speak at once.
    """
    if state.me not in place.view:  # a bystander may have heard of a round, and has no say in it
        return []
    own, key = place.commits.get(state.me), place.key
    waited_s = now - place.decided_at
    turn = 1 + place.rank(state.me) // _TELLERS
    late = place.decided is not None and waited_s > turn * state.deadlines.data_s
    actions: list[Action] = []
    if own and place.decided is None and now >= place.repeat_at:
        place.repeat_at = now + _REPEAT_SHARE * (now - place.opened)
        actions.append(Send(Commit(own)))
    if place.decided is None or now < place.repeat_at or place.facts.carried:
        return actions
    told = list[Action]()
    for index, piece in enumerate(place.slices):
        for result, size in piece.results.items():
            if (late or result.reducer == state.me) and result.root in state.held:
                told.append(Send(ResultReady(key.number, key.base, index, result, size)))
    if told:
        place.repeat_at = now + _REPEAT_SHARE * waited_s
    return actions + told
