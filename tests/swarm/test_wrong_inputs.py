"""What is wrong ends a command with one clear line, its exit code, and nothing half-written."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import runnel
from runnel.clock import SystemClock
from runnel.dht.identity import Identity, to_base58
from runnel.errors import (
    ConfigError,
    InputFileError,
    NetworkError,
    RunMismatchError,
    RunnelError,
)
from runnel.hashing import digest
from runnel.node.invite import Invite
from tests.support.swarm import ROOT, PeerProcess, Swarm, invite_of

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerProcess]:
    """A peer that would train alone, as fast as it can; frozen, since most look at its invite or its home."""
    with Swarm(tmp_path_factory.mktemp("wrong")) as swarm:
        peer = swarm.launch()
        invite_of(peer)
        peer.freeze()
        yield peer


@pytest.fixture
def awake(owner: PeerProcess) -> Iterator[PeerProcess]:
    """The same peer, for those who speak with it."""
    owner.thaw()
    yield owner
    owner.freeze()


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RUNNEL_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-m", "runnel", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )


def assert_refused(
    done: subprocess.CompletedProcess[str], kind: type[RunnelError], *words: str
) -> None:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == kind.exit_code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("runnel: ")
    assert all(word in lines[0] for word in words), lines[0]


def run_files(home: Path) -> list[Path]:
    """What a refused command must not leave: anything of a run."""
    return list((home / "runs").rglob("*"))


def invite_to(address: str, *, valid_s: int = 3600) -> str:
    owner = Identity.generate()
    where = (
        address if "/p2p/" in address else f"{address}/p2p/{to_base58(Identity.generate().peer_id)}"
    )
    expires = int(SystemClock().unix_s()) + valid_s
    return str(Invite.issue(owner, digest(b"a run"), [where], expires_unix_s=expires))


def test_an_expired_invite(tmp_path: Path) -> None:
    invite = invite_to("/ip4/127.0.0.1/tcp/9", valid_s=-60)
    assert_refused(command(tmp_path, "join", invite), ConfigError, "expired")
    assert not run_files(tmp_path)


def test_a_cut_invite(tmp_path: Path, owner: PeerProcess) -> None:
    assert_refused(command(tmp_path, "join", invite_of(owner)[:-9]), ConfigError, "invite")
    assert not run_files(tmp_path)


def test_an_invite_to_another_run_than_the_peers(tmp_path: Path, awake: PeerProcess) -> None:
    address = Invite.parse(invite_of(awake)).addresses[0]
    done = command(tmp_path, "join", invite_to(address), "--host", "127.0.0.1")
    assert_refused(done, NetworkError, "not in that run")
    assert not run_files(tmp_path)


def test_a_bootstrap_that_is_not_there(tmp_path: Path) -> None:
    done = command(tmp_path, "join", invite_to("/ip4/127.0.0.1/tcp/9"), "--host", "127.0.0.1")
    assert_refused(done, NetworkError, "/ip4/127.0.0.1/tcp/9", "nothing listens there")
    assert not run_files(tmp_path)


def test_a_port_in_use(tmp_path: Path, owner: PeerProcess) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = ("--host", "127.0.0.1", "--port", str(port))
        done = command(tmp_path, "join", invite_of(owner), *options)
    assert_refused(done, NetworkError, str(port), "another port")
    assert not run_files(tmp_path)


def test_a_metrics_port_in_use(tmp_path: Path, owner: PeerProcess) -> None:
    pytest.importorskip("prometheus_client", reason="scripts/install --dev brings it")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command(tmp_path, "join", invite_of(owner), "--metrics", str(port))
    assert_refused(done, NetworkError, f"127.0.0.1:{port}", "address already in use", "--metrics")


def test_a_damaged_key_file(tmp_path: Path, owner: PeerProcess) -> None:
    key = tmp_path / "identity.key"
    key.write_bytes(b"not a key")
    key.chmod(0o600)
    assert_refused(command(tmp_path, "join", invite_of(owner)), InputFileError, str(key))
    assert key.read_bytes() == b"not a key"
    assert not run_files(tmp_path)


def test_another_model_than_the_runs(tmp_path: Path, awake: PeerProcess) -> None:
    place = runnel.invited(invite_of(awake), home=tmp_path, host="127.0.0.1")
    with pytest.raises(RunMismatchError, match="fingerprint") as caught:
        runnel.Peer(place, model=torch.nn.Linear(3, 3))
    assert "\n" not in str(caught.value)
    assert not run_files(tmp_path)


def test_one_home_serves_one_process(owner: PeerProcess) -> None:
    done = command(owner.home, "join", invite_of(owner), "--host", "127.0.0.1")
    assert_refused(done, ConfigError, str(owner.home))
    assert owner.is_running


def test_a_damaged_state_is_refused_and_left_as_it_is(owner: PeerProcess) -> None:
    owner.thaw()
    owner.wait_for_rounds(2)
    owner.kill()
    log = max((owner.run_folder / "state").glob("*.log"))
    content = bytearray(log.read_bytes())
    content[len(content) // 3] ^= 0xFF
    log.write_bytes(content)
    before = owner.err.stat().st_size
    owner.start()
    assert owner.exit_code() == InputFileError.exit_code
    *diary, said = owner.err.read_bytes()[before:].decode().splitlines()
    assert said.startswith("runnel: ")
    assert "damaged" in said
    # A peer that was seen in another test, and is gone, may be worth a line of the diary before.
    assert all(re.match(r"\d\d:\d\d:\d\d none of \d+ addresses", line) for line in diary), diary
    assert log.read_bytes() == content
