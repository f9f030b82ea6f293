"""What happened in a run, in plain sentences with their figures."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from runnel.node.wording import count_text, size_text
from runnel.tools.peer_history import PeerHistory, data_parallel_bytes

if TYPE_CHECKING:
    from runnel.tools.history import SwarmHistory

_LATE_S = 5.0


def summary(history: SwarmHistory, *, parameters: int, peers: int) -> list[str]:
    """One sentence per fact that a reader asks for; what is unknown is left out.

    Args:
        history: of all peers whose journals are there.
        parameters: of the model.
        peers: in the swarm, for the comparison with data parallel.
    """
    return [
        *_what(history, parameters),
        *_loss(history),
        *_comings_and_goings(history),
        same_bits(history),
        *_bytes(history, parameters, peers),
    ]


def duration_text(seconds: float) -> str:
    """Seconds, minutes or hours: "41 s", "2 min 41 s", "3 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def same_bits(history: SwarmHistory) -> str:
    """Whether all replicas hold the same bits, by the hashes in the peers' own journals."""
    torn = sorted(number for number, past in history.rounds.items() if not past.agreed)
    finals = history.final_roots
    if torn:
        roots = history.rounds[torn[0]].roots
        told = ", ".join(f"{name} {root[:8]}" for name, root in sorted(roots.items()))
        return f"The replicas DIFFER: in round {torn[0]} their hashes are {told}."
    if len(set(finals.values())) > 1:
        told = ", ".join(f"{name} {root[:8]}" for name, (_, root) in sorted(finals.items()))
        return f"The replicas DIFFER at the end: {told}."
    if finals:
        number, root = next(iter(finals.values()))
        who = f"All {len(finals)} replicas" if len(finals) > 1 else "The one replica"
        verb = "hold" if len(finals) > 1 else "holds"
        return (
            f"{who} that reached the end (round {number}) {verb} the same bits: state {root}. "
            f"Whoever decided a round reported the same hash for it, in all "
            f"{len(history.rounds)} rounds."
        )
    shared = [past for past in history.rounds.values() if len(past.roots) > 1]
    if not shared:
        return "No round was reported by two peers, so there is nothing to compare bit by bit."
    last = max(shared, key=lambda past: past.number)
    root = next(iter(last.roots.values()))
    return (
        f"In all {len(shared)} rounds that several peers report their hashes are the same; "
        f"the last is round {last.number} with {root}."
    )


def _what(history: SwarmHistory, parameters: int) -> list[str]:
    kinds = [past.kind for past in history.rounds.values()]
    lasted = history.last_s - (history.first_s or history.last_s)
    seconds = [past.seconds for past in history.rounds.values() if past.kind == "record"]
    text = (
        f"{count_text(len(history.peers), 'peer')} trained a model of {parameters:,} parameters "
        f"for {duration_text(lasted)}: {count_text(kinds.count('record'), 'round')} decided"
    )
    for kind, word in (("abort", "aborted"), ("branch", "closed by a branch")):
        if kind in kinds:
            text += f", {kinds.count(kind)} {word}"
    if seconds:
        text += f"; a round took {statistics.median(seconds):.1f} s in the median"
    return [f"{text}."]


def _loss(history: SwarmHistory) -> list[str]:
    curve = history.mean_loss()
    if len(curve) < 2:
        return []
    text = f"Training loss went from {curve[0][1]:.3f} to {curve[-1][1]:.3f} nats per token"
    text += f" in {history.step:,} inner steps per peer"
    if history.evaluations:
        last = max(history.evaluations, key=lambda event: (event.round, event.unix_s))
        text += f"; on held-out text it is {last.loss:.3f} after round {last.round}"
    return [f"{text}."]


def _comings_and_goings(history: SwarmHistory) -> list[str]:
    start_s = history.first_s or 0.0
    told: list[tuple[float, str]] = []
    for name in sorted(history.peers):
        told += _of_peer(history.peers[name], history, start_s)
    return [text for _, text in sorted(told)]


def _of_peer(peer: PeerHistory, history: SwarmHistory, start_s: float) -> list[tuple[float, str]]:
    told = []
    for index, life in enumerate(peer.lives):
        if life.started_s - start_s > _LATE_S:
            text = f"{peer.name} {'came back' if index else 'joined'} after "
            text += duration_text(life.started_s - start_s)
            if life.fetched is not None:
                amount = f"{size_text(life.fetched.size_bytes)} of state"
                donors = count_text(len(life.fetched.donors), "peer")
                text += f", fetched {amount} from {donors} in {life.fetched.seconds:.1f} s"
            counted = sum(
                past.kind == "record"
                and peer.peer in past.contributors
                and past.decided_s >= life.started_s
                for past in history.rounds.values()
            )
            text += f", and contributed to {count_text(counted, 'round')}."
            told.append((life.started_s, text))
        if life.how == "killed" and life.ended_s is not None:
            after = duration_text(life.ended_s - start_s)
            later = sum(
                past.kind == "record" and past.decided_s > life.ended_s
                for past in history.rounds.values()
            )
            text = f"{peer.name} was killed without a word after {after}; "
            text += f"the others decided {count_text(later, 'more round')} without a restart."
            told.append((life.ended_s, text))
    return told


def _bytes(history: SwarmHistory, parameters: int, peers: int) -> list[str]:
    sent = [peer.sent_bytes for peer in history.peers.values() if peer.sent_bytes]
    if not sent:
        return []
    mean = sum(sent) / len(sent)
    text = f"Each peer sent {size_text(mean)} on average"
    if len(sent) > 1:
        text += f" ({size_text(min(sent))} to {size_text(max(sent))})"
    text += ", everything counted"
    theirs = data_parallel_bytes(parameters, peers, history.step)
    if theirs:
        text += (
            f"; data parallel over {peers} peers would have sent {size_text(theirs)} each for the "
            f"same {history.step:,} steps (bf16 gradients, ring all-reduce): "
            f"{theirs / max(sent):,.0f} times as much as the peer that sent most"
        )
    return [f"{text}."]
