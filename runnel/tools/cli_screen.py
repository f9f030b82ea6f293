"""What `launch` and `join` show: the diary of the log, and on a terminal a line that keeps changing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.live import Live
from rich.text import Text

from runnel.node.events import (
    Evaluated,
    Event,
    InnerProgress,
    PeerReady,
    RoundDecided,
    TrafficCounted,
)
from runnel.node.wording import size_text

if TYPE_CHECKING:
    from rich.console import Console

_FORMAT, _TIME = "%(asctime)s %(message)s", "%H:%M:%S"


class Screen:
    """Shows a peer's log and progress until it exits. Events may come from any thread."""

    def __init__(self, console: Console, *, log_level: str) -> None:
        self._console = console
        self._facts: dict[str, str] = {}
        self._step = 0
        self._handler = _ConsoleHandler(self._print)
        self._handler.setLevel(log_level)
        self._level_before = logging.NOTSET
        self._live = Live(
            get_renderable=self._line, console=console, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> Self:
        logger = logging.getLogger("runnel")
        self._level_before = logger.level
        logger.addHandler(self._handler)
        logger.setLevel(self._handler.level)
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
        logger = logging.getLogger("runnel")
        logger.removeHandler(self._handler)
        logger.setLevel(self._level_before)

    def on_event(self, event: Event) -> None:
        """Takes up what the changing line shows."""
        match event:
            case PeerReady():
                self._facts |= {"round": f"round {event.round}", "peers": f"{event.members} peers"}
            case RoundDecided():
                number = event.round + 1
                self._facts |= {"round": f"round {number}", "peers": f"{event.members} peers"}
            case InnerProgress():
                self._facts |= {"step": f"step {event.step}", "loss": f"loss {event.loss:.3f}"}
                if event.tokens_per_s:  # a first step has nothing before it
                    self._facts["speed"] = f"{event.tokens_per_s:,.0f} tokens/s"
                if event.forwards_per_s:
                    self._facts["forwards"] = f"{event.forwards_per_s:,.1f} forwards/s"
                self._step = event.step
            case Evaluated():
                self._facts["held-out"] = f"held-out {event.loss:.3f}"
            case TrafficCounted():
                up, down = sum(event.sent.values()), sum(event.received.values())
                self._facts["bytes"] = f"{size_text(up)} up, {size_text(down)} down"
                if self._step and "forwards" in self._facts:
                    self._facts["bytes"] += f" ({size_text(up // self._step)} up a step)"
            case _:
                pass

    def text(self) -> str:
        """The changing line as it is now."""
        order = ("round", "step", "peers", "loss", "held-out", "speed", "forwards", "bytes")
        facts = self._facts
        return "  ".join(facts[name] for name in order if name in facts) or "starting"

    def _line(self) -> Text:
        return Text(self.text(), style="dim", no_wrap=True, overflow="ellipsis")

    def _print(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)


class _ConsoleHandler(logging.Handler):
    """Log records as lines above the changing one."""

    def __init__(self, show: Callable[[str, str], None]) -> None:
        super().__init__()
        self._show = show
        self.setFormatter(logging.Formatter(_FORMAT, _TIME))

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        style = "bold" if record.levelno >= logging.WARNING else ""
        self._show(self.format(record), style)
