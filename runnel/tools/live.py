"""What a person watches while several peers train: a picture on a terminal, lines elsewhere, or JSON.

All three take the same events, from any thread: ``view.feed(event, source="peer 1")``.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from runnel.node.event_lines import to_json
from runnel.node.events import InnerProgress
from runnel.node.wording import count_text, size_text
from runnel.tools.history import SwarmHistory
from runnel.tools.peer_history import data_parallel_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rich.console import Console, RenderableType

    from runnel.node.events import Event
    from runnel.tools.peer_history import PeerHistory

_BLOCKS = "▁▂▃▄▅▆▇█"
_SHOWN_LINES = 6
_STYLES = {"training": "green", "catching up": "yellow", "killed": "bold red", "starting": "dim"}


class Mode(Enum):
    """How to show: `AUTO` is a picture on a terminal and lines elsewhere."""

    AUTO = "auto"
    PLAIN = "plain"
    JSON = "json"


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveFacts:
    """What the events do not say: the run's name, the model's size, the usual number of peers."""

    run_name: str
    parameters: int
    peers: int
    rounds: int | None = None


class View(Protocol):
    """Shows events until it exits."""

    def feed(self, event: Event, *, source: str = "") -> None:
        """Takes up an event of the peer that a reader knows as `source`. Any thread."""
        ...

    def killed(self, source: str, unix_s: float) -> None:
        """Takes up that somebody killed a peer; it cannot say so itself."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def open_view(console: Console, facts: LiveFacts, mode: Mode = Mode.AUTO) -> View:
    """The view for this console and mode."""
    if mode is Mode.JSON:
        return JsonView(console)
    if mode is Mode.AUTO and console.is_terminal:
        return LiveView(console, facts)
    return PlainView(console)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Values as blocks of eight heights, the lowest to the highest, each the mean of its share."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    count = min(width, len(values))
    edges = [index * len(values) // count for index in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


class _Shown:
    """Entering and leaving without anything to do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing to end."""


class JsonView(_Shown):
    """One line of JSON per event, with the source as member "source" if there is one."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def feed(self, event: Event, *, source: str = "") -> None:
        """See `View.feed`."""
        line = to_json(event)
        if not line.startswith("{"):  # not an event at all
            line = json.dumps({"event": "UnknownEvent", "unix_s": event.unix_s, "line": line})
        if source:
            line = f'{line[:-1]}, "source": {json.dumps(source)}}}'
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def killed(self, source: str, unix_s: float) -> None:
        """See `View.killed`."""
        told = {"event": "Killed", "unix_s": unix_s, "source": source}
        self._console.print(json.dumps(told), markup=False, highlight=False, soft_wrap=True)


class PlainView(_Shown):
    """The diary, one line after the other, and each peer's progress every tenth time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._history = SwarmHistory()
        self._reports = 0
        self._lock = threading.Lock()

    def feed(self, event: Event, *, source: str = "") -> None:
        """See `View.feed`."""
        with self._lock:
            line = self._history.apply(source, event)
            if line is not None:
                self._print(event.unix_s, line)
            if isinstance(event, InnerProgress):
                self._reports += 1
                if self._reports % 10 == 0:
                    self._print(event.unix_s, progress_text(self._history))

    def killed(self, source: str, unix_s: float) -> None:
        """See `View.killed`."""
        with self._lock:
            self._print(unix_s, self._history.mark_killed(source, unix_s))

    def _print(self, unix_s: float, text: str) -> None:
        line = f"{clock_text(unix_s)} {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveView:
    """A picture that keeps changing; at the end its last state stays on the screen."""

    def __init__(self, console: Console, facts: LiveFacts) -> None:
        self._facts = facts
        self._history = SwarmHistory()
        self._lock = threading.Lock()
        self._live = Live(get_renderable=self._picture, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def feed(self, event: Event, *, source: str = "") -> None:
        """See `View.feed`."""
        with self._lock:
            self._history.apply(source, event)

    def killed(self, source: str, unix_s: float) -> None:
        """See `View.killed`."""
        with self._lock:
            self._history.mark_killed(source, unix_s)

    def _picture(self) -> RenderableType:
        with self._lock:
            return picture(self._history, self._facts)


def picture(history: SwarmHistory, facts: LiveFacts) -> RenderableType:
    """The whole picture as it is now."""
    title = f"{facts.run_name} · round {history.next_round}"
    if facts.rounds:
        title += f" of {facts.rounds}"
    title += f" · {count_text(history.members, 'member')}"
    losses = [loss for _, loss, _ in history.mean_loss(bins=200)]
    loss = f"loss {losses[-1]:.3f}  {sparkline(losses)}" if losses else "loss: no step yet"
    lines = list(history.lines)[-_SHOWN_LINES:]
    told = Text("\n".join(f"{clock_text(unix_s)} {line}" for unix_s, line in lines), style="dim")
    parts: list[RenderableType] = [
        Text(loss, style="bold"),
        _peer_table(history),
        Text(bytes_text(history, facts)),
        told,
    ]
    return Panel(Group(*parts), title=Text(title), border_style="cyan", title_align="left")


def progress_text(history: SwarmHistory) -> str:
    """Where the swarm is, in one line."""
    losses = history.mean_loss(bins=200)
    speed = sum(peer.tokens_per_s for peer in history.peers.values() if peer.state == "training")
    loss = f", loss {losses[-1][1]:.3f}" if losses else ""
    return (
        f"step {history.step:,}, round {history.next_round}, "
        f"{count_text(history.members, 'member')}{loss}, {speed:,.0f} tokens/s"
    )


def bytes_text(history: SwarmHistory, facts: LiveFacts) -> str:
    """The most that one peer sent, against data parallel for the same steps."""
    sent = [peer.sent_bytes for peer in history.peers.values() if peer.sent_bytes]
    if not sent:
        return "nothing sent yet"
    theirs = data_parallel_bytes(facts.parameters, facts.peers, history.step)
    text = f"no peer sent more than {size_text(max(sent))}"
    if theirs:
        text += f"; data parallel would have sent {size_text(theirs)}: {theirs / max(sent):,.0f} times as much"
    return text


def clock_text(unix_s: float) -> str:
    """The time of day here, as logs write it."""
    return time.strftime("%H:%M:%S", time.localtime(unix_s))


def _peer_table(history: SwarmHistory) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("peer", "id", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("step", "loss", "tokens/s", "sent", "rounds", "late"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in sorted(history.peers):
        table.add_row(*_peer_row(history, history.peers[name]))
    return table


def _peer_row(history: SwarmHistory, peer: PeerHistory) -> list[str | Text]:
    active = peer.state == "training" and bool(peer.points)
    return [
        Text(peer.name),
        Text(peer.peer, style="dim"),
        Text(peer.state, style=_STYLES.get(peer.state, "")),
        f"{peer.step:,}" if peer.points else "",
        f"{peer.points[-1].loss:.3f}" if peer.points else "",
        f"{peer.tokens_per_s:,.0f}" if active else "",
        size_text(peer.sent_bytes) if peer.sent_bytes else "",
        str(history.included(peer.peer)),
        str(peer.late),
    ]
