"""The file of known peers: newest first, bounded, and never a reason not to start."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.dht.identity import null_peer_id
from runnel.dht.multiaddr import PeerAddress
from runnel.dht.peer_cache import MAX_ADDRESSES, MAX_FILE_BYTES, PeerCache


def address(number: int) -> PeerAddress:
    return PeerAddress(f"/ip4/192.0.2.{number % 256}/tcp/{4000 + number}", null_peer_id(number))


def test_what_was_seen_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "peers.json"
    PeerCache(path).add([address(1), address(2), address(1)])
    assert PeerCache(path).addresses == (address(1), address(2))
    PeerCache(path).add([address(3)])
    assert PeerCache(path).addresses == (address(3), address(1), address(2))
    assert [entry.name for entry in path.parent.iterdir()] == ["peers.json"]


def test_the_file_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    cache = PeerCache(path)
    for number in range(3 * MAX_ADDRESSES):
        cache.add([address(number)])
    assert len(cache.addresses) == MAX_ADDRESSES
    assert cache.addresses[0] == address(3 * MAX_ADDRESSES - 1)
    assert PeerCache(path).addresses == cache.addresses
    assert path.stat().st_size < MAX_FILE_BYTES


def test_nothing_is_written_when_nothing_is_new(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    cache = PeerCache(path)
    cache.add([address(1), address(2)])
    path.unlink()
    cache.add([address(2), address(1)])
    assert not path.exists()


@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_a_damaged_file_is_started_anew(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cache") / "peers.json"
    path.write_bytes(data)
    cache = PeerCache(path)
    assert cache.addresses == ()
    cache.add([address(1)])
    assert PeerCache(path).addresses == (address(1),)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"version": 2, "addresses": []},
        {"version": 1},
        {"version": 1, "addresses": 5},
        {"version": 1, "addresses": [5]},
        {"version": 1, "addresses": ["/ip4/1.2.3.4/tcp/1"]},
        {"version": 1, "addresses": [], "padding": "x" * MAX_FILE_BYTES},
    ],
)
def test_a_file_of_another_kind_is_named_in_the_log(
    content: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "peers.json"
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert PeerCache(path).addresses == ()
    assert str(path) in caplog.text


def test_a_folder_that_cannot_be_written_costs_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = PeerCache(tmp_path / "file" / "peers.json")
    cache.add([address(1)])
    assert cache.addresses == (address(1),)
    assert "cannot keep known peers" in caplog.text


def test_without_a_path_addresses_are_kept_in_memory() -> None:
    cache = PeerCache(None)
    cache.add([address(1)])
    assert cache.addresses == (address(1),)
