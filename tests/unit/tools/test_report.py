"""The report: from journals to sentences, pictures and a page that stands alone."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import InputFileError, StorageError
from runnel.node.events import (
    Evaluated,
    Event,
    InnerProgress,
    MemberJoined,
    MemberRemoved,
    PeerReady,
    PeerStarted,
    PeerStopped,
    RoundDecided,
    RoundLate,
    RunEnded,
    StateFetched,
    TrafficCounted,
)
from runnel.node.journal import Journal
from runnel.tools.history import SwarmHistory
from runnel.tools.peer_history import data_parallel_bytes
from runnel.tools.report import ReportFacts, build_report, read_history
from runnel.tools.report_pictures import contribution_matrix, peer_timeline
from runnel.tools.report_words import duration_text, same_bits, summary
from runnel.tools.svg import COLOURS, Axis, Scale, Series, line_chart, round_values

START_S = 1_700_000_000.0
PARAMETERS = 820_000
IDS = {f"peer {n}": f"{n}f3a91c{n}" for n in range(1, 6)}
ROOT = "ab" * 32
ROUND_S = 6.0
ROUNDS = 24
FACTS = ReportFacts(run_name="demo <run>", parameters=PARAMETERS, peers=4)


def life(
    name: str, *, first: int, last: int, ends: bool, steps_before: int = 0
) -> list[tuple[float, Event]]:
    """A peer's events from round `first` to `last`; times in seconds since the run's start."""
    me = IDS[name]
    begun = first * ROUND_S
    told: list[tuple[float, Event]] = [
        (begun, PeerStarted(unix_s=0, peer=me, run="demo", addresses=("a",))),
    ]
    if first:
        told.append(
            (
                begun + 1.4,
                StateFetched(
                    unix_s=0,
                    round=first,
                    size_bytes=6_560_000,
                    seconds=1.2,
                    donors=(IDS["peer 1"], IDS["peer 2"]),
                ),
            )
        )
    told.append((begun + 2.0, PeerReady(unix_s=0, round=first, members=4, seconds=2.0)))
    for number in range(first, last):
        at = (number + 1) * ROUND_S
        for part in range(1, 4):
            seen = 12 * number + 4 * part
            told.append(
                (
                    at - ROUND_S + 2 * part,
                    InnerProgress(
                        unix_s=0,
                        step=seen - steps_before,
                        round=number,
                        loss=1.7 + 3.8 * math.exp(-seen / 70) + 0.08 * math.sin(seen * int(me[0])),
                        tokens=8_000,
                        tokens_per_s=4_000.0 + 100 * first,
                        lr=1e-3,
                    ),
                )
            )
        told.append((at, decided(number)))
        sent = {"exchange": 62_000 * (number - first + 1), "agreement": 4_000 * (number + 1)}
        told.append((at, TrafficCounted(unix_s=0, sent=sent, received={"exchange": 60_000})))
    if ends:
        at = ROUNDS * ROUND_S
        told.append(
            (at, RunEnded(unix_s=0, round=ROUNDS, reason="all rounds done", state_root=ROOT))
        )
        told.append((at + 0.5, PeerStopped(unix_s=0, reason="the run ended")))
    return told


def contributors(number: int) -> tuple[str, ...]:
    present = ["peer 1", "peer 2"]
    if number < 10:
        present.append("peer 3")
    if number < 6 or number >= 15:
        present.append("peer 4")
    if number >= 14:
        present.append("peer 5")
    if number == 4:
        present.remove("peer 2")
    return tuple(IDS[name] for name in present)


def decided(number: int, root: str = "") -> RoundDecided:
    kind = "abort" if number == 10 else "record"
    return RoundDecided(
        unix_s=0,
        round=number,
        kind=kind,
        fragment=number % 3,
        contributors=() if kind == "abort" else contributors(number),
        members=4,
        seconds=5.8,
        sent_bytes=66_000,
        state_root=root or f"{number:064x}",
    )


def run_of_five() -> dict[str, list[tuple[float, Event]]]:
    """Two stay; 3 is killed in round 10; 4 is killed in round 6 and comes back; 5 joins late."""
    steady = life("peer 1", first=0, last=ROUNDS, ends=True)
    for number in (5, 11, 17, 23):
        loss = 1.8 + 3.7 * math.exp(-12 * number / 70)
        steady.append(
            ((number + 1) * ROUND_S, Evaluated(unix_s=0, round=number, loss=loss, tokens=4096))
        )
    steady.append((61.0, MemberRemoved(unix_s=0, peer=IDS["peer 3"], reason="not heard")))
    second = life("peer 2", first=0, last=ROUNDS, ends=True)
    second.append((5 * ROUND_S, RoundLate(unix_s=0, round=4, reason="2 s behind")))
    second.append((14 * ROUND_S, MemberJoined(unix_s=0, peer=IDS["peer 5"])))
    return {
        "peer 1": sorted(steady, key=lambda entry: entry[0]),
        "peer 2": sorted(second, key=lambda entry: entry[0]),
        "peer 3": life("peer 3", first=0, last=10, ends=False),
        "peer 4": life("peer 4", first=0, last=6, ends=False)
        + life("peer 4", first=14, last=ROUNDS, ends=True, steps_before=160),
        "peer 5": life("peer 5", first=13, last=ROUNDS, ends=True, steps_before=150),
    }


def stamped(at: float, event: Event) -> Event:
    return type(event)(
        **{
            field: getattr(event, field) if field != "unix_s" else START_S + at
            for field in event.__dataclass_fields__
        }
    )


def history_of(run: dict[str, list[tuple[float, Event]]]) -> SwarmHistory:
    history = SwarmHistory()
    told = [(at, name, event) for name, events in run.items() for at, event in events]
    for at, name, event in sorted(told, key=lambda entry: entry[0]):
        history.apply(name, stamped(at, event))
    history.close()
    return history


@pytest.fixture
def journals(tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for name, events in run_of_five().items():
        paths[name] = tmp_path / "homes" / name / "journal.jsonl"
        journal = Journal(paths[name])
        for at, event in events:
            journal.append(stamped(at, event))
        journal.close()
    return paths


def test_the_folder_holds_a_page_that_needs_nothing_else(
    tmp_path: Path, journals: dict[str, Path]
) -> None:
    facts = ReportFacts(
        run_name="demo <run>",
        parameters=PARAMETERS,
        peers=4,
        settings={"codec": "e3m0 & error feedback"},
        sample="def main(): return <b>1</b>",
        notes=("A note.",),
    )
    page = build_report(journals, tmp_path / "out", facts=facts)
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "contributions.svg",
        "loss-by-bytes.svg",
        "loss-by-steps.svg",
        "peers.svg",
        "report.html",
        "summary.txt",
    ]
    text = page.read_text()
    assert text.count("<svg") == 4
    assert not re.search(r"(src|href)=|<script|url\(|@import", text)
    assert "def main(): return &lt;b&gt;1&lt;/b&gt;" in text
    assert "e3m0 &amp; error feedback" in text
    assert "demo &lt;run&gt;" in text
    for name, short in IDS.items():
        assert f"{name} {short}" in text
    assert (page.parent / "summary.txt").read_text().splitlines()[2] == "A note."


def test_every_picture_is_well_formed(tmp_path: Path, journals: dict[str, Path]) -> None:
    page = build_report(journals, tmp_path / "out", facts=FACTS)
    for path in page.parent.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_summary_says_what_happened_in_figures() -> None:
    told = "\n".join(summary(history_of(run_of_five()), parameters=PARAMETERS, peers=4))
    assert "5 peers trained a model of 820,000 parameters for 2 min 24 s" in told
    assert "23 rounds decided, 1 aborted; a round took 5.8 s in the median" in told
    assert "on held-out text it is" in told
    assert (
        "peer 3 was killed without a word after 1 min 0 s; the others decided 13 more rounds"
        in told
    )
    assert "peer 4 was killed without a word after 36 s" in told
    assert (
        "peer 4 came back after 1 min 24 s, fetched 6.56 MB of state from 2 peers in 1.2 s" in told
    )
    assert "peer 5 joined after 1 min 18 s" in told
    assert "and contributed to 10 rounds" in told
    assert (
        f"All 4 replicas that reached the end (round 24) hold the same bits: state {ROOT}" in told
    )
    assert "Each peer sent" in told
    theirs = 2 * 3 / 4 * 2 * PARAMETERS * 12 * ROUNDS
    assert theirs == data_parallel_bytes(PARAMETERS, 4, 12 * ROUNDS)
    assert "data parallel over 4 peers would have sent 708 MB each for the same 288 steps" in told
    most = (62_000 + 4_000) * ROUNDS
    assert f"{theirs / most:,.0f} times as much as the peer that sent most" in told


def test_replicas_that_differ_are_named_with_their_hashes() -> None:
    run = run_of_five()
    at = 8 * ROUND_S
    run["peer 2"] = [
        (when, decided(7, "ff" * 32))
        if isinstance(event, RoundDecided) and event.round == 7
        else (when, event)
        for when, event in run["peer 2"]
    ]
    history = history_of(run)
    assert history.rounds[7].decided_s == START_S + at
    told = same_bits(history)
    assert told.startswith("The replicas DIFFER: in round 7")
    assert "peer 2 ffffffff" in told
    run = run_of_five()
    when, _ = run["peer 5"][-2]
    other = RunEnded(unix_s=0, round=ROUNDS, reason="all rounds done", state_root="cd" * 32)
    run["peer 5"][-2] = (when, other)
    assert "DIFFER at the end" in same_bits(history_of(run))


def test_a_run_in_progress_compares_the_rounds_it_has() -> None:
    run = {
        name: [(at, event) for at, event in events if at < 50]
        for name, events in run_of_five().items()
    }
    told = same_bits(history_of({name: events for name, events in run.items() if events}))
    assert "In all 8 rounds that several peers report their hashes are the same" in told
    assert "nothing to compare" in same_bits(SwarmHistory())


def test_a_latecomers_steps_count_from_the_runs_beginning() -> None:
    history = history_of(run_of_five())
    late = history.peers["peer 5"]
    assert late.points[0].step == history.peers["peer 1"].points[13 * 3].step
    steps = [step for step, _, _ in history.mean_loss()]
    assert steps == sorted(steps)
    sent = [sent for _, _, sent in history.mean_loss()]
    assert sent == sorted(sent)
    losses = [loss for _, loss, _ in history.mean_loss()]
    assert losses[0] > 5 > 2 > losses[-1]


def test_traffic_adds_up_over_the_lives_of_a_peer() -> None:
    peer = history_of(run_of_five()).peers["peer 4"]
    assert peer.traffic.sent["exchange"] == 62_000 * 6 + 62_000 * 10
    assert [amount for _, amount in peer.traffic.over_time] == sorted(
        amount for _, amount in peer.traffic.over_time
    )
    assert [life.how for life in peer.lives] == ["killed", "ended"]


def test_without_a_traffic_ledger_the_rounds_own_bytes_count() -> None:
    run = {
        name: [(at, event) for at, event in events if not isinstance(event, TrafficCounted)]
        for name, events in run_of_five().items()
    }
    assert history_of(run).peers["peer 1"].sent_bytes == 66_000 * ROUNDS


def test_a_kill_that_somebody_saw_has_its_exact_time(journals: dict[str, Path]) -> None:
    history = read_history(journals, killed={"peer 3": START_S + 63.5})
    assert history.peers["peer 3"].lives[0].ended_s == START_S + 63.5
    assert history.peers["peer 3"].state == "killed"
    assert history.peers["peer 4"].state == "finished"


def cells(picture: str, row: int) -> list[str]:
    boxes = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)".*?height="22.00" fill="(.*?)"', picture)
    lines = sorted({float(y) for _, y, _ in boxes})
    return [
        colour
        for _, y, colour in sorted(boxes, key=lambda box: float(box[0]))
        if float(y) == lines[row]
    ]


def test_the_matrix_shows_each_round_of_each_peer() -> None:
    picture = contribution_matrix(history_of(run_of_five()))
    included, not_counted, aborted, absent = "#0072B2", "#E69F00", "#BBBBBB", "#E4E4E4"
    first, second, third = (cells(picture, row) for row in range(3))
    assert len(first) == len(second) == len(third) == ROUNDS
    assert first[9:12] == [included, aborted, included]
    assert second[3:6] == [included, not_counted, included]
    assert third[9] == included
    assert third[12:] == [absent] * (ROUNDS - 12)


def test_the_timeline_marks_kills_and_returns() -> None:
    picture = peer_timeline(history_of(run_of_five()))
    ElementTree.fromstring(picture)
    assert picture.count(">killed<") == 2, "once in the legend, once at the one who stayed away"
    assert picture.count('fill="#B00020"') == 3, "the legend and two kills"
    assert picture.count(">finished<") == 4


def test_a_missing_journal_and_empty_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"no\.jsonl is missing"):
        build_report({"peer 1": tmp_path / "no.jsonl"}, tmp_path / "out", facts=FACTS)
    Journal(tmp_path / "empty").close()
    with pytest.raises(InputFileError, match="no event of a run"):
        build_report({"peer 1": tmp_path / "empty"}, tmp_path / "out", facts=FACTS)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_error(
    tmp_path: Path, journals: dict[str, Path]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        build_report(journals, tmp_path / "file" / "out", facts=FACTS)


def test_a_journal_of_one_event_makes_a_report(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(PeerStarted(unix_s=START_S, peer="7f3a91c2", run="demo"))
    journal.close()
    page = build_report({"me": tmp_path / "j"}, tmp_path / "out", facts=FACTS)
    assert "nothing to show yet" in page.read_text()


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True, width=32),
            st.floats(allow_nan=True, allow_infinity=True, width=32),
        ),
        max_size=12,
    ),
    st.booleans(),
    st.booleans(),
)
def test_any_points_make_a_well_formed_chart(
    points: list[tuple[float, float]], log_x: bool, log_y: bool
) -> None:
    series = Series(label="<&>", points=points, colour=COLOURS[0])
    picture = line_chart(
        "t", [series], Axis(label="x", is_log=log_x), Axis(label="y", is_log=log_y)
    )
    ElementTree.fromstring(picture)
    assert "nan" not in picture
    assert "inf" not in picture.replace("none", "")


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e9))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    ticks = round_values(low, low + span)
    assert 2 <= len(ticks) <= 9
    slack = 1e-6 * span + 1e-9 * abs(low)
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)
    assert Scale(1.0, 1e6, 0, 1, is_log=True).ticks() == [1, 10, 100, 1000, 10_000, 100_000, 1e6]


def test_durations_read_like_speech() -> None:
    assert [duration_text(s) for s in (41.2, 161, 11_100)] == ["41 s", "2 min 41 s", "3 h 5 min"]
