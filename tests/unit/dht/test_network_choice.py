"""Which network a machine takes, told before anything is imported."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from runnel.dht import network_choice
from runnel.dht.network import promise, require_alone, take_back
from runnel.dht.network_choice import AUTO, DAEMON, KINDS, LIBP2P, choose
from runnel.errors import ConfigError, NetworkError
from runnel.node.config import NETWORKS

ROOT = Path(__file__).parents[3]


def installed(monkeypatch: pytest.MonkeyPatch, *, daemon: bool, libp2p: bool) -> None:
    def find_binary(given: Path | None) -> Path:
        if not daemon:
            raise NetworkError("the network daemon is not installed here")
        return Path("p2pd")

    monkeypatch.setattr(network_choice, "find_binary", find_binary)
    monkeypatch.setattr(network_choice, "_has_libp2p", lambda: libp2p)


@pytest.mark.parametrize(
    ("kind", "daemon", "libp2p", "chosen"),
    [
        (AUTO, True, True, DAEMON),
        (AUTO, True, False, DAEMON),
        (AUTO, False, True, LIBP2P),
        (DAEMON, True, True, DAEMON),
        (LIBP2P, True, True, LIBP2P),
        (LIBP2P, False, True, LIBP2P),
    ],
)
def test_the_daemon_where_it_is_and_libp2p_else(
    kind: str, daemon: bool, libp2p: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, daemon=daemon, libp2p=libp2p)
    assert choose(kind) == chosen


@pytest.mark.parametrize(
    ("kind", "daemon", "libp2p", "told"),
    [
        (AUTO, False, False, r"daemon is not installed here; .* pip install 'runnel\[libp2p\]'"),
        (DAEMON, False, True, "daemon is not installed here"),
        (LIBP2P, True, False, r"pip install 'runnel\[libp2p\]'"),
    ],
)
def test_what_is_missing_is_told_in_one_line_with_what_to_do(
    kind: str, daemon: bool, libp2p: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, daemon=daemon, libp2p=libp2p)
    with pytest.raises(NetworkError, match=told) as caught:
        choose(kind)
    assert "\n" not in str(caught.value)


def test_another_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of auto, daemon, libp2p"):
        choose("quic")
    assert NETWORKS == KINDS


@pytest.mark.parametrize(("wanted", "present"), [("libp2p", "hivemind"), ("hivemind", "libp2p")])
def test_one_is_not_imported_where_the_other_is(
    wanted: str, present: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runnel.dht.network._promised", Counter())
    monkeypatch.delitem(sys.modules, wanted, raising=False)
    monkeypatch.delitem(sys.modules, present, raising=False)
    require_alone(wanted)
    monkeypatch.setitem(sys.modules, present, sys)
    with pytest.raises(ConfigError, match=f"imported {present}, beside which {wanted}"):
        require_alone(wanted)


def test_a_network_that_imports_its_library_later_has_the_process_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runnel.dht.network._promised", Counter())
    monkeypatch.delitem(sys.modules, "hivemind", raising=False)
    monkeypatch.delitem(sys.modules, "libp2p", raising=False)
    promise("hivemind")
    promise("hivemind")
    take_back("hivemind")  # the second did not start
    require_alone("hivemind")
    with pytest.raises(ConfigError, match="imported hivemind, beside which libp2p"):
        promise("libp2p")
    take_back("hivemind")
    promise("libp2p")


def test_choosing_imports_neither() -> None:
    code = (
        "import sys; from runnel.errors import NetworkError; import runnel.node.entrance;"
        "from runnel.dht.network_choice import KINDS, choose\n"
        "for kind in KINDS:\n"
        "    try: choose(kind)\n"
        "    except NetworkError: pass\n"
        "assert not {'hivemind', 'libp2p', 'trio'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
