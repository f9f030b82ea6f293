"""The diary and the changing line."""

from __future__ import annotations

import io
import logging

from rich.console import Console

from runnel.node.events import Evaluated, InnerProgress, PeerReady, RoundDecided, TrafficCounted
from runnel.tools.cli_screen import Screen


def screen(*, is_terminal: bool = False) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=100)
    return Screen(console, log_level="INFO"), out


def test_log_lines_stand_one_below_the_other_with_their_time() -> None:
    shown, out = screen()
    long = "x" * 300
    with shown:
        logging.getLogger("runnel.node").info("round %d done", 3)
        logging.getLogger("runnel.node").debug("not for people")
        logging.getLogger("runnel.dht").warning("[bold]%s", long)
    logging.getLogger("runnel.node").warning("after the end")
    lines = out.getvalue().splitlines()
    assert [line[8:] for line in lines] == [" round 3 done", f" [bold]{long}"]


def test_the_line_follows_the_events() -> None:
    shown, _ = screen()
    assert shown.text() == "starting"
    shown.on_event(PeerReady(unix_s=0.0, round=5, members=3, seconds=1.0))
    shown.on_event(
        InnerProgress(unix_s=0.0, step=40, round=5, loss=2.5, tokens=9, tokens_per_s=4e4, lr=0.1)
    )
    shown.on_event(TrafficCounted(unix_s=0.0, sent={"a": 1_000, "b": 500}, received={"a": 10}))
    shown.on_event(Evaluated(unix_s=0.0, round=5, loss=2.25, tokens=10))
    shown.on_event(
        RoundDecided(
            unix_s=0.0, round=5, kind="record", fragment=1, contributors=(), members=4, seconds=1.0
        )
    )
    assert shown.text() == (
        "round 6  step 40  4 peers  loss 2.500  held-out 2.250  40,000 tokens/s"
        "  1.5 kB up, 10 B down"
    )


def test_steps_without_gradients_show_their_passes_and_bytes() -> None:
    shown, _ = screen()
    report = InnerProgress(
        unix_s=0.0,
        step=40,
        round=5,
        loss=2.5,
        tokens=9,
        tokens_per_s=100.0,
        lr=0.0,
        forwards_per_s=12.5,
    )
    shown.on_event(report)
    shown.on_event(TrafficCounted(unix_s=0.0, sent={"control": 40_000}, received={}))
    assert shown.text().endswith(
        "100 tokens/s  12.5 forwards/s  40 kB up, 0 B down (1 kB up a step)"
    )


def test_on_a_terminal_the_line_is_drawn_and_gone_at_the_end() -> None:
    shown, out = screen(is_terminal=True)
    with shown:
        shown.on_event(PeerReady(unix_s=0.0, round=5, members=3, seconds=1.0))
        logging.getLogger("runnel.node").info("hello")
    assert "hello" in out.getvalue()
    assert "3 peers" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")
