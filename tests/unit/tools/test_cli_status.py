"""Finding runs under a home and saying how they are, whatever is in their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runnel.errors import ConfigError, InputFileError
from runnel.node.events import MergeApplied, PeerWarned
from runnel.node.journal import checked_line
from runnel.tools.cli_status import (
    JOURNAL_NAME,
    RunFolder,
    cap_lines,
    check_lines,
    diary_lines,
    find_run,
    find_runs,
    json_lines,
    reach_lines,
    status_lines,
)


def write(folder: Path, text: str | bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "status.json").write_bytes(text.encode() if isinstance(text, str) else text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = ("run", "run_id", "peer", "state", "round", "members", "loss", "tokens", "sent_bytes",
        "received_bytes", "slices", "sent_slices", "uplink_mbit", "updated_unix_s")  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_any_status_makes_a_heading_and_a_line(status: dict[str, object]) -> None:
    run = RunFolder(Path("/x/demo"), status)
    text = "\n".join(status_lines([run], now_unix_s=1e9))
    assert text.startswith("run")
    told = json.loads(json_lines([run], now_unix_s=1e9)[0])
    assert isinstance(told.pop("silent"), bool)
    assert json.dumps(told) == json.dumps(status)


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({}, "-"),
        ({"slices": 4, "sent_slices": 4, "uplink_mbit": 14.1}, "whole"),
        ({"slices": 4, "sent_slices": 1, "uplink_mbit": 1.41}, "1/4 at 1.4 Mbit/s"),
        ({"slices": 4, "sent_slices": 0, "uplink_mbit": 0.0}, "0/4"),
    ],
)
def test_a_slow_link_shows(facts: dict[str, object], shown: str) -> None:
    heading, line = status_lines([RunFolder(Path("/x/demo"), facts)], now_unix_s=1e9)
    place = heading.index("shares")
    assert line[place:].split("  ")[0].strip() == shown


@given(
    json_values
    | st.dictionaries(st.sampled_from(("outside", "helpers", "carried_bytes", "ways")), json_values)
)
@example({"outside": "none", "helpers": ["\n"], "ways": {"": "\n"}})
def test_any_word_on_how_members_are_reached_is_shown_or_left_out(reach: object) -> None:
    assert all(len(line.splitlines()) == 1 for line in reach_lines(reached(reach)))


def reached(reach: object) -> RunFolder:
    return RunFolder(Path("/x/demo"), {"reach": reach})


def test_how_members_are_reached_is_said_in_a_few_lines() -> None:
    ways = {"aaaa": "directly", "bbbb": "through aaaa", "cccc": "in no way"}
    reach = {"outside": "none", "helpers": ["aaaa"], "carried_bytes": 2_000_000, "ways": ways}
    assert reach_lines(reached(reach)) == [
        "reaches 1 directly, bbbb through aaaa, cccc in no way",
        "nobody can open connections to this peer, but through aaaa",
        "carried 2 MB for others",
    ]
    assert reach_lines(reached({"outside": "all", "ways": {"aaaa": "directly"}})) == [
        "reaches 1 directly"
    ]
    assert reach_lines(RunFolder(Path("/x/demo"), {})) == []


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_damaged_status_is_reported_beside_the_others(tmp_path: Path, text: bytes) -> None:
    write(tmp_path / "runs" / "good", '{"run": "good", "state": "training", "updated_unix_s": 5}')
    write(tmp_path / "runs" / "bad", text)
    runs = find_runs(tmp_path)
    lines = status_lines(runs, now_unix_s=10.0)
    assert len(lines) == 3
    assert "5 s ago" in lines[1]
    assert lines[2].startswith(f"{tmp_path / 'runs' / 'bad'}: status.json is damaged")
    assert json.loads(json_lines(runs, 10.0)[1])["folder"] == str(tmp_path / "runs" / "bad")


def test_folders_below_a_run_and_hidden_ones_are_not_searched(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "demo", "{}")
    write(tmp_path / "runs" / "demo" / "blobs", "{}")
    write(tmp_path / ".trash" / "demo", "{}")
    write(tmp_path.joinpath(*"abcdefgh"), "{}")
    assert [run.folder for run in find_runs(tmp_path)] == [tmp_path / "runs" / "demo"]


def test_a_run_is_found_by_name_id_folder_and_path(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "a-11", '{"run": "a", "run_id": "1111aaaa"}')
    write(tmp_path / "runs" / "b-22", '{"run": "b", "run_id": "2222bbbb"}')
    for name in ("b", "2222", "2222bbbb", "b-22", str(tmp_path / "runs" / "b-22")):
        assert find_run(tmp_path, name).folder.name == "b-22"
    with pytest.raises(ConfigError, match="a-11, b-22"):
        find_run(tmp_path)
    with pytest.raises(InputFileError, match="expected one of a, b"):
        find_run(tmp_path, "222")


def test_of_several_peers_of_one_run_the_newest_speaks(tmp_path: Path) -> None:
    for peer in (1, 3, 2):
        status = {"run": "a", "run_id": "11", "peer": str(peer), "updated_unix_s": peer}
        write(tmp_path / str(peer), json.dumps(status))
    assert find_run(tmp_path).status["peer"] == "3"


def test_a_peer_that_ended_in_order_is_not_called_silent(tmp_path: Path) -> None:
    write(tmp_path / "a", '{"state": "stopped", "updated_unix_s": 5}')
    [_, line] = status_lines(find_runs(tmp_path), now_unix_s=100_000.0)
    assert "stopped" in line
    assert "silent" not in line
    assert "28 h ago" in line


def test_the_diary_ends_with_the_newest_lines(tmp_path: Path) -> None:
    write(tmp_path / "a", "{}")
    run = find_run(tmp_path)
    assert diary_lines(run) == []
    with (tmp_path / "a" / JOURNAL_NAME).open("w") as file:
        for number in range(8):
            event = PeerWarned(unix_s=float(number), text=f"number {number}")
            file.write(checked_line(event) + "\n")
            file.write(checked_line(MergeApplied(unix_s=1.0, round=1, fragment=0, included=True)))
            file.write("\n")
    lines = diary_lines(run, count=3)
    assert [line[8:] for line in lines] == [f" warning: number {number}" for number in (5, 6, 7)]


def test_no_run_at_all_is_an_input_file_error(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="no run under"):
        find_runs(tmp_path / "none")


def test_a_cap_shows_and_none_does_not() -> None:
    capped = RunFolder(Path("/x/demo"), {"max_upload_mbit": 0.5})
    assert cap_lines(capped) == ["sends at most 500 kbit/s, as it was told to"]
    facts: tuple[object, ...] = (None, "2", True, {})
    for fact in facts:
        assert cap_lines(RunFolder(Path("/x/demo"), {"max_upload_mbit": fact})) == []


def test_checks_of_scalars_show_with_their_cost_and_whose_were_false() -> None:
    checks = {"scalars": 120, "share_of_forwards": 0.059, "refuted": {"ab": 3}}
    run = RunFolder(Path("/x/demo"), {"spot_checks": checks})
    assert check_lines(run) == [
        "computed 120 scalars of others again, 5.9 % of its forward passes",
        "found other scalars than were published: 3 of ab (evidence in /x/demo)",
    ]
    facts: tuple[object, ...] = (None, 1, {}, {"scalars": None, "refuted": []})
    for fact in facts:
        assert check_lines(RunFolder(Path("/x/demo"), {"spot_checks": fact})) == []
