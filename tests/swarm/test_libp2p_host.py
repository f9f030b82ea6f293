"""What libp2p for Python must do for us beyond the transports' contract, and must not do.

Runs in a process of its own, which tests/swarm/test_libp2p.py starts: never beside hivemind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from runnel.dht.daemon_process import free_port
from runnel.dht.identity import Identity, null_peer_id, to_base58
from runnel.dht.network import NetworkSettings
from runnel.errors import ConfigError, NetworkError, PeerError
from runnel.protocols import Stream
from tests.contracts.transports import LIBP2P_TESTS_VARIABLE, until
from tests.support.daemons import LOOPBACK, in_s, new_key

if not os.environ.get(LIBP2P_TESTS_VARIABLE):
    pytest.skip("run by tests/swarm/test_libp2p.py", allow_module_level=True)

from runnel.dht.libp2p import Libp2pNetwork, start_libp2p
from runnel.dht.libp2p import host as hosts
from runnel.dht.libp2p.guest import TrioGuest
from runnel.dht.libp2p.host import Libp2pHost, reachable
from runnel.dht.libp2p.stream import Libp2pStream
from runnel.dht.libp2p.transport import Libp2pTransport
from tests.support.libp2p_hosts import libp2p_pair

pytestmark = pytest.mark.swarm
MIB = 1024 * 1024
UNREACHABLE = f"/ip4/{LOOPBACK}/tcp/1/p2p/{to_base58(null_peer_id(7))}"


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    with asyncio.Runner(loop_factory=pytest.importorskip("uvloop").new_event_loop) as runner:
        runner.run(limited())


@contextlib.asynccontextmanager
async def network(folder: Path, **others: Any) -> AsyncIterator[Libp2pNetwork]:
    settings = NetworkSettings(identity_path=new_key(folder, "key"), listen_host=LOOPBACK, **others)
    started = await start_libp2p(settings, Identity.load(folder / "key"))
    try:
        yield started
    finally:
        await started.aclose()


def test_a_reader_that_pauses_for_long_breaks_no_stream() -> None:
    """libp2p itself gives a stream up whose window stays closed for five seconds."""

    async def test() -> None:
        message, paused_s = bytes(4 * MIB), 6.0

        async def slow(stream: Stream) -> None:
            await asyncio.sleep(paused_s)
            got = await stream.receive(max_bytes=len(message), deadline=in_s(30))
            assert got.nbytes == len(message)

        async with libp2p_pair() as (a, b):
            await b.serve("slow", slow)
            stream = await a.open(b.local_id, "slow", deadline=in_s(10))
            await stream.send(message, deadline=in_s(40))
            await stream.aclose()

    run(test)


def test_who_sends_beyond_its_window_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "MAX_BUFFERED_BYTES", MIB)

    async def test() -> None:
        async def deaf(stream: Stream) -> None:
            await asyncio.Event().wait()

        async with libp2p_pair() as (a, b):
            await b.serve("deaf", deaf)
            stream = await a.open(b.local_id, "deaf", deadline=in_s(10))
            raw = stream._bytes
            assert isinstance(raw, Libp2pStream)
            raw._muxed.send_window = 64 * MIB  # it grants itself what nobody granted
            with pytest.raises(PeerError):
                await stream.send(bytes(32 * MIB), deadline=in_s(30))
            connected = b._host.connected_peers

            async def alone() -> bool:
                return not await connected(deadline=in_s(1))

            async with asyncio.timeout(10):
                while not await alone():
                    await asyncio.sleep(0.05)

    run(test)


def test_one_peer_cannot_open_streams_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from runnel.dht import incoming

    monkeypatch.setattr(incoming, "MAX_STREAMS_PER_PEER", 4)

    async def test() -> None:
        async def wait(stream: Stream) -> None:
            await stream.receive(max_bytes=10, deadline=in_s(30))

        async with libp2p_pair() as (a, b):
            await b.serve("wait", wait)
            streams = []
            for _ in range(6):
                with contextlib.suppress(NetworkError):  # one that is closed at once may not open
                    streams.append(await a.open(b.local_id, "wait", deadline=in_s(5)))
            assert len(streams) >= 4
            await until(lambda: b.num_refused == 2)
            await asyncio.gather(*(stream.aclose() for stream in streams))

    run(test)


def test_many_who_dial_the_same_peer_at_once_make_one_connection() -> None:
    async def test() -> None:
        guest = await TrioGuest.start()
        identities = [Identity.generate() for _ in range(2)]
        started = [
            await Libp2pHost.start(
                guest, identity, listen_host=LOOPBACK, port=free_port(LOOPBACK, 0)
            )
            for identity in identities
        ]
        peer, addresses = await started[0].identify(deadline=in_s(5))
        dialling = (started[1].connect(peer, addresses, deadline=in_s(10)) for _ in range(8))
        await asyncio.gather(*dialling)
        assert len(started[1]._swarm.get_connections()) == 1
        for host in started:
            await host.aclose()
        await guest.aclose()

    run(test)


def test_an_address_by_name_is_dialled_and_one_that_nobody_knows_is_named() -> None:
    async def test() -> None:
        async with libp2p_pair() as (a, b):
            (_, (address,)) = await a._host.identify(deadline=in_s(5))
            port = address.rpartition("/")[2]
            await b._host.connect(a.local_id, [f"/dns4/localhost/tcp/{port}"], deadline=in_s(5))
            with pytest.raises(NetworkError, match="cannot be reached: no address"):
                await b.open(null_peer_id(1), "echo", deadline=in_s(5))
            lost = null_peer_id(2)
            b.learn(lost, [f"/dns/no.such.invalid/tcp/1/p2p/{to_base58(lost)}"])
            with pytest.raises(NetworkError, match=r"lookup of no\.such\.invalid"):
                await b.open(lost, "echo", deadline=in_s(20))

    run(test)


def test_addresses_that_do_not_answer_are_named_with_the_step(tmp_path: Path) -> None:
    async def test() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), LOOPBACK, 0)
        port = server.sockets[0].getsockname()[1]
        no_peer = f"/ip4/{LOOPBACK}/tcp/{port}/p2p/{to_base58(null_peer_id(9))}"
        with pytest.raises(NetworkError) as caught:
            async with network(tmp_path, bootstrap=(UNREACHABLE, no_peer)):
                pass
        message = str(caught.value)
        assert f"{UNREACHABLE}: connecting: nothing listens there" in message
        assert f"{no_peer}: securing the connection" in message
        async with network(tmp_path, bootstrap=(UNREACHABLE,), allow_alone=True) as alone:
            assert await alone.directory.publish("run", b"x", ttl_s=60, deadline=in_s(5))
            with pytest.raises(NetworkError, match="nothing listens"):
                await alone.connect(UNREACHABLE)
            with pytest.raises(ConfigError, match="names no address"):
                await alone.connect("/ip4/127.0.0.1/tcp/1")
        server.close()

    run(test)


def test_another_peer_than_the_one_that_was_named_is_not_believed(tmp_path: Path) -> None:
    async def test() -> None:
        async with libp2p_pair() as (a, b):
            (_, (address,)) = await a._host.identify(deadline=in_s(5))
            victim = null_peer_id(3)
            b.learn(victim, [f"{address}/p2p/{to_base58(victim)}"])
            with pytest.raises(NetworkError, match="cannot be reached"):
                await b.open(victim, "echo", deadline=in_s(10))

    run(test)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    async def test() -> None:
        with socket.create_server((LOOPBACK, 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(NetworkError, match=str(port)):
                async with network(tmp_path, port=port):
                    pass

    run(test)


def test_it_listens_on_the_interfaces_of_this_machine_loopback_last() -> None:
    assert reachable("192.0.2.7", 4001) == ["/ip4/192.0.2.7/tcp/4001"]
    assert reachable("::1", 4001) == ["/ip6/::1/tcp/4001"]
    found = reachable("0.0.0.0", 4001)
    assert found[-1] == "/ip4/127.0.0.1/tcp/4001"
    assert all(text.startswith("/ip4/") and "127." not in text for text in found[:-1])


def test_what_is_announced_is_told_instead(tmp_path: Path) -> None:
    async def test() -> None:
        told = "/ip4/203.0.113.5/tcp/4001"
        async with network(tmp_path, announce=(told,)) as one:
            assert one.addresses() == [f"{told}/p2p/{to_base58(one.transport.local_id)}"]

    run(test)


def test_nothing_is_left_after_the_end(tmp_path: Path) -> None:
    async def test() -> None:
        tasks = asyncio.all_tasks()
        open_before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        for _ in range(3):
            async with network(tmp_path) as one:
                await one.directory.lookup("run", deadline=in_s(5))
            await one.aclose()
        assert asyncio.all_tasks() == tasks
        if open_before:
            assert len(os.listdir("/proc/self/fd")) <= open_before + 1

    run(test)


def test_a_cancelled_call_is_cancelled_on_trio_and_a_closed_guest_takes_none() -> None:
    async def test() -> None:
        import trio

        ended: list[str] = []

        async def sleep() -> None:
            try:
                await trio.sleep_forever()
            finally:
                ended.append("sleep")

        async def fail() -> None:
            raise ValueError("as it is")

        guest = await TrioGuest.start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await guest.call(sleep)
        await until(lambda: ended == ["sleep"])
        with pytest.raises(ValueError, match="as it is"):
            await guest.call(fail)
        waiting = asyncio.get_running_loop().create_task(guest.call(sleep))
        await asyncio.sleep(0.01)
        await guest.aclose()
        await guest.aclose()
        with pytest.raises(ConnectionError):
            await waiting
        assert ended == ["sleep", "sleep"]
        with pytest.raises(ConnectionError):
            await guest.call(sleep)

    run(test)


def test_hivemind_is_not_imported_here() -> None:
    assert "libp2p" in sys.modules
    assert "hivemind" not in sys.modules
    assert Libp2pTransport.__module__ in sys.modules
