"""The daemon as a child: started or refused with a reason, restarted, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from runnel.dht.connections import RefusalError
from runnel.dht.daemon import Daemon, DaemonOptions
from runnel.dht.daemon_process import find_binary, free_port
from runnel.dht.identity import Identity, null_peer_id
from runnel.dht.socket_folder import MAX_SOCKET_PATH_BYTES, PREFIX, SocketFolder
from runnel.errors import ConfigError, InputFileError, NetworkError
from tests.support.daemons import LOOPBACK, address_of, in_s, new_key

pytestmark = pytest.mark.swarm
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Socket folders of one test where no other test looks for stale ones."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    with asyncio.Runner() as runner:
        runner.run(limited())


def options(folder: Path, name: str = "key", **others: Any) -> DaemonOptions:
    return DaemonOptions(identity_path=new_key(folder, name), listen_host=LOOPBACK, **others)


def test_a_started_daemon_is_who_its_key_file_says(
    tmp_path: Path, own_temporary_folder: Path
) -> None:
    async def test() -> None:
        daemon = await Daemon.start(options(tmp_path))
        peer, addresses = await daemon.control.identify(deadline=in_s(5))
        assert peer == daemon.identity.peer_id == Identity.load(tmp_path / "key").peer_id
        assert addresses == [address_of(daemon)]
        child = psutil.Process(daemon.pid)
        assert os.getsid(child.pid) != os.getsid(0), "Ctrl-C here does not reach it"
        (folder,) = own_temporary_folder.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        await daemon.aclose()
        await daemon.aclose()
        assert not child.is_running()
        assert not list(own_temporary_folder.iterdir())

    run(test)


def test_a_killed_daemon_comes_back_with_the_same_identity_and_port(tmp_path: Path) -> None:
    async def test() -> None:
        daemon = await Daemon.start(options(tmp_path))
        restarted = asyncio.Event()
        order: list[str] = []

        async def failing() -> None:
            order.append("failing")
            raise NetworkError("one hook that fails")

        async def hook() -> None:
            order.append("hook")
            restarted.set()

        daemon.on_restart(failing)
        daemon.on_restart(hook)
        for times in (1, 2):
            pid, port = daemon.pid, daemon.port
            os.kill(pid, signal.SIGKILL)
            await restarted.wait()
            restarted.clear()
            assert daemon.num_restarts == times
            assert daemon.pid != pid
            peer, addresses = await daemon.control.identify(deadline=in_s(5))
            assert peer == daemon.identity.peer_id
            assert addresses == [f"/ip4/{LOOPBACK}/tcp/{port}"]
        assert order == ["failing", "hook"] * 2
        await daemon.aclose()

    run(test)


def test_closing_during_a_restart_leaves_nothing(
    tmp_path: Path, own_temporary_folder: Path
) -> None:
    async def test() -> None:
        daemon = await Daemon.start(options(tmp_path))
        os.kill(daemon.pid, signal.SIGKILL)
        while daemon.pid:
            await asyncio.sleep(0.005)
        await daemon.aclose()
        assert daemon.pid == 0
        assert not list(own_temporary_folder.iterdir())

    run(test)


SCRIPT = """
import asyncio, sys
from pathlib import Path
from runnel.dht.daemon import Daemon, DaemonOptions
async def main():
    daemon = await Daemon.start(DaemonOptions(identity_path=Path(sys.argv[1]), listen_host="127.0.0.1"))
    print(daemon.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_the_daemon_dies_with_its_owner_and_the_next_one_cleans_up(
    death: signal.Signals, tmp_path: Path, own_temporary_folder: Path
) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(new_key(tmp_path, "key"))],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(own_temporary_folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        daemon = psutil.Process(int(owner.stdout.readline()))
        owner.send_signal(death)
        owner.wait(10)
    gone, alive = psutil.wait_procs([daemon], timeout=5)
    assert gone, alive
    (left,) = own_temporary_folder.iterdir()  # nobody was there to remove it
    folder = SocketFolder()
    assert not left.exists()
    assert Path(folder.daemon_socket).parent.name.startswith(PREFIX)
    folder.remove()
    assert not list(own_temporary_folder.iterdir())


def test_a_folder_in_use_is_not_stale(own_temporary_folder: Path) -> None:
    first, second = SocketFolder(), SocketFolder()
    assert len(list(own_temporary_folder.iterdir())) == 2
    assert first.daemon_socket != second.daemon_socket
    first.remove()
    second.remove()
    second.remove()


def test_socket_paths_stay_short_whatever_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = SocketFolder()
    try:
        assert len(folder.stream_socket.encode()) <= MAX_SOCKET_PATH_BYTES
        assert not list(long.iterdir())
    finally:
        folder.remove()


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    async def test() -> None:
        with socket.create_server((LOOPBACK, 0)) as server:
            port = server.getsockname()[1]
            with pytest.raises(NetworkError, match=rf"port {port} .*in use"):
                await Daemon.start(options(tmp_path, port=port))
        first = await Daemon.start(options(tmp_path, port=port))
        assert first.port == port
        with pytest.raises(NetworkError, match=rf"port {port} .*in use"):
            await Daemon.start(options(tmp_path, "other", port=port))
        await first.aclose()

    run(test)


@pytest.mark.parametrize("host", ["localhost", "", "1.2.3", "/ip4/127.0.0.1"])
def test_a_host_that_is_no_ip_address_is_the_users_mistake(host: str) -> None:
    with pytest.raises(ConfigError, match="IP address"):
        free_port(host, 0)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(NetworkError, match="cannot listen"):
        free_port("192.0.2.1", 0)


def test_a_bad_key_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "bad").write_bytes(b"nonsense")
        for name in ("bad", "missing"):
            with pytest.raises(InputFileError, match=name):
                await Daemon.start(DaemonOptions(identity_path=tmp_path / name))

    run(test)


def script(path: Path, text: str, mode: int = 0o700) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        ("#!/bin/sh\necho the dog ate it >&2\nexit 3\n", 0o700, "code 3: the dog ate it"),
        ("#!/bin/sh\nexit 0\n", 0o700, "code 0: it said nothing"),
        ("not a program", 0o700, "does not start on"),
        ("#!/bin/sh\n", 0o600, "not executable.*chmod"),
        ("#!/bin/sh\necho warming up\nexec sleep 60\n", 0o700, "not ready after 0.5 s.*warming up"),
        ("#!/bin/sh\necho Peer ID: me\nexec sleep 60\n", 0o700, "does not answer"),
    ],
)
def test_a_daemon_that_does_not_start_says_why(
    text: str, mode: int, reason: str, tmp_path: Path, own_temporary_folder: Path
) -> None:
    binary = script(tmp_path / "p2pd", text, mode)

    async def test() -> None:
        with pytest.raises(NetworkError, match=reason):
            await Daemon.start(options(tmp_path, binary=binary, startup_timeout_s=0.5))
        assert not list(own_temporary_folder.iterdir())

    run(test)


def test_a_missing_binary_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkError, match=r"no network daemon at .*nowhere"):
        find_binary(tmp_path / "nowhere")
    monkeypatch.setattr("runnel.dht.daemon_process.find_spec", lambda _: None)
    with pytest.raises(NetworkError, match="pip install hivemind"):
        find_binary(None)


def test_the_binary_is_found_without_importing_hivemind() -> None:
    code = (
        "import sys; from runnel.dht.daemon_process import find_binary; print(find_binary(None));"
        "assert not {'hivemind', 'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("p2pd")


def test_refusals_of_the_daemon_come_with_its_reason(tmp_path: Path) -> None:
    async def test() -> None:
        daemon = await Daemon.start(options(tmp_path))
        control = daemon.control
        with pytest.raises(RefusalError, match="find any peer"):
            await control.open_stream(null_peer_id(1), "/x", deadline=in_s(5))
        with pytest.raises(RefusalError, match="refused"):
            await control.connect(null_peer_id(1), ["/ip4/127.0.0.1/tcp/1"], deadline=in_s(5))
        with pytest.raises(ValueError, match="multiaddress"):
            await control.connect(null_peer_id(1), ["127.0.0.1"], deadline=in_s(5))
        assert await control.connected_peers(deadline=in_s(5)) == []
        await daemon.aclose()
        with pytest.raises(NetworkError, match="does not answer"):
            await control.identify(deadline=in_s(5))

    run(test)


def test_a_frozen_daemon_costs_no_more_than_the_deadline(tmp_path: Path) -> None:
    async def test() -> None:
        daemon = await Daemon.start(options(tmp_path))
        child = psutil.Process(daemon.pid)
        os.kill(daemon.pid, signal.SIGSTOP)
        while child.status() != psutil.STATUS_STOPPED:  # its threads stop one after the other
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await daemon.control.identify(deadline=in_s(0.3))
        await daemon.aclose()
        assert not child.is_running()

    run(test)
