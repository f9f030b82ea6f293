"""The live view: the same events as a picture, as lines, as JSON."""

from __future__ import annotations

import io
import json
import math
import threading

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from runnel.node.event_lines import from_json
from runnel.node.events import (
    Event,
    InnerProgress,
    MemberJoined,
    PeerReady,
    PeerStarted,
    PeerStopped,
    RoundDecided,
    TrafficCounted,
    UnknownEvent,
)
from runnel.tools.history import SwarmHistory
from runnel.tools.live import (
    JsonView,
    LiveFacts,
    LiveView,
    Mode,
    PlainView,
    bytes_text,
    open_view,
    picture,
    progress_text,
    sparkline,
)

FACTS = LiveFacts(run_name="demo [bold]", parameters=1_000_000, peers=2, rounds=24)
START_S = 1_700_000_000.0


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=110, color_system=None)


def text_of(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def progress(at: float, step: int, loss: float) -> InnerProgress:
    return InnerProgress(
        unix_s=START_S + at,
        step=step,
        round=0,
        loss=loss,
        tokens=100,
        tokens_per_s=4120.0,
        lr=1e-3,
    )


def decided(at: float, number: int) -> RoundDecided:
    return RoundDecided(
        unix_s=START_S + at,
        round=number,
        kind="record",
        fragment=0,
        contributors=("aaaa0001", "aaaa0002"),
        members=2,
        seconds=2.1,
        sent_bytes=50_000,
        state_root="ab",
    )


def story() -> list[tuple[str, Event]]:
    told: list[tuple[str, Event]] = []
    for index, name in enumerate(("peer 1", "peer 2")):
        at = START_S + index
        told += [
            (name, PeerStarted(unix_s=at, peer=f"aaaa000{index + 1}", run="demo")),
            (name, PeerReady(unix_s=at + 1, round=0, members=2, seconds=1.0)),
            (name, MemberJoined(unix_s=at + 1, peer="aaaa0002")),
        ]
    for number in range(4):
        for name in ("peer 1", "peer 2"):
            at = 10.0 + 5 * number
            told += [
                (name, progress(at, 25 * (number + 1), 5.0 - number)),
                (name, decided(at + 1, number)),
                (name, TrafficCounted(unix_s=START_S + at + 1, sent={"x": 50_000 * (number + 1)})),
            ]
    return told


def history() -> SwarmHistory:
    result = SwarmHistory()
    for name, event in story():
        result.apply(name, event)
    return result


def shown(past: SwarmHistory) -> str:
    screen = console()
    screen.print(picture(past, FACTS))
    return text_of(screen)


def test_the_picture_shows_round_members_peers_loss_and_bytes() -> None:
    text = shown(history())
    assert "demo [bold] · round 4 of 24 · 2 members" in text
    assert "loss 2.000" in text
    assert sparkline([5, 4, 3, 2]) in text
    for name in ("peer 1", "peer 2"):
        (line,) = (line for line in text.splitlines() if name in line and "training" in line)
        assert "100" in line
        assert "4,120" in line
        assert "200 kB" in line
    assert (
        "no peer sent more than 200 kB; data parallel would have sent 200 MB: 1,000 times" in text
    )
    assert "round 3 done: 2 of 2 peers, 50 kB up, 2.1 s" in text


def test_what_all_peers_say_is_shown_once() -> None:
    lines = [line for _, line in history().lines]
    assert lines.count("peer aaaa0002 joined") == 1
    assert sum(line.startswith("round 2 done") for line in lines) == 1
    assert sum("ready at round" in line for line in lines) == 2


def test_a_killed_peer_and_one_that_left_are_named_so() -> None:
    past = history()
    past.mark_killed("peer 2", START_S + 30)
    past.apply("peer 1", PeerStopped(unix_s=START_S + 31, reason="Ctrl-C"))
    text = shown(past)
    assert "killed" in text
    assert "left" in text
    assert past.peers["peer 2"].state == "killed"


def test_an_empty_picture_says_so() -> None:
    text = shown(SwarmHistory())
    assert "no step yet" in text
    assert "nothing sent yet" in text
    assert bytes_text(SwarmHistory(), FACTS) == "nothing sent yet"


def test_the_view_follows_the_console_and_the_mode() -> None:
    assert isinstance(open_view(console(terminal=True), FACTS), LiveView)
    assert isinstance(open_view(console(), FACTS), PlainView)
    assert isinstance(open_view(console(terminal=True), FACTS, Mode.PLAIN), PlainView)
    assert isinstance(open_view(console(terminal=True), FACTS, Mode.JSON), JsonView)


def test_lines_are_plain_where_there_is_no_terminal() -> None:
    screen = console()
    with open_view(screen, FACTS) as view:
        for name, event in story():
            view.feed(event, source=name)
        for number in range(3):
            view.feed(progress(40 + number, 110 + number, 1.5), source="peer 1")
        view.killed("peer 2", START_S + 50)
    text = text_of(screen)
    assert "\x1b" not in text
    lines = [line.split(" ", 1)[1] for line in text.splitlines()]
    assert lines[0] == "peer 1: peer aaaa0001 started in run demo, 0 addresses"
    assert lines.count("round 1 done: 2 of 2 peers, 50 kB up, 2.1 s") == 1
    assert any(line.startswith("step 111, round 4, 2 members, loss ") for line in lines)
    assert lines[-1] == "peer 2: killed"


def test_json_lines_are_events_again() -> None:
    screen = console()
    long = MemberJoined(unix_s=1.0, peer="x" * 500)
    with open_view(screen, FACTS, Mode.JSON) as view:
        for name, event in story():
            view.feed(event, source=name)
        view.feed(long)
        view.feed(UnknownEvent(unix_s=0.0, kind="not JSON", line="Traceback [red]"), source="p")
        view.killed("peer 2", 5.0)
    lines = text_of(screen).splitlines()
    assert [from_json(line) for line in lines[: len(story())]] == [event for _, event in story()]
    assert json.loads(lines[0])["source"] == "peer 1"
    assert from_json(lines[-3]) == long
    assert json.loads(lines[-2])["line"] == "Traceback [red]"
    assert json.loads(lines[-1]) == {"event": "Killed", "unix_s": 5.0, "source": "peer 2"}


def test_the_live_view_draws_on_a_terminal_and_takes_events_from_any_thread() -> None:
    screen = console(terminal=True)
    with LiveView(screen, FACTS) as view:
        threads = [
            threading.Thread(target=lambda e=event, n=name: view.feed(e, source=n))
            for name, event in story()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "round 4 of 24" in text_of(screen)


@given(st.lists(st.floats()), st.integers(1, 60))
def test_a_sparkline_fits_and_has_only_blocks(values: list[float], width: int) -> None:
    line = sparkline([value / 1e10 for value in values], width)
    finite = [value for value in values if math.isfinite(value)]
    assert len(line) == min(width, len(finite))
    assert set(line) <= set("▁▂▃▄▅▆▇█")


def test_a_sparkline_falls_where_the_loss_falls() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline([math.nan, 1.0, 1.0]) == "▁▁"
    assert sparkline([]) == ""


def test_progress_in_one_line_counts_only_those_who_train() -> None:
    past = history()
    assert "8,240 tokens/s" in progress_text(past)
    past.mark_killed("peer 2", START_S + 100)
    assert "4,120 tokens/s" in progress_text(past)
    assert "loss" not in progress_text(SwarmHistory())
