"""What the protocol of one peer does in a round, found out by driving it: every input at every stage of a good course.

A whole protocol is copied at each stage, so that each input meets the very same one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

from runnel.dht.identity import NullSigner
from runnel.hashing import digest
from runnel.node import actions as act
from runnel.node import storage_keys
from runnel.node.certificates import Certificate
from runnel.node.messages import (
    Cast,
    Commit,
    Hello,
    ProposeOutcome,
    ProposeSet,
    ResultReady,
    SetDecided,
    proposal_statement,
)
from runnel.node.outcomes import abort_record, genesis_record, round_record
from runnel.node.protocol import RoundProtocol
from runnel.node.records import Record, SliceResult, set_value
from runnel.types import Digest, PeerId
from runnel.verification.votes import Electorate, Instance, Proposal, Step, majority
from tests.support.members import PEERS, RUN, commitment, name, vote
from tests.support.states import settings_of

VIEW = (PEERS[0], PEERS[1], PEERS[3])  # two votes are a quorum; the standby proposes
FIRST = genesis_record(VIEW, name("initial state"))
KEY = act.RoundKey(0, FIRST.hash)
PAYLOAD_BYTES = 8
WORKER, STANDBY, OTHER = sorted(VIEW, key=lambda p: digest(FIRST.hash, bytes(8), p))
COMMITMENTS = {p: commitment(p, 0, FIRST.hash) for p in VIEW}
SET = tuple(sorted(COMMITMENTS.values(), key=lambda c: c.id))
RESULT = SliceResult(name("result"), WORKER, (0, 1, 2))
STATE_ROOT = name("state")

Input = Callable[[RoundProtocol, float], list[act.Action]]

STAGES = (
    "open",
    "committed",
    "half committed",
    "set decided",
    "results here",
    "state computed",
)


def opened(me: PeerId) -> RoundProtocol:
    """A protocol whose first round has just opened and that has heard of the others."""
    saved = storage_keys.restore({}, FIRST, open_rounds=1)
    protocol = RoundProtocol(NullSigner(me), settings_of(), saved, now=0.0)
    protocol.tick(0.1)
    for peer in VIEW:
        if peer != me:
            protocol.receive(peer, Hello(FIRST.hash, -1), 0.1)
    return protocol


def stage_of(protocol: RoundProtocol) -> str:
    """Where the round stands for this peer."""
    chain, me = protocol.state.chain, protocol.state.me
    if chain.number >= 0:
        return f"over: {chain.head.kind.name.lower()}"
    place = protocol.state.rounds[KEY]
    if any(root is not None for root in place.prepared.values()):
        return "state computed"
    if place.best_held(protocol.state.held):
        return "results here"
    if place.decided is not None:
        return "set decided"
    if place.half_at is not None:
        return "half committed"
    return "committed" if me in place.commits else "open"


# -- inputs


def hand_over(protocol: RoundProtocol, now: float) -> list[act.Action]:
    own = COMMITMENTS[protocol.state.me]
    handover = act.Handover(
        KEY, own.payload_root, own.slice_norms, own.tokens, own.steps, own.loss, PAYLOAD_BYTES, {}
    )
    return protocol.handed_over(handover, own.progress, now)


def commit_of(place: int) -> Input:
    def given(protocol: RoundProtocol, now: float) -> list[act.Action]:
        peer = others(protocol)[place]
        return protocol.receive(peer, Commit(COMMITMENTS[peer]), now)

    return given


def decide_set(protocol: RoundProtocol, now: float) -> list[act.Action]:
    instance, value = Instance("set", 0, FIRST.hash), set_value([c.id for c in SET])
    proposal, author, signature = _proposal(instance, value)
    proposed = ProposeSet(proposal, SET, signature)
    return protocol.receive(author, proposed, now) + _votes(protocol, instance, value, now)


def tell_set(protocol: RoundProtocol, now: float) -> list[act.Action]:
    instance, value = Instance("set", 0, FIRST.hash), set_value([c.id for c in SET])
    votes = tuple(vote(instance, p, value, step=Step.PRECOMMIT) for p in others(protocol))
    return protocol.receive(others(protocol)[0], SetDecided(SET, Certificate(0, votes)), now)


def payloads(protocol: RoundProtocol, now: float) -> list[act.Action]:
    actions = list[act.Action]()
    for peer in others(protocol):
        actions += protocol.slice_arrived(KEY, 0, COMMITMENTS[peer].id, now)
    return actions


def reduction_done(protocol: RoundProtocol, now: float) -> list[act.Action]:
    result = SliceResult(RESULT.root, protocol.state.me, RESULT.included)
    job = act.Reduce(KEY, 0, SET, RESULT.included, result.reducer, tuple(range(len(SET))), 0)
    return protocol.reduced(job, result, PAYLOAD_BYTES, now)


def announced(protocol: RoundProtocol, now: float) -> list[act.Action]:
    told = ResultReady(0, FIRST.hash, 0, RESULT, PAYLOAD_BYTES)
    return protocol.receive(others(protocol)[0], told, now)


def fetched(protocol: RoundProtocol, now: float) -> list[act.Action]:
    return protocol.result_held(RESULT.root, now)


def computed(protocol: RoundProtocol, now: float) -> list[act.Action]:
    return protocol.prepared(KEY, (RESULT,), STATE_ROOT, now)


def decide_record(protocol: RoundProtocol, now: float) -> list[act.Action]:
    place = deepcopy(protocol.state.rounds[KEY])
    place.decide(SET, None, now)
    return _decide_outcome(protocol, round_record(FIRST, place, (RESULT,), STATE_ROOT), now)


def decide_abort(protocol: RoundProtocol, now: float) -> list[act.Action]:
    return _decide_outcome(protocol, abort_record(FIRST), now)


def wait(protocol: RoundProtocol, now: float) -> list[act.Action]:
    """The deadline of whatever is waited for, on a clock that ticks."""
    actions = list[act.Action]()
    for second in range(1, 17):
        actions += protocol.tick(now + second)
    return actions


def _decide_outcome(protocol: RoundProtocol, record: Record, now: float) -> list[act.Action]:
    instance = Instance("outcome", 0, FIRST.hash)
    proposal, author, signature = _proposal(instance, record.hash)
    proposed = ProposeOutcome(proposal, record, signature)
    return protocol.receive(author, proposed, now) + _votes(protocol, instance, record.hash, now)


def _proposal(instance: Instance, value: Digest) -> tuple[Proposal, PeerId, bytes]:
    author = Electorate.of(instance, VIEW, majority).proposer(0)
    proposal = Proposal(instance, 0, value, author)
    return proposal, author, NullSigner(author).sign(proposal_statement(RUN, proposal))


def _votes(
    protocol: RoundProtocol, instance: Instance, value: Digest, now: float
) -> list[act.Action]:
    actions = list[act.Action]()
    for step in (Step.PREVOTE, Step.PRECOMMIT):
        for peer in others(protocol):
            actions += protocol.receive(peer, Cast(vote(instance, peer, value, step=step)), now)
    return actions


def others(protocol: RoundProtocol) -> list[PeerId]:
    return [peer for peer in (WORKER, STANDBY, OTHER) if peer != protocol.state.me]


INPUTS: dict[str, Input] = {
    "the trainer hands its share over": hand_over,
    "the commitment of one other member": commit_of(0),
    "the commitment of the last member": commit_of(1),
    "a proposed set of all, and a quorum's votes for it": decide_set,
    "`SetDecided` with its certificate": tell_set,
    "the others' payloads": payloads,
    "own reduction is done": reduction_done,
    "`ResultReady` of the slice's worker": announced,
    "the result is fetched and on disk": fetched,
    "the new state is computed": computed,
    "a proposed record, and a quorum's votes for it": decide_record,
    "a proposed abort, and a quorum's votes for it": decide_abort,
    "nothing for 16 s": wait,
}

_JOBS = (reduction_done, fetched, computed)
A_WORKER = "the worker of the slice"
COURSES: dict[str, tuple[PeerId, tuple[tuple[Input, ...], ...]]] = {
    A_WORKER: (
        WORKER,
        (
            (),
            (hand_over,),
            (commit_of(0),),
            (commit_of(1), decide_set),
            (payloads, reduction_done),
            (computed,),
        ),
    ),
    "another member": (
        OTHER,
        (
            (),
            (hand_over,),
            (commit_of(0),),
            (commit_of(1), decide_set),
            (announced, fetched),
            (computed,),
        ),
    ),
}
"""By role: who it is, and what leads from each stage to the next."""


# -- the table


def stages(role: str) -> list[RoundProtocol]:
    """The protocol at each stage of a good course."""
    me, steps = COURSES[role]
    protocol, found = opened(me), list[RoundProtocol]()
    for place, step in enumerate(steps):
        for given in step:
            given(protocol, 0.2 + place / 10)
        found.append(deepcopy(protocol))
    return found


def rows(role: str) -> list[tuple[str, str, str, str]]:
    """Stage, input, next stage, what is done: all pairs in which anything happens."""
    found = []
    for stage, protocol in zip(STAGES, stages(role), strict=True):
        for label, given in INPUTS.items():
            if (stage in STAGES[:3] and given in _JOBS) or (
                given is reduction_done and role != A_WORKER
            ):
                continue  # nobody asked for it
            subject = deepcopy(protocol)
            told = words(given(subject, 1.0))
            after = stage_of(subject)
            if told or after != stage:
                found.append((stage, label, after if after != stage else "", told))
    return found


def words(actions: Sequence[act.Action]) -> str:
    """What is to be done, each thing once and in order; greetings and repetitions left out."""
    return ", ".join(dict.fromkeys(filter(None, map(_word, actions))))


def _word(action: act.Action) -> str:
    match action:
        case act.Send(message=message):
            quiet = isinstance(message, Hello)
            return "" if quiet else f"send `{type(message).__name__}`"
        case act.Store():
            return "write"
        case act.WantHandover(urgent=urgent, key=key):
            what = "ask the trainer for what it has" if urgent else "ask the trainer for its share"
            return what if key == KEY else "open the next round"
        case act.Scatter():
            return (
                "send the payload to the worker"
                if action.to == WORKER
                else "send it to the standby"
            )
        case act.Adopt(fork=fork):
            return f"apply the {fork.adopted[-1].kind.name.lower()}"
        case act.Reduce(senders=senders):
            return f"reduce {len(senders)} payloads"
        case act.Fetch():
            return "fetch the result"
        case act.Prepare():
            return "compute the new state"
    return ""
