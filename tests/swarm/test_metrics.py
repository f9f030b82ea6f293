"""Figures for monitoring, asked of real peers over HTTP while they train."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

from runnel.node.metrics import METRICS
from tests.support.swarm import PeerProcess, Swarm, invite_of, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.slow, pytest.mark.timeout(300)]

Told = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scraped(port: int) -> Told:
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(told: Told, name: str, **labels: str) -> float:
    return told.get((name, frozenset(labels.items())), 0.0)


def is_whole(told: Told) -> bool:
    """Whether two peers are together, exchange, and all that is read now and then was read."""
    return (
        value(told, "runnel_members") == 2
        and value(told, "runnel_heard_peers") == 1
        and value(told, "runnel_own_rounds_total") > 2
        and value(told, "runnel_steps_total") > 0
        and value(told, "runnel_home_bytes") > 0
    )


def test_a_peer_that_trains_with_another_tells_what_both_do(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="scripts/install --dev brings it")
    port = free_port()
    with Swarm(tmp_path) as swarm:
        owner = swarm.launch("owner", "--metrics", str(port))
        other = swarm.join("other", invite_of(owner))
        other.wait_for("PeerReady")
        found: dict[str, Told] = {}

        def look() -> bool:
            found["told"] = scraped(port)
            return is_whole(found["told"])

        wait_until(look, owner.said)
        assert_true_of(found["told"], owner)
        owner.interrupt()
        assert owner.exit_code() == 0, owner.said()
        with pytest.raises(urllib.error.URLError):
            scraped(port)


def assert_true_of(told: Told, owner: PeerProcess) -> None:
    """What was told agrees with what the peer's journal and status say."""
    counted = value(told, "runnel_rounds_total", outcome="record")

    def records() -> int:
        return len([f for f in owner.events("RoundDecided") if f["kind"] == "record"])

    assert counted > 2
    wait_until(lambda: records() >= counted, owner.said)  # files are written behind
    assert value(told, "runnel_round") > 0
    wait_until(lambda: owner.round >= value(told, "runnel_round"), owner.said)
    for direction in ("sent", "received"):
        assert value(told, "runnel_bytes_total", purpose="control", direction=direction) > 0
    facts = owner.status()
    labels = {key: str(facts[key]) for key in ("version", "run", "run_id", "peer")}
    assert value(told, "runnel_info", **labels) == 1
    assert value(told, "runnel_view_changes_total", change="joined") == 1
    assert value(told, "runnel_deadline_seconds", **{"for": "data"}) > 0
    assert value(told, "runnel_pinned_states") > 0
    assert value(told, "runnel_is_member") == 1
    assert {name for name, _ in told} <= set(METRICS)
