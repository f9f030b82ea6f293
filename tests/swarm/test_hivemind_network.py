"""Whole networks on the loopback: finding each other, bulk both ways, deaths and dead ends."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import multiprocessing  # noqa: TID251 - to see that nothing changed it
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from runnel.clock import SystemClock
from runnel.dht.hivemind import HivemindNetwork, NetworkSettings, start_hivemind
from runnel.dht.identity import Identity, null_peer_id, to_base58
from runnel.dht.records import MAX_VALUE_BYTES, key_id_of
from runnel.errors import ConfigError, NetworkError, PeerError
from runnel.hashing import digest
from runnel.protocols import Stream
from runnel.types import PeerId
from tests.support.daemons import LOOPBACK, in_s, new_key

pytestmark = pytest.mark.swarm
ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024


def run(test: Callable[[], Coroutine[Any, Any, None]], *, uvloop: bool = True) -> None:
    async def limited() -> None:
        async with asyncio.timeout(100):
            await test()

    factory = pytest.importorskip("uvloop").new_event_loop if uvloop else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(limited())


def settings(folder: Path, name: str, **others: Any) -> NetworkSettings:
    return NetworkSettings(identity_path=new_key(folder, name), listen_host=LOOPBACK, **others)


async def started(folder: Path, name: str, **others: Any) -> HivemindNetwork:
    network = await start_hivemind(settings(folder, name, **others), Identity.load(folder / name))
    await network.directory.whole(deadline=in_s(20))
    return network


async def num_neighbours(network: HivemindNetwork) -> int:
    return (await network.directory.whole(deadline=in_s(10))).num_neighbours


@contextlib.asynccontextmanager
async def swarm(folder: Path, num_peers: int) -> AsyncIterator[list[HivemindNetwork]]:
    """Peers of which all but the first know the first one's address only, and join at once."""
    first = await started(folder, "0")
    networks = [first]
    try:
        bootstrap = tuple(first.addresses())
        networks += await asyncio.gather(
            *(started(folder, str(n), bootstrap=bootstrap) for n in range(1, num_peers))
        )
        yield networks
    finally:
        for network in networks:
            await network.aclose()


async def echo(stream: Stream) -> None:
    message = await stream.receive(max_bytes=64 * MIB, deadline=in_s(30))
    await stream.send(message, deadline=in_s(30))


async def ask(network: HivemindNetwork, peer: PeerId, message: bytes) -> bytes:
    stream = await network.transport.open(peer, "echo", deadline=in_s(20))
    await stream.send(message, deadline=in_s(30))
    answer = await stream.receive(max_bytes=64 * MIB, deadline=in_s(30))
    await stream.aclose()
    return bytes(answer)


async def until(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("uvloop", [True, False])
def test_peers_find_each_other_and_exchange_bulk_both_ways(tmp_path: Path, uvloop: bool) -> None:
    async def test() -> None:
        async with swarm(tmp_path, 3) as networks:
            for number, network in enumerate(networks):
                await network.transport.serve("echo", echo)
                value = b"peer %d" % number
                assert await network.directory.publish("run", value, ttl_s=60, deadline=in_s(10))
            everybody = {
                network.transport.local_id: b"peer %d" % number
                for number, network in enumerate(networks)
            }
            for network in networks:
                assert await network.directory.lookup("run", deadline=in_s(10)) == everybody
                assert await num_neighbours(network) == 2
                assert network.directory.records.refused == {}
            message = random.Random(1).randbytes(8 * MIB)
            _, second, third = networks
            for one, other in ((second, third), (third, second)):
                answer = await ask(one, other.transport.local_id, message)
                assert digest(answer) == digest(message)

    run(test, uvloop=uvloop)


def test_a_newer_record_replaces_the_older_one_and_records_expire(tmp_path: Path) -> None:
    async def test() -> None:
        async with swarm(tmp_path, 2) as (a, b):
            me = a.transport.local_id
            assert await a.directory.publish("run", b"old", ttl_s=30, deadline=in_s(10))
            assert await a.directory.publish("run", b"new", ttl_s=31, deadline=in_s(10))
            assert await b.directory.lookup("run", deadline=in_s(10)) == {me: b"new"}
            assert await b.directory.lookup("other", deadline=in_s(10)) == {}
            assert await a.directory.publish("brief", b"x", ttl_s=1.0, deadline=in_s(10))
            assert await b.directory.lookup("brief", deadline=in_s(10)) == {me: b"x"}

            async def expired() -> bool:
                return not await b.directory.lookup("brief", deadline=in_s(10))

            await until(expired)
            with pytest.raises(ValueError, match="lives"):
                await a.directory.publish("run", b"x", ttl_s=3601, deadline=in_s(10))
            with pytest.raises(ValueError, match="holds"):
                await a.directory.publish(
                    "run", bytes(MAX_VALUE_BYTES + 1), ttl_s=60, deadline=in_s(10)
                )

    run(test)


def test_a_liar_cannot_write_for_others_nor_hide_their_records(tmp_path: Path) -> None:
    async def test() -> None:
        async with swarm(tmp_path, 3) as (a, b, liar):
            from hivemind.dht.routing import DHTID
            from hivemind.dht.storage import DictionaryDHTValue
            from hivemind.p2p import PeerID

            victim = bytes(a.transport.local_id)
            await a.directory.publish("run", b"honest", ttl_s=60, deadline=in_s(10))
            key_id = DHTID.generate("run")
            assert key_id.to_bytes() == key_id_of("run")
            liars = await liar.directory.whole(deadline=in_s(10))
            protocol, expires_s = liars._protocol, SystemClock().unix_s() + 600.0
            own = liar.directory.records.sign(key_id.to_bytes(), b"evil", expires_s)
            for stored, subkey in (
                (own.stored, victim),
                (b"\xa4evil", victim),
                (b"\xa4evil", None),
                (b"", victim),
            ):
                answer = await protocol.call_store(
                    PeerID(bytes(b.transport.local_id)), [key_id], [stored], [expires_s], [subkey]
                )
                assert list(answer) == [False]
            assert sum(b.directory.records.refused.values()) == 4
            # A replica that answers with garbage beside the honest record hides nothing.
            held = protocol.storage.data[key_id].value
            assert isinstance(held, DictionaryDHTValue)
            held.store(bytes(liar.transport.local_id), b"garbage", expires_s)
            held.store(bytes(b.transport.local_id), own.stored, expires_s)
            found = await b.directory.lookup("run", deadline=in_s(10))
            assert found == {a.transport.local_id: b"honest"}

    run(test)


def test_a_killed_daemon_comes_back_and_the_network_heals(tmp_path: Path) -> None:
    async def test() -> None:
        async with swarm(tmp_path, 3) as networks:
            for network in networks:
                await network.transport.serve("echo", echo)
                await network.directory.publish("run", b"here", ttl_s=300, deadline=in_s(10))
            a, b, c = networks
            stalled = await c.transport.open(b.transport.local_id, "echo", deadline=in_s(10))
            pid, addresses = b.daemon.pid, b.addresses()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(PeerError):
                await stalled.receive(max_bytes=10, deadline=in_s(10))
            await stalled.aclose()

            async def restarted() -> bool:
                return b.daemon.num_restarts == 1

            await until(restarted)
            assert b.daemon.pid != pid
            assert b.addresses() == addresses
            assert await ask(b, a.transport.local_id, b"from b") == b"from b"

            async def answers() -> bool:
                try:
                    return await ask(c, b.transport.local_id, b"to b") == b"to b"
                except (NetworkError, PeerError):
                    return False

            await until(answers)

            async def complete() -> bool:
                found = [await one.directory.lookup("run", deadline=in_s(5)) for one in networks]
                return [len(records) for records in found] == [3, 3, 3]

            await until(complete)
            assert await b.directory.publish("after", b"x", ttl_s=60, deadline=in_s(10))
            assert await c.directory.lookup("after", deadline=in_s(10)) == {
                b.transport.local_id: b"x"
            }

    run(test)


UNREACHABLE = f"/ip4/{LOOPBACK}/tcp/1/p2p/{to_base58(null_peer_id(7))}"


def test_addresses_that_do_not_answer_are_named_with_the_step(tmp_path: Path) -> None:
    async def test() -> None:
        first = await started(tmp_path, "0")
        wrong_peer = first.addresses()[0].replace(
            to_base58(first.transport.local_id), to_base58(null_peer_id(8))
        )
        server = await asyncio.start_server(lambda _, writer: writer.close(), LOOPBACK, 0)
        port = server.sockets[0].getsockname()[1]
        no_peer = f"/ip4/{LOOPBACK}/tcp/{port}/p2p/{to_base58(null_peer_id(9))}"
        before = time.perf_counter()
        with pytest.raises(NetworkError) as caught:
            await started(tmp_path, "1", bootstrap=(UNREACHABLE, wrong_peer, no_peer))
        assert time.perf_counter() - before < 10.0
        message = str(caught.value)
        assert f"{UNREACHABLE}: connecting: nothing listens there" in message
        assert f"{wrong_peer}: checking the identity" in message
        assert f"{no_peer}: securing the connection" in message
        # One that answers is enough.
        other = await started(tmp_path, "1", bootstrap=(UNREACHABLE, *first.addresses()))
        assert await num_neighbours(other) == 1
        await other.aclose()
        server.close()
        await first.aclose()

    run(test)


def test_a_peer_that_may_be_alone_joins_when_its_bootstrap_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runnel.dht import dialling, tending

    monkeypatch.setattr(tending, "TEND_EVERY_S", 0.2)
    monkeypatch.setattr(dialling._Attempts.__init__, "__defaults__", (0.0, 0.2))

    async def test() -> None:
        first = await started(tmp_path, "0")
        bootstrap, port = tuple(first.addresses()), first.daemon.port
        await first.aclose()
        alone = await started(tmp_path, "1", bootstrap=bootstrap, allow_alone=True)
        assert await num_neighbours(alone) == 0
        again = await started(tmp_path, "0", port=port)

        async def joined() -> bool:
            return await num_neighbours(alone) == 1

        await until(joined)
        await again.aclose()
        await alone.aclose()

    run(test)


def test_cached_peers_are_enough_when_the_bootstrap_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runnel.dht import tending

    monkeypatch.setattr(tending, "TEND_EVERY_S", 0.2)
    cache = tmp_path / "peers.json"

    async def test() -> None:
        first = await started(tmp_path, "0")
        bootstrap = tuple(first.addresses())
        second = await started(tmp_path, "1", bootstrap=bootstrap)
        third = await started(tmp_path, "2", bootstrap=bootstrap, cache_path=cache)
        name = to_base58(second.transport.local_id)

        async def noted() -> bool:
            with contextlib.suppress(NetworkError):
                await third.transport.open(second.transport.local_id, "echo", deadline=in_s(5))
            return cache.exists() and name in cache.read_text()

        await until(noted)
        await third.aclose()
        await first.aclose()
        third = await started(tmp_path, "2", bootstrap=bootstrap, cache_path=cache)
        assert await num_neighbours(third) == 1
        await third.aclose()
        await second.aclose()

    run(test)


def test_a_peer_is_dialled_at_addresses_that_only_we_were_told(tmp_path: Path) -> None:
    async def test() -> None:
        a, b = await started(tmp_path, "a"), await started(tmp_path, "b")
        await b.transport.serve("echo", echo)
        with pytest.raises(NetworkError, match="cannot be reached"):
            await a.transport.open(b.transport.local_id, "echo", deadline=in_s(5))
        a.transport.learn(b.transport.local_id, ["nonsense", UNREACHABLE, *b.addresses()])
        assert await ask(a, b.transport.local_id, b"hello") == b"hello"
        assert await num_neighbours(a) == 0
        await a.connect(b.addresses()[0])
        assert await num_neighbours(a) == 1
        with pytest.raises(NetworkError, match="nothing listens"):
            await a.connect(UNREACHABLE)
        with pytest.raises(ConfigError, match="names no address"):
            await a.connect("/ip4/127.0.0.1/tcp/1")
        await a.aclose()
        await b.aclose()

    run(test)


def test_one_peer_cannot_open_streams_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runnel.dht import incoming

    monkeypatch.setattr(incoming, "MAX_STREAMS_PER_PEER", 4)

    async def test() -> None:
        async with swarm(tmp_path, 2) as (a, b):
            await b.transport.serve("echo", echo)
            peer = b.transport.local_id
            streams = [await a.transport.open(peer, "echo", deadline=in_s(5)) for _ in range(4)]
            for stream in streams:
                await stream.send(b"taken", deadline=in_s(5))
                await stream.receive(max_bytes=10, deadline=in_s(5))
            await asyncio.gather(*(stream.aclose() for stream in streams))
            assert b.transport.num_refused == 0
            streams = [await a.transport.open(peer, "echo", deadline=in_s(5)) for _ in range(6)]

            async def refused() -> bool:
                return b.transport.num_refused == 2

            await until(refused)
            await asyncio.gather(*(stream.aclose() for stream in streams))

            async def welcome() -> bool:
                with contextlib.suppress(PeerError):
                    return await ask(a, peer, b"again") == b"again"
                return False

            await until(welcome)

    run(test)


def test_nothing_is_left_after_the_end(tmp_path: Path) -> None:
    async def test() -> None:
        tasks, children = asyncio.all_tasks(), psutil.Process().children()
        descriptors = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
        async with swarm(tmp_path, 2) as (a, b):
            await b.directory.publish("run", b"x", ttl_s=60, deadline=in_s(5))
            await a.directory.lookup("run", deadline=in_s(5))
            folders = [Path(one.daemon.folder.daemon_socket).parent for one in (a, b)]
            assert all(folder.is_dir() for folder in folders)
        await a.aclose()
        assert psutil.Process().children() == children
        assert not any(folder.exists() for folder in folders)
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == tasks
        if descriptors:
            assert len(set(os.listdir("/proc/self/fd")) - descriptors) <= 1

    run(test)


def test_another_identity_than_the_key_files_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(ConfigError, match="expected that of"):
            await start_hivemind(settings(tmp_path, "a"), Identity.generate())
        with pytest.raises(ConfigError, match="names no address"):
            await started(tmp_path, "a", bootstrap=("/ip4/127.0.0.1/tcp/1",))

    run(test)


IMPORTS = """
import logging, multiprocessing, sys
import runnel.dht.hivemind
assert not {"hivemind", "torch", "numpy"} & set(sys.modules), "the face is light"
import runnel.dht.hivemind.directory
import torch.multiprocessing
assert multiprocessing.get_start_method(allow_none=True) is None
multiprocessing.set_start_method("spawn")
print(torch.multiprocessing.get_sharing_strategy())
assert logging.getLevelName(logging.WARNING) == "WARNING"
logging.getLogger("hivemind.p2p").error("noise")
"""


def test_importing_hivemind_leaves_the_process_as_it_was() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORTS],
        cwd=ROOT,
        env={**os.environ, "HIVEMIND_LOGLEVEL": "INFO"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (
        "file_descriptor" if sys.platform.startswith("linux") else "file_system"
    )
    assert "noise" not in done.stderr


def test_hivemind_logs_through_ours_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    before = multiprocessing.get_start_method(allow_none=True)
    from runnel.dht.hivemind import directory

    assert multiprocessing.get_start_method(allow_none=True) == before
    from runnel.dht.hivemind.side_effects import undone

    with caplog.at_level(logging.DEBUG, logger=directory.__name__):
        with undone(logging.getLogger(directory.__name__)):
            pass
        logging.getLogger("hivemind.p2p").warning("a %s", "warning")
    assert [(record.levelname, record.name) for record in caplog.records] == [
        ("DEBUG", directory.__name__)
    ]
    assert "hivemind.p2p: a warning" in caplog.text


def test_the_dht_is_carried_from_when_it_is_first_needed(tmp_path: Path) -> None:
    async def test() -> None:
        async with contextlib.AsyncExitStack() as stack:
            a = await start_hivemind(settings(tmp_path, "a"), Identity.load(tmp_path / "a"))
            stack.push_async_callback(a.aclose)
            assert await a.directory.publish("run", b"a", ttl_s=60, deadline=in_s(20))
            b = await start_hivemind(
                settings(tmp_path, "b", bootstrap=tuple(a.addresses())),
                Identity.load(tmp_path / "b"),
            )
            stack.push_async_callback(b.aclose)
            # b has none yet: whom it joined looks for it.
            found = await b.directory.lookup("run", deadline=in_s(10))
            assert found == {a.transport.local_id: b"a"}
            assert (a.directory.is_loaded, b.directory.is_loaded) == (True, False)
            assert await b.directory.publish("run", b"b", ttl_s=60, deadline=in_s(20))
            assert b.directory.is_loaded
            assert [await num_neighbours(network) for network in (a, b)] == [1, 1]

    run(test)


def test_a_daemon_that_dies_while_the_directory_is_loaded_costs_one_try(tmp_path: Path) -> None:
    async def test() -> None:
        async with contextlib.AsyncExitStack() as stack:
            a = await start_hivemind(settings(tmp_path, "a"), Identity.load(tmp_path / "a"))
            stack.push_async_callback(a.aclose)
            importlib.import_module("runnel.dht.hivemind.directory")  # takes longer than a restart
            os.kill(a.daemon.pid, signal.SIGKILL)
            with pytest.raises(NetworkError, match="does not carry the directory"):
                await a.directory.publish("run", b"a", ttl_s=60, deadline=in_s(20))

            async def held() -> bool:
                with contextlib.suppress(NetworkError, TimeoutError):
                    return await a.directory.publish("run", b"a", ttl_s=60, deadline=in_s(20))
                return False

            await until(held)
            b = await started(tmp_path, "b", bootstrap=tuple(a.addresses()))
            stack.push_async_callback(b.aclose)
            await b.directory.whole(deadline=in_s(20))
            found = await b.directory.lookup("run", deadline=in_s(10))
            assert found == {a.transport.local_id: b"a"}

    run(test)


def test_whoever_loads_its_directory_later_makes_both_neighbours(tmp_path: Path) -> None:
    async def test() -> None:
        async with contextlib.AsyncExitStack() as stack:
            a = await start_hivemind(settings(tmp_path, "a"), Identity.load(tmp_path / "a"))
            stack.push_async_callback(a.aclose)
            b = await started(tmp_path, "b", bootstrap=tuple(a.addresses()))
            stack.push_async_callback(b.aclose)
            assert not a.directory.is_loaded
            assert await num_neighbours(b) == 0
            assert await num_neighbours(a) == 1

            async def mutual() -> bool:
                return await num_neighbours(b) == 1

            await until(mutual)

    run(test)


def test_without_hivemind_the_directory_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What python makes of a module that is None is an ImportError.
    monkeypatch.setitem(sys.modules, "runnel.dht.hivemind.directory", None)

    async def test() -> None:
        a = await start_hivemind(settings(tmp_path, "a"), Identity.load(tmp_path / "a"))
        try:
            for _ in range(2):
                with pytest.raises(NetworkError, match=r"cannot be imported.*install runnel again"):
                    await a.directory.publish("run", b"a", ttl_s=60, deadline=in_s(20))
        finally:
            await a.aclose()
        with pytest.raises(NetworkError, match="closed"):
            await a.directory.lookup("run", deadline=in_s(5))

    run(test)
