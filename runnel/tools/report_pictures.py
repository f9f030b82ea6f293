"""The report's pictures, drawn from a swarm's history."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from runnel.node.wording import size_text
from runnel.tools.peer_history import PeerHistory, data_parallel_bytes
from runnel.tools.svg import COLOURS, FAINT, GREY, Axis, Bar, Series, line_chart, matrix, timeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runnel.tools.history import RoundHistory, SwarmHistory

_CATCHING_UP, _TRAINING, _KILLED = "#E69F00", "#0072B2", "#B00020"
_INCLUDED, _NOT_COUNTED, _ABORTED = "#0072B2", "#E69F00", "#BBBBBB"


def loss_by_steps(history: SwarmHistory) -> str:
    """Loss against inner steps: each peer's training loss, their mean, and held-out loss if there is any."""
    peers = [
        Series(label="", points=points, colour=GREY, width=1.0, opacity=0.5)
        for peer in _in_order(history)
        for points in _loss_per_life(peer)
    ]
    mean = [(step, loss) for step, loss, _ in history.mean_loss()]
    title = "Loss while training"
    series = [*peers, Series(label="mean of all peers", points=mean, colour=COLOURS[0], width=2.6)]
    if len(history.peers) > 1:
        series.append(Series(label="single peers", points=[], colour=GREY, width=1.0))
    held_out = _held_out(history)
    if held_out:
        series.append(Series(label="held-out text", points=held_out, colour=COLOURS[1], dots=True))
    return line_chart(title, series, Axis(label="inner steps of each peer"), _LOSS)


def loss_by_bytes(history: SwarmHistory, *, parameters: int, peers: int) -> str:
    """The same loss against bytes sent per peer, and where data parallel would be after as many steps."""
    mean = history.mean_loss()
    ours = [(sent, loss) for _, loss, sent in mean]  # of the peer that sent most: no flattery
    theirs = [(data_parallel_bytes(parameters, peers, round(step)), loss) for step, loss, _ in mean]
    series = [
        Series(
            label="this run, the peer that sent most", points=ours, colour=COLOURS[0], width=2.6
        ),
        Series(
            label="data parallel (bf16 gradients in every step), same steps",
            points=theirs,
            colour=COLOURS[1],
            dashed=True,
        ),
    ]
    x_axis = Axis(label="bytes sent per peer (logarithmic)", tick=size_text, is_log=True)
    return line_chart("The same loss against bytes sent", series, x_axis, _LOSS)


def peer_timeline(history: SwarmHistory) -> str:
    """Each peer's lives over the run's time."""
    start_s = history.first_s or 0.0
    rows = [(peer_label(peer), _bars(peer, start_s, history.last_s)) for peer in _in_order(history)]
    axis = Axis(label="seconds since the first peer started")
    return timeline("Who was there", rows, axis)


def contribution_matrix(history: SwarmHistory) -> str:
    """Which peer's work each round took in."""
    known = {peer.peer for peer in history.peers.values()}
    strangers = sorted(
        {name for past in history.rounds.values() for name in past.contributors} - known
    )
    rows = [(peer_label(peer), _cells(history, peer.peer, peer)) for peer in _in_order(history)]
    rows += [(name, _cells(history, name, None)) for name in strangers]
    legend = [
        ("counted in", _INCLUDED),
        ("there, not counted in", _NOT_COUNTED),
        ("round aborted", _ABORTED),
        ("not there", FAINT),
    ]
    return matrix("Who contributed to which round", rows, legend, Axis(label="round"))


def peer_label(peer: PeerHistory) -> str:
    """How a peer is named beside a row."""
    return f"{peer.name} {peer.peer}" if peer.peer and peer.peer != peer.name else peer.name


_LOSS = Axis(label="loss (nats per token)")


def _in_order(history: SwarmHistory) -> list[PeerHistory]:
    return [history.peers[name] for name in sorted(history.peers)]


def _loss_per_life(peer: PeerHistory) -> list[list[tuple[float, float]]]:
    """One line per life: none across the time a peer was away."""
    starts = [life.started_s for life in peer.lives[1:]]
    lines: list[list[tuple[float, float]]] = [[] for _ in peer.lives]
    for point in peer.points:
        lines[bisect_right(starts, point.unix_s)].append((float(point.step), point.loss))
    return lines


def _held_out(history: SwarmHistory) -> list[tuple[float, float]]:
    """Evaluations at the steps that trainers had reached when the event was written."""
    points = []
    for event in history.evaluations:
        steps = [
            point.step
            for peer in history.peers.values()
            for point in peer.points
            if point.unix_s <= event.unix_s
        ]
        points.append((float(max(steps, default=0)), event.loss))
    return points


def _bars(peer: PeerHistory, start_s: float, last_s: float) -> list[Bar]:
    bars: list[Bar] = []
    for index, life in enumerate(peer.lives):
        end_s = last_s if life.ended_s is None else life.ended_s
        ready_s = end_s if life.ready_s is None else min(life.ready_s, end_s)
        begun, ready, ended = (s - start_s for s in (life.started_s, ready_s, end_s))
        notes = {"killed": "killed", "stopped": "left", "ended": "finished"}
        note = notes.get(life.how, "")
        if life.how == "killed" and index + 1 < len(peer.lives):
            note = ""  # the mark is enough: the word would lie on the next bar
        bars.append(Bar(begun, ready, _CATCHING_UP, "starting and catching up"))
        bars.append(Bar(ready, ended, _TRAINING, "training"))
        if life.how == "killed":
            width = 0.008 * (last_s - start_s)
            bars.append(Bar(ended - width / 2, ended + width / 2, _KILLED, "killed"))
        bars[-1] = Bar(bars[-1].start, bars[-1].end, bars[-1].colour, bars[-1].label, note)
    return bars


def _cells(history: SwarmHistory, short_id: str, peer: PeerHistory | None) -> list[str]:
    return [
        _cell(history.rounds.get(number), short_id, peer) for number in range(history.next_round)
    ]


def _cell(past: RoundHistory | None, short_id: str, peer: PeerHistory | None) -> str:
    if past is None:
        return "#FFFFFF"
    there = peer is not None and peer.alive_at(past.decided_s)
    if past.kind == "record" and short_id in past.contributors:
        return _INCLUDED
    if past.kind != "record":
        return _ABORTED if there or peer is None else FAINT
    return _NOT_COUNTED if there else FAINT


def pictures(history: SwarmHistory, *, parameters: int, peers: int) -> Sequence[tuple[str, str]]:
    """All pictures as (file name without suffix, SVG)."""
    return (
        ("loss-by-steps", loss_by_steps(history)),
        ("loss-by-bytes", loss_by_bytes(history, parameters=parameters, peers=peers)),
        ("peers", peer_timeline(history)),
        ("contributions", contribution_matrix(history)),
    )
