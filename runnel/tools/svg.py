"""Pictures as SVG text: a line chart, a timeline, a matrix. No dependency, sharp at every size.

Colours are those of Okabe and Ito, which people with colour-blindness tell apart; lines differ in
dashes too. All text is escaped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F6000", "#444444")
GREY, INK, FAINT = "#777777", "#222222", "#E4E4E4"
_FONT = "font-family=\"system-ui, 'DejaVu Sans', Arial, sans-serif\""


def plain_number(value: float) -> str:
    """A tick's label: "0", "0.25", "1,200"."""
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a chart; `dots` draws the points alone."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    width: float = 2.0
    dashed: bool = False
    dots: bool = False
    opacity: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A direction of a chart: its label with the unit, and how ticks are written."""

    label: str
    tick: Callable[[float], str] = plain_number
    is_log: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A span of a timeline's row, in the axis' unit, with an optional word at its end."""

    start: float
    end: float
    colour: str
    label: str
    note: str = ""


@dataclass(slots=True)
class Drawing:
    """SVG elements under construction; y grows downwards, in pixels."""

    width: float
    height: float
    elements: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, **style: object) -> None:
        """A line of text; `anchor`, `size`, `fill`, `weight`, `turn` as wanted."""
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if style.get("turn") else ""
        self.elements.append(
            f'<text x="{x:.1f}" y="{y:.1f}" {_FONT} font-size="{style.get("size", 12)}" '
            f'fill="{style.get("fill", INK)}" text-anchor="{style.get("anchor", "start")}" '
            f'font-weight="{style.get("weight", "normal")}"{turn}>{escape(text)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = FAINT) -> None:
        """A hairline."""
        self.elements.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
        )

    def box(self, corner: tuple[float, float], size: tuple[float, float], colour: str) -> None:
        """A filled rectangle."""
        (x, y), (width, height) = corner, size
        self.elements.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.5):.2f}" '
            f'height="{height:.2f}" fill="{colour}"/>'
        )

    def path(self, points: Sequence[tuple[float, float]], series: Series) -> None:
        """A series, in pixels."""
        if series.dots or len(points) == 1:
            self.elements += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{series.colour}"/>'
                for x, y in points
            ]
            return
        dashes = ' stroke-dasharray="7 4"' if series.dashed else ""
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.elements.append(
            f'<polyline points="{corners}" fill="none" stroke="{series.colour}" '
            f'stroke-width="{series.width}" stroke-linejoin="round" '
            f'opacity="{series.opacity}"{dashes}/>'
        )

    def legend(self, x: float, y: float, entries: Sequence[Series | tuple[str, str]]) -> None:
        """Samples with words, in a row: of a series, or of a box as (word, colour)."""
        for entry in entries:
            if isinstance(entry, Series):
                sample = [(x + 9, y - 4)] if entry.dots else [(x, y - 4), (x + 24, y - 4)]
                self.path(sample, entry)
                label = entry.label
            else:
                label = entry[0]
                self.box((x + 4, y - 11), (14, 12), entry[1])
            self.text(x + 30, y, label)
            x += 30 + 7.2 * len(label) + 18

    def render(self) -> str:
        """The SVG text."""
        size = f'viewBox="0 0 {self.width:.0f} {self.height:.0f}"'
        background = f'<rect width="{self.width:.0f}" height="{self.height:.0f}" fill="white"/>'
        body = "\n".join([background, *self.elements])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} width="{self.width:.0f}" '
            f'height="{self.height:.0f}">\n{body}\n</svg>\n'
        )


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to pixels along one axis."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of `value`."""
        low, high, value = (
            (math.log10(v) for v in (self.low, self.high, value))
            if self.is_log
            else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the range, seven or so."""
        if self.is_log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            step = max(1, math.ceil((last - first) / 8))
            factors = (1, 2, 5) if last - first < 3 else (1,)
            values = [10.0**p * factor for p in range(first, last + 1, step) for factor in factors]
            return [value for value in values if self.low <= value <= self.high]
        return round_values(self.low, self.high)


def round_values(low: float, high: float, count: int = 7) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten, within [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if raw <= power * factor * 1.0001)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def line_chart(title: str, series: Sequence[Series], x_axis: Axis, y_axis: Axis) -> str:
    """Lines over a plane with ticks, labels and a legend. Points that are not finite are left out."""
    drawing = Drawing(860, 420)
    drawing.text(16, 26, title, size=16, weight="bold")
    shown = [(one, _finite(one.points, x_axis, y_axis)) for one in series]
    shown = [(one, points) for one, points in shown if points]
    drawing.legend(72, 52, [one for one in series if one.label and (one.points or shown)])
    if not shown:
        drawing.text(430, 220, "nothing to show yet", anchor="middle", fill=GREY)
        return drawing.render()
    xs = [x for _, points in shown for x, _ in points]
    ys = [y for _, points in shown for _, y in points]
    x_scale = Scale(*_range(xs, is_log=x_axis.is_log), 72, 836, x_axis.is_log)
    y_scale = Scale(*_range(ys, is_log=y_axis.is_log), 366, 72, y_axis.is_log)
    for tick in x_scale.ticks():
        drawing.line(x_scale(tick), 72, x_scale(tick), 366)
        drawing.text(x_scale(tick), 384, x_axis.tick(tick), anchor="middle")
    for tick in y_scale.ticks():
        drawing.line(72, y_scale(tick), 836, y_scale(tick))
        drawing.text(64, y_scale(tick) + 4, y_axis.tick(tick), anchor="end")
    drawing.line(72, 366, 836, 366, INK)
    drawing.line(72, 72, 72, 366, INK)
    drawing.text(454, 408, x_axis.label, anchor="middle", fill=GREY)
    drawing.text(20, 219, y_axis.label, anchor="middle", fill=GREY, turn=True)
    for one, points in shown:
        drawing.path([(x_scale(x), y_scale(y)) for x, y in points], one)
    return drawing.render()


def timeline(title: str, rows: Sequence[tuple[str, Sequence[Bar]]], x_axis: Axis) -> str:
    """One row of bars per name over a common axis; the bars' labels make the legend."""
    height = 34 * len(rows)
    drawing = Drawing(860, height + 124)
    drawing.text(16, 26, title, size=16, weight="bold")
    bars = [bar for _, row in rows for bar in row]
    legend = list(dict.fromkeys((bar.label, bar.colour) for bar in bars))
    drawing.legend(150, 52, legend)
    end = max([bar.end for bar in bars], default=1.0) or 1.0
    scale = Scale(0.0, end, 150, 790)
    for tick in scale.ticks():
        drawing.line(scale(tick), 66, scale(tick), 70 + height)
        drawing.text(scale(tick), 88 + height, x_axis.tick(tick), anchor="middle")
    drawing.text(470, 114 + height, x_axis.label, anchor="middle", fill=GREY)
    for index, (name, row) in enumerate(rows):
        y = 72.0 + 34 * index
        drawing.text(140, y + 17, name, anchor="end")
        for bar in row:
            drawing.box(
                (scale(bar.start), y + 2), (scale(bar.end) - scale(bar.start), 20), bar.colour
            )
        for bar in row:
            if bar.note:
                drawing.text(scale(bar.end) + 5, y + 17, bar.note, size=11.5)
    return drawing.render()


def matrix(
    title: str,
    rows: Sequence[tuple[str, Sequence[str]]],
    legend: Sequence[tuple[str, str]],
    x_axis: Axis,
) -> str:
    """A grid of coloured cells, one row per name, columns numbered from 0."""
    count = max([len(cells) for _, cells in rows], default=0)
    width = min(28.0, 680 / max(count, 1))
    height = 26 * len(rows)
    drawing = Drawing(860, height + 124)
    drawing.text(16, 26, title, size=16, weight="bold")
    drawing.legend(150, 52, legend)
    gap = min(2.0, width / 6)
    for index, (name, cells) in enumerate(rows):
        y = 68.0 + 26 * index
        drawing.text(140, y + 16, name, anchor="end")
        for column, colour in enumerate(cells):
            drawing.box((150 + width * column, y + 1), (width - gap, 22), colour)
    for tick in round_values(0, max(count - 1, 1), 8):
        if tick == round(tick) and tick < count:
            x = 150 + width * (tick + 0.5) - gap / 2
            drawing.text(x, 86 + height, x_axis.tick(tick), anchor="middle")
    drawing.text(150 + width * count / 2, 112 + height, x_axis.label, anchor="middle", fill=GREY)
    return drawing.render()


def _finite(
    points: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis
) -> list[tuple[float, float]]:
    return [
        (x, y)
        for x, y in points
        if math.isfinite(x)
        and math.isfinite(y)
        and (x > 0 or not x_axis.is_log)
        and (y > 0 or not y_axis.is_log)
    ]


def _range(values: Sequence[float], *, is_log: bool) -> tuple[float, float]:
    """The values' range with a little air; never empty."""
    low, high = min(values), max(values)
    if is_log:
        if high < low * 10:
            low, high = low / 3, high * 3
        return low / 1.2, high * 1.2
    size = max(abs(low), abs(high))
    if high - low <= 1e-6 * size or high <= low:
        air = 0.001 * size or 0.5
        return low - air, high + air
    air = 0.04 * (high - low)
    return (0.0 if 0 <= low < 0.3 * high else low - air), high + air
