"""The waterfall of a simulation: what each peer did for each round, for whom it waited, and what struck it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runnel.tools import sim_faults as do
from runnel.tools.sim_watch import Phase, Span
from runnel.tools.sim_world import Course, Struck
from runnel.tools.svg import GREY, INK, Drawing, Scale, round_values

COLOURS = {
    Phase.TRAIN: "#EDF1F5",
    Phase.COMMIT: "#56B4E9",
    Phase.SET: "#0072B2",
    Phase.SCATTER: "#E69F00",
    Phase.REDUCE: "#7F6000",
    Phase.GATHER: "#CC79A7",
    Phase.OUTCOME: "#009E73",
    Phase.AWAY: "#BBBBBB",
}
FAULT, MENDED, BRANCH = "#B00020", "#444444", "#7B1FA2"
_WIDTH, _LEFT, _RIGHT, _TOP = 1280.0, 58.0, 1264.0, 104.0
_LETTER = 0.58
"""Width of a digit or letter in parts of the font's size."""


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a simulation that is shown, in seconds."""

    start_s: float
    end_s: float


def decided_at(course: Course) -> dict[int, tuple[float, str]]:
    """When each round was decided first as most saw it, and how: "record", "abort" or "branch"."""
    seen: dict[int, dict[str, list[float]]] = {}
    for when_s, number, kind in course.decisions:
        seen.setdefault(number, {}).setdefault(kind, []).append(when_s)
    most = {n: max(kinds, key=lambda k: len(kinds[k])) for n, kinds in seen.items()}
    return {number: (seen[number][kind][0], kind) for number, kind in sorted(most.items())}


def window_around(course: Course, number: int, *, rounds: int) -> Window:
    """So many rounds, round `number` in the midst of them."""
    times = [when for _, (when, _) in sorted(decided_at(course).items())]
    numbers = sorted(decided_at(course))
    if not times:
        return Window(0.0, max(1.0, course.settled_s))
    place = numbers.index(number) if number in numbers else 0
    first = max(0, min(place - rounds // 2, len(times) - rounds))
    start = times[first - 1] if first else 0.0
    end = times[min(first + rounds, len(times)) - 1]
    air = 0.03 * (end - start)
    return Window(max(0.0, start - air), end + air)


def waterfall(title: str, course: Course, spans: Sequence[Span], window: Window) -> str:
    """The SVG: a row for each peer, time to the right."""
    peers = sorted({span.peer for span in spans})
    row = 26.0 if len(peers) <= 20 else 13.0
    drawing = Drawing(_WIDTH, _TOP + row * len(peers) + 58)
    drawing.text(16, 26, title, size=16, weight="bold")
    drawing.legend(_LEFT - 4, 54, [*((p.value, c) for p, c in COLOURS.items()), ("fault", FAULT)])
    scale = Scale(window.start_s, window.end_s, _LEFT, _RIGHT)
    bottom = _TOP + row * len(peers)
    rows = {peer: _TOP + row * index for index, peer in enumerate(peers)}
    for peer, y in rows.items():
        if len(peers) <= 20 or peer % 2 == 0:
            size = 12 if row > 20 else 10
            drawing.text(_LEFT - 8, y + row - 0.32 * row, f"{peer:02d}", anchor="end", size=size)
    shown = [s for s in spans if s.end_s > window.start_s and s.start_s < window.end_s]
    for span in shown:
        _draw_span(drawing, span, scale, rows[span.peer], row)
    for span in shown:
        _label(drawing, span, scale, rows[span.peer], row)
    _draw_rounds(drawing, course, scale, bottom)
    for struck in course.struck:
        if struck.start_s < window.end_s and min(struck.end_s, course.settled_s) > window.start_s:
            _draw_fault(drawing, struck, scale, rows, row)
    for when_s, peer, _ in course.branches:
        if window.start_s < when_s < window.end_s and peer in rows:
            _mark(drawing, "branch", scale(when_s), rows[peer], row)
    for tick in round_values(window.start_s, window.end_s, 9):
        drawing.line(scale(tick), bottom, scale(tick), bottom + 5, INK)
        drawing.text(scale(tick), bottom + 20, f"{tick:g}", anchor="middle")
    middle = (_LEFT + _RIGHT) / 2
    label = "seconds of the simulation; digits in a bar: for whom it waited, at last"
    drawing.text(middle, bottom + 44, label, anchor="middle", fill=GREY)
    return drawing.render()


def _ends(span: Span, scale: Scale) -> tuple[float, float]:
    """Left and right, in pixels, of what is shown of a span."""
    return max(_LEFT, scale(span.start_s)), min(_RIGHT, scale(span.end_s))


def _draw_span(drawing: Drawing, span: Span, scale: Scale, y: float, row: float) -> None:
    left, right = _ends(span, scale)
    if right > left:
        drawing.box((left, y + 1), (right - left, row - 4), COLOURS[span.phase])


def _label(drawing: Drawing, span: Span, scale: Scale, y: float, row: float) -> None:
    """Names whom a span waited for, as far as there is room."""
    if not span.waited_for or span.phase is Phase.TRAIN:
        return
    left, right = _ends(span, scale)
    size = 11.0 if row > 20 else 8.5
    names = [f"{peer:02d}" for peer in span.waited_for]
    for count in range(len(names), 0, -1):
        more = f"+{len(names) - count}" if count < len(names) else ""
        text = " ".join(names[:count]) + more
        if len(text) * size * _LETTER + 4 <= right - left:
            dark = span.phase in {Phase.SET, Phase.REDUCE, Phase.OUTCOME}
            fill = "white" if dark else INK
            drawing.text(left + 2, y + row - 0.33 * row - 1, text, size=size, fill=fill)
            return


def _draw_rounds(drawing: Drawing, course: Course, scale: Scale, bottom: float) -> None:
    """A line where a round was decided first, its number above, what was no record in words."""
    last = float("-inf")
    for number, (when_s, kind) in sorted(decided_at(course).items()):
        x = scale(when_s)
        if not _LEFT <= x <= _RIGHT:
            continue
        drawing.line(x, _TOP - 6, x, bottom, GREY if kind == "record" else FAULT)
        text = f"{number}" if kind == "record" else f"{number} {kind}"
        if x - last >= 7 * len(text) + 6 or kind != "record":
            fill = INK if kind == "record" else FAULT
            drawing.text(x, _TOP - 10, text, anchor="end", size=11, fill=fill)
            last = x
    drawing.text(_LEFT - 8, _TOP - 10, "round", anchor="end", size=11, fill=GREY)


def _draw_fault(
    drawing: Drawing, struck: Struck, scale: Scale, rows: dict[int, float], row: float
) -> None:
    """A mark where it began and a strip while it lasts, in the rows of those it struck."""
    deed = struck.fault.do
    peers = deed.peers if isinstance(deed, do.Partition) else (struck.fault.peer,)
    word = type(deed).__name__.lower()
    colour = MENDED if isinstance(deed, do.Restart | do.Join) else FAULT
    left = max(_LEFT, scale(struck.start_s))
    right = min(_RIGHT, scale(struck.end_s) if struck.end_s < float("inf") else _RIGHT)
    for peer in peers:
        y = rows.get(peer)
        if y is None:
            continue
        drawing.box((left, y + row - 3), (max(right - left, 2.0), 2.5), colour)
        if scale(struck.start_s) >= _LEFT:
            _mark(drawing, word, left, y, row, colour)


def _mark(
    drawing: Drawing, word: str, x: float, y: float, row: float, colour: str = BRANCH
) -> None:
    """A tick and a word in a row."""
    size = 11.0 if row > 20 else 8.5
    drawing.box((x - 1, y), (2.0, row - 1), colour)
    room = 4 + len(word) * size * _LETTER
    at = x + 3 if x + room < _RIGHT else x - room
    drawing.box((at - 1, y + 1), (room - 2, row - 5), "white")
    drawing.text(at, y + row - 0.33 * row - 1, word, size=size, fill=colour)
