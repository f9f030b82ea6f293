"""Figures for monitoring: what is counted, how it is served, and what is refused."""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runnel.errors import ConfigError, NetworkError
from runnel.node.config import LOOPBACK, MachineConfig, MetricsAddress
from runnel.node.events import (
    ContributionRefused,
    ContributionWithheld,
    Equivocated,
    Event,
    InnerProgress,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MergeApplied,
    MessageRefused,
    PeerWarned,
    RoundDecided,
    RoundLate,
    ScalarRefuted,
    StateFetched,
)
from runnel.node.metrics import METRICS, Figures
from runnel.node.metrics_endpoint import MetricsEndpoint
from runnel.node.readings import read_home
from runnel.tools.cli import main

ROOT = Path(__file__).parents[3]
ANYWHERE = MetricsAddress(LOOPBACK, 0)
STATUS: dict[str, Any] = {
    "version": "1",
    "run": "some-run",
    "run_id": "ab" * 32,
    "peer": "cafe0001",
    "round": 7,
    "progress": 0.25,
    "tokens": 4096,
    "loss": 2.5,
    "tokens_per_s": 100.0,
    "members": ["cafe0001", "cafe0002"],
    "sent_by_purpose": {"slice": 10, "control": 1},
    "received_by_purpose": {"slice": 20, "control": 2},
}


def decided(kind: str, seconds: float = 1.0) -> RoundDecided:
    return RoundDecided(
        unix_s=1, round=3, kind=kind, fragment=0, contributors=(), members=2, seconds=seconds
    )


EVENTS: tuple[Event, ...] = (
    decided("record"),
    decided("record"),
    decided("abort", 4.0),
    decided("branch", 2.0),
    MergeApplied(unix_s=1, round=3, fragment=0, included=True),
    MergeApplied(unix_s=1, round=4, fragment=1, included=False),
    MessageRefused(unix_s=1, peer="cafe0002", reason="signature", count=3),
    MessageRefused(unix_s=1, peer="cafe0003", reason="signature", count=2),
    ContributionRefused(unix_s=1, round=3, peer="cafe0002", check="norm", reason="41x"),
    MemberJoined(unix_s=1, peer="cafe0002"),
    MemberLeft(unix_s=1, peer="cafe0002"),
    MemberRemoved(unix_s=1, peer="cafe0003", reason="unheard"),
    RoundLate(unix_s=1, round=3, reason="slow"),
    ContributionWithheld(unix_s=1, round=3, reason="NaN"),
    PeerWarned(unix_s=1, text="look"),
    Equivocated(unix_s=1, peer="cafe0002", round=3, what="votes", place="set", evidence="ab"),
    ScalarRefuted(
        unix_s=1,
        round=3,
        peer="cafe0002",
        scalar=0,
        published=3,
        recomputed=9.5,
        tolerance=0.1,
        reason="another scalar",
        evidence="ab",
    ),
    StateFetched(unix_s=1, round=3, size_bytes=10, seconds=1.0, donors=("cafe0002",)),
    InnerProgress(
        unix_s=1,
        step=10,
        round=1,
        loss=2.5,
        tokens=80,
        tokens_per_s=4,
        lr=0.1,
        exchange_s=0.5,
        waited_s=0.25,
    ),
    InnerProgress(
        unix_s=1,
        step=20,
        round=1,
        loss=2.4,
        tokens=160,
        tokens_per_s=4,
        lr=0.1,
        exchange_s=0.5,
        waited_s=0.5,
    ),
)
COUNTED: dict[tuple[str, tuple[str, ...]], float] = {
    ("runnel_rounds_total", ("record",)): 2,
    ("runnel_rounds_total", ("abort",)): 1,
    ("runnel_rounds_total", ("branch",)): 1,
    ("runnel_round_seconds", ()): 2.0,
    ("runnel_own_rounds_total", ()): 1,
    ("runnel_refusals_total", ("message", "signature")): 5,
    ("runnel_refusals_total", ("contribution", "norm")): 1,
    ("runnel_view_changes_total", ("joined",)): 1,
    ("runnel_view_changes_total", ("left",)): 1,
    ("runnel_view_changes_total", ("removed",)): 1,
    ("runnel_late_rounds_total", ()): 1,
    ("runnel_withheld_total", ()): 1,
    ("runnel_warnings_total", ()): 1,
    ("runnel_equivocations_total", ()): 1,
    ("runnel_refuted_scalars_total", ()): 1,
    ("runnel_state_fetches_total", ()): 1,
    ("runnel_steps_total", ()): 20,
    ("runnel_tokens_total", ()): 160,
    ("runnel_trainer_seconds_total", ("exchange",)): 1.0,
    ("runnel_trainer_seconds_total", ("waiting",)): 0.75,
}


def values(figures: Figures) -> dict[tuple[str, tuple[str, ...]], float]:
    return {(metric.name, labels): value for metric, labels, value in figures.read()}


def fed() -> Figures:
    figures = Figures()
    for event in EVENTS:
        figures.take(event)
    return figures


def test_events_are_counted_under_their_metrics() -> None:
    assert values(fed()) == COUNTED


def test_nothing_is_told_before_anything_is_known() -> None:
    assert values(Figures()) == {}


def test_the_status_of_a_peer_is_told_as_it_is_at_the_moment() -> None:
    figures, status = Figures(), dict(STATUS)
    figures.attach(lambda: status)
    told = values(figures)
    assert told["runnel_members", ()] == 2
    assert told["runnel_is_member", ()] == 1
    assert told["runnel_info", ("1", "some-run", "ab" * 32, "cafe0001")] == 1
    assert told["runnel_bytes_total", ("slice", "received")] == 20
    assert ("runnel_validation_loss", ()) not in told
    status |= {"round": 8, "members": ["cafe0002"], "validation_loss": 1.5}
    told = values(figures)
    assert told["runnel_round", ()] == 8
    assert told["runnel_is_member", ()] == 0
    assert told["runnel_validation_loss", ()] == 1.5


def test_the_size_of_a_home_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").write_bytes(bytes(100))
    (tmp_path / "b").write_bytes(bytes(11))
    (tmp_path / "c").symlink_to(tmp_path / "gone")
    figures = Figures()
    read_home(figures, tmp_path)
    assert 111 <= values(figures)["runnel_home_bytes", ()] < 111 + 4096


def test_every_metric_is_in_the_table_of_the_page_with_its_kind_and_labels() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(runnel_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    assert rows == [
        (m.name, m.kind, ", ".join(f"`{label}`" for label in m.labels), m.text)
        for m in METRICS.values()
    ]


def test_names_and_labels_are_such_as_prometheus_expects() -> None:
    for metric in METRICS.values():
        assert metric.kind in {"counter", "gauge"}
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert all(re.fullmatch(r"[a-z_]+", label) for label in metric.labels)


# -- over HTTP


@pytest.fixture
def endpoint() -> Iterator[MetricsEndpoint]:
    pytest.importorskip("prometheus_client", reason="scripts/install --dev brings it")
    served = MetricsEndpoint(ANYWHERE)
    yield served
    served.close()


def scraped(endpoint: MetricsEndpoint) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What Prometheus's own parser makes of an answer."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(endpoint.url, timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_tells_what_was_counted_and_nothing_of_this_process(
    endpoint: MetricsEndpoint,
) -> None:
    for event in EVENTS:
        endpoint.figures.take(event)
    endpoint.figures.attach(lambda: STATUS)
    told = scraped(endpoint)
    for (name, labels), value in COUNTED.items():
        named = frozenset(zip(METRICS[name].labels, labels, strict=True))
        assert told[name, named] == value
    assert (
        told["runnel_bytes_total", frozenset({("purpose", "slice"), ("direction", "sent")})] == 10
    )
    assert {name for name, _ in told} <= set(METRICS)


def test_two_endpoints_in_one_process_share_nothing(endpoint: MetricsEndpoint) -> None:
    other = MetricsEndpoint(ANYWHERE)
    try:
        other.figures.take(RoundLate(unix_s=1, round=3, reason="slow"))
        assert scraped(endpoint) == {}
        assert len(scraped(other)) == 1
    finally:
        other.close()


def test_somebody_who_says_nothing_does_not_hold_up_the_end() -> None:
    pytest.importorskip("prometheus_client", reason="scripts/install --dev brings it")
    endpoint = MetricsEndpoint(ANYWHERE)
    host, port = re.findall(r"http://(.*):(\d+)/", endpoint.url)[0]
    with socket.create_connection((host, int(port)), timeout=20) as silent:
        silent.sendall(b"GET /metrics HT")
        until = time.perf_counter() + 20
        while endpoint._server._current is None and time.perf_counter() < until:
            time.sleep(0.01)
        assert endpoint._server._current is not None
        endpoint.close()
        assert silent.recv(1) == b""
    endpoint.close()
    assert not [t for t in threading.enumerate() if t.name == "runnel-metrics"]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(endpoint.url, timeout=20)


def test_what_is_no_http_does_no_harm(endpoint: MetricsEndpoint) -> None:
    host, port = re.findall(r"http://(.*):(\d+)/", endpoint.url)[0]
    for rubbish in (b"\0\xff" * 40 + b"\r\n\r\n", b"", b"GET /" + b"a" * 70_000 + b"\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=20) as stranger:
            stranger.sendall(rubbish)
    assert scraped(endpoint) == {}


def test_a_port_in_use_is_named_in_one_line(endpoint: MetricsEndpoint) -> None:
    port = int(endpoint.url.split(":")[2].split("/")[0])
    with pytest.raises(
        NetworkError, match=rf"{LOOPBACK}:{port} \(address already in use\)"
    ) as seen:
        MetricsEndpoint(MetricsAddress(LOOPBACK, port))
    assert "\n" not in str(seen.value)


def test_an_address_of_another_machine_is_refused() -> None:
    pytest.importorskip("prometheus_client", reason="scripts/install --dev brings it")
    with pytest.raises(NetworkError, match=r"192\.0\.2\.1:9 .*choose another one with --metrics"):
        MetricsEndpoint(MetricsAddress("192.0.2.1", 9))


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install prometheus_client$"):
        MetricsEndpoint(ANYWHERE)


# -- what one writes


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("9090", LOOPBACK, 9090),
        (9090, LOOPBACK, 9090),
        ("0", LOOPBACK, 0),
        ("0.0.0.0:9090", "0.0.0.0", 9090),
        ("[::1]:9090", "::1", 9090),
    ],
)
def test_a_port_is_of_this_machine_alone_unless_a_host_is_named(
    text: str | int, host: str, port: int
) -> None:
    assert MetricsAddress.parse(text) == MetricsAddress(host, port)


@pytest.mark.parametrize(
    "text",
    ["http", ":9090", "-1", "65536", "localhost:9090", "1.2.3.4:", "9090:1.2.3.4", "1.5", "٣"],
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="metrics") as seen:
        MachineConfig.at(Path("/nowhere")).serving(text)
    assert "\n" not in str(seen.value)


def test_metrics_are_off_unless_asked_for() -> None:
    assert MachineConfig.at(Path("/nowhere")).metrics is None
    assert MachineConfig.at(Path("/nowhere")).serving("").metrics is None


def test_the_command_refuses_a_bad_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    assert main(["new", "some-run", "--out", str(file)]) == 0
    capsys.readouterr()
    assert main(["launch", str(file), "--home", str(tmp_path), "--metrics", "http"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "metrics is 'http', expected a port such as 9090" in said
