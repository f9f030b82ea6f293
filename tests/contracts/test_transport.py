"""What every `Transport` promises, whatever carries the bytes."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator

import pytest

from runnel.errors import NetworkError, PeerError
from runnel.protocols import Stream, StreamHandler, Transport
from runnel.types import PEER_ID_BYTES, PeerId
from tests.contracts.transports import KINDS, TransportKind, until

MIB = 1024 * 1024
CAP = 16 * MIB


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, id=kind.name, marks=kind.marks) for kind in KINDS],
)
def kind(request: pytest.FixtureRequest) -> Iterator[TransportKind]:
    param: TransportKind = request.param
    with param.kept():
        yield param


def in_s(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def echo(stream: Stream) -> None:
    while True:
        message = await stream.receive(max_bytes=CAP, deadline=in_s(30))
        await stream.send(message, deadline=in_s(30))


def echo_times(count: int) -> StreamHandler:
    """Echoes so many messages and returns: who closes then need not linger."""

    async def handler(stream: Stream) -> None:
        for _ in range(count):
            await echo_once(stream)

    return handler


async def echo_once(stream: Stream) -> None:
    await stream.send(await stream.receive(max_bytes=CAP, deadline=in_s(30)), deadline=in_s(30))


async def ask(stream: Stream, *parts: bytes | bytearray | memoryview) -> bytes:
    await stream.send(*parts, deadline=in_s(30))
    return bytes(await stream.receive(max_bytes=CAP, deadline=in_s(30)))


def test_messages_of_all_sizes_come_back_unchanged(kind: TransportKind) -> None:
    async def test() -> None:
        async with kind.pair() as (a, b):
            sizes = (0, 1, 21, 22, 23, 256 * 1024, 256 * 1024 + 1, MIB, 8 * MIB)
            await b.serve("echo", echo_times(len(sizes)))
            stream = await a.open(b.local_id, "echo", deadline=in_s(10))
            for size in sizes:
                message = bytes(index % 251 for index in range(997)) * (size // 997 + 1)
                assert await ask(stream, message[:size]) == message[:size]
            await stream.aclose()

    kind.run(test)


def test_parts_arrive_as_one_message(kind: TransportKind) -> None:
    async def test() -> None:
        async with kind.pair() as (a, b):
            await b.serve("echo", echo)
            stream = await a.open(b.local_id, "echo", deadline=in_s(10))
            large = bytes(300_000)
            parts: list[bytes | bytearray | memoryview] = [
                b"",
                b"one",
                bytearray(b"two"),
                memoryview(large),
                b"",
                b"end",
            ]
            assert await ask(stream, *parts) == b"onetwo" + large + b"end"
            assert await ask(stream) == b""

    kind.run(test)


def test_an_answer_and_its_acknowledgement_survive_the_close(kind: TransportKind) -> None:
    async def test() -> None:
        acknowledged: list[bool] = []

        async def answer(stream: Stream) -> None:
            try:
                await echo_once(stream)
            except PeerError:
                acknowledged.append(False)
                raise
            acknowledged.append(True)

        async with kind.pair() as (a, b):
            await b.serve("echo", answer)
            for size in (1, 100_000, 2 * MIB):
                stream = await a.open(b.local_id, "echo", deadline=in_s(10))
                assert await ask(stream, bytes(size)) == bytes(size)
                await stream.aclose()
            await until(lambda: len(acknowledged) == 3)
            assert all(acknowledged)

    kind.run(test)


def test_a_last_message_survives_the_close_that_follows_it(kind: TransportKind) -> None:
    async def test() -> None:
        got: list[int] = []

        async def take(stream: Stream) -> None:
            got.append(len(await stream.receive(max_bytes=CAP, deadline=in_s(30))))

        async with kind.pair() as (a, b):
            await b.serve("take", take)
            for _ in range(5):
                stream = await a.open(b.local_id, "take", deadline=in_s(10))
                await stream.send(bytes(MIB), deadline=in_s(30))
                await stream.aclose()
            assert got == [MIB] * 5

    kind.run(test)


def test_both_ends_know_who_the_other_is(kind: TransportKind) -> None:
    async def test() -> None:
        async with kind.pair() as (a, b):

            async def name_caller(stream: Stream) -> None:
                await stream.send(stream.remote, deadline=in_s(10))

            await b.serve("who", name_caller)
            stream = await a.open(b.local_id, "who", deadline=in_s(10))
            assert bytes(await stream.receive(max_bytes=100, deadline=in_s(10))) == a.local_id
            assert stream.remote == b.local_id
            assert len(a.local_id) == len(b.local_id) == PEER_ID_BYTES
            assert a.local_id != b.local_id

    kind.run(test)


def test_a_message_above_the_cap_is_refused_before_it_takes_memory(kind: TransportKind) -> None:
    async def test() -> None:
        refused: list[str] = []
        peaks: list[int] = []

        async def small_only(stream: Stream) -> None:
            tracemalloc.start()
            try:
                await stream.receive(max_bytes=1000, deadline=in_s(10))
            except PeerError as error:
                refused.append(error.reason)
                raise
            finally:
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()

        async with kind.pair() as (a, b):
            await b.serve("small", small_only)
            message = bytes(8 * MIB)  # before the handler starts to measure
            stream = await a.open(b.local_id, "small", deadline=in_s(10))
            with pytest.raises(PeerError) as caught:
                await stream.send(message, deadline=in_s(20))
            assert caught.value.reason == "refused"
            assert "too large" in str(caught.value)
            await until(lambda: bool(peaks))
            assert refused == ["too-large"]
            # The senders' copies in buffers of the transport count too; 8 MiB are not among them.
            assert peaks[0] < 4 * MIB

    kind.run(test)


def test_a_message_of_exactly_the_cap_is_taken(kind: TransportKind) -> None:
    async def test() -> None:
        async def exact(stream: Stream) -> None:
            await stream.receive(max_bytes=1000, deadline=in_s(10))

        async with kind.pair() as (a, b):
            await b.serve("exact", exact)
            stream = await a.open(b.local_id, "exact", deadline=in_s(10))
            await stream.send(bytes(1000), deadline=in_s(10))
            with pytest.raises(PeerError) as caught:  # the handler has returned
                await stream.send(bytes(1001), deadline=in_s(10))
            assert caught.value.reason == "closed"

    kind.run(test)


def test_a_protocol_that_is_not_served_is_a_network_error(kind: TransportKind) -> None:
    async def test() -> None:
        async with kind.pair() as (a, b):
            await b.serve("echo", echo)
            with pytest.raises(NetworkError):
                await a.open(b.local_id, "unknown", deadline=in_s(10))
            stream = await a.open(b.local_id, "echo", deadline=in_s(10))
            assert await ask(stream, b"still here") == b"still here"

    kind.run(test)


def test_a_silent_handler_costs_no_more_than_the_deadline(kind: TransportKind) -> None:
    async def test() -> None:
        async def silent(stream: Stream) -> None:
            await asyncio.Event().wait()

        async with kind.pair() as (a, b):
            await b.serve("silent", silent)
            loop = asyncio.get_running_loop()
            calls: list[Callable[[Stream, float], Awaitable[object]]] = [
                lambda stream, at: stream.send(b"hello", deadline=at),
                lambda stream, at: stream.receive(max_bytes=10, deadline=at),
                lambda stream, at: stream.send(bytes(8 * MIB), deadline=at),
            ]
            for call in calls:
                stream = await a.open(b.local_id, "silent", deadline=in_s(10))
                deadline = in_s(0.5)
                with pytest.raises(TimeoutError):
                    await call(stream, deadline)
                assert deadline <= loop.time() < deadline + 0.3
                with pytest.raises(PeerError) as caught:
                    await stream.send(b"again", deadline=in_s(1))
                assert caught.value.reason == "closed"
                await stream.aclose()

    kind.run(test)


def test_a_failing_handler_hurts_nobody_and_tells_nothing(
    kind: TransportKind, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async def failing(stream: Stream) -> None:
            await stream.receive(max_bytes=100, deadline=in_s(10))
            raise RuntimeError("/home/volunteer/secret")

        async with kind.pair() as (a, b):
            await b.serve("failing", failing)
            await b.serve("echo", echo)
            for _ in range(3):
                stream = await a.open(b.local_id, "failing", deadline=in_s(10))
                with pytest.raises(PeerError) as caught:
                    await ask(stream, b"hello")
                assert caught.value.reason == "closed"
                assert "secret" not in str(caught.value)
                await stream.aclose()
            stream = await a.open(b.local_id, "echo", deadline=in_s(10))
            assert await ask(stream, b"fine") == b"fine"

    kind.run(test)
    assert "secret" in caplog.text, "the owner of the handler reads what went wrong"


@pytest.mark.parametrize("closer", ["sender", "receiver"])
def test_closing_ends_a_send_in_progress(kind: TransportKind, closer: str) -> None:
    async def test() -> None:
        async def leave(stream: Stream) -> None:
            if closer == "sender":
                await asyncio.Event().wait()

        async with kind.pair() as (a, b):
            await b.serve("leave", leave)
            stream = await a.open(b.local_id, "leave", deadline=in_s(10))
            sending = asyncio.get_running_loop().create_task(
                stream.send(bytes(8 * MIB), deadline=in_s(20))
            )
            await asyncio.sleep(0.001)
            if closer == "sender":
                await stream.aclose()
            with pytest.raises(PeerError) as caught:
                await sending
            assert caught.value.reason == "closed"
            await stream.aclose()

    kind.run(test)


def test_many_streams_at_once_keep_their_messages_apart(kind: TransportKind) -> None:
    async def test() -> None:
        async def one(a: Transport, b: Transport, number: int) -> None:
            stream = await a.open(b.local_id, "echo", deadline=in_s(20))
            message = bytes([number]) * (30_000 * number)
            assert await ask(stream, message) == message
            assert await ask(stream, message[:5]) == message[:5]
            await stream.aclose()

        async with kind.pair() as (a, b):
            await a.serve("echo", echo_times(2))
            await b.serve("echo", echo_times(2))
            async with asyncio.TaskGroup() as group:
                for number in range(12):
                    group.create_task(one(a, b, number))
                    group.create_task(one(b, a, number))

    kind.run(test)


def test_concurrent_sends_on_one_stream_take_turns(kind: TransportKind) -> None:
    async def test() -> None:
        got: list[tuple[int, int]] = []

        async def collect(stream: Stream) -> None:
            for _ in range(6):
                message = await stream.receive(max_bytes=CAP, deadline=in_s(30))
                got.append((message[0], len(message)))
                assert set(message) == {message[0]}

        async with kind.pair() as (a, b):
            await b.serve("collect", collect)
            stream = await a.open(b.local_id, "collect", deadline=in_s(10))
            async with asyncio.TaskGroup() as group:
                for number in range(6):
                    message = bytes([number]) * (100_000 * number + 1)
                    group.create_task(stream.send(message, deadline=in_s(30)))
            assert sorted(got) == [(number, 100_000 * number + 1) for number in range(6)]

    kind.run(test)


def test_both_ends_may_send_and_receive_at_the_same_time(kind: TransportKind) -> None:
    async def test() -> None:
        async def exchange(stream: Stream, own: bytes) -> memoryview:
            async with asyncio.TaskGroup() as group:
                group.create_task(stream.send(own, deadline=in_s(30)))
                receiving = group.create_task(stream.receive(max_bytes=CAP, deadline=in_s(30)))
            return receiving.result()

        got: list[memoryview] = []

        async def answer(stream: Stream) -> None:
            for size in (1, 3 * MIB, 70_000):
                got.append(await exchange(stream, b"b" * size))
            await stream.receive(max_bytes=1, deadline=in_s(30))

        async with kind.pair() as (a, b):
            await b.serve("exchange", answer)
            stream = await a.open(b.local_id, "exchange", deadline=in_s(10))
            for size in (1, 3 * MIB, 70_000):
                assert await exchange(stream, b"a" * (size + 1)) == b"b" * size
            await stream.send(b".", deadline=in_s(10))
            assert [len(message) for message in got] == [2, 3 * MIB + 1, 70_001]

    kind.run(test)


def test_bytes_are_counted_alike_at_both_ends(kind: TransportKind) -> None:
    async def test() -> None:
        async with kind.pair() as (a, b):
            handlers: dict[str, StreamHandler] = {"echo": echo_once, "other": echo_once}
            for protocol, handler in handlers.items():
                await b.serve(protocol, handler)
            for protocol, size in (("echo", 500_000), ("other", 10)):
                stream = await a.open(b.local_id, protocol, deadline=in_s(10))
                await ask(stream, bytes(size))
                await stream.aclose()
            await until(lambda: b.traffic.received() == a.traffic.sent())
            assert list(a.traffic.purposes()) == ["echo", "other"]
            for protocol, size in (("echo", 500_000), ("other", 10)):
                assert a.traffic.sent(protocol) == b.traffic.received(protocol)
                assert b.traffic.sent(protocol) == a.traffic.received(protocol)
                # Each way: one message with its header and the acknowledgement of the other.
                assert size < a.traffic.sent(protocol) < size + 100
                assert size < b.traffic.sent(protocol) < size + 100
            assert a.traffic.sent() == a.traffic.sent("echo") + a.traffic.sent("other")
            assert a.traffic.sent("never") == 0

    kind.run(test)


def test_a_closed_stream_stays_closed(kind: TransportKind) -> None:
    async def test() -> None:
        async with kind.pair() as (a, b):
            await b.serve("echo", echo)
            stream = await a.open(b.local_id, "echo", deadline=in_s(10))
            await stream.aclose()
            await stream.aclose()
            with pytest.raises(PeerError) as caught:
                await stream.send(b"late", deadline=in_s(10))
            assert caught.value.reason == "closed"
            with pytest.raises(PeerError) as caught:
                await stream.receive(max_bytes=10, deadline=in_s(10))
            assert caught.value.reason == "closed"

    kind.run(test)


async def opened_and_used(transport: Transport, peer: PeerId) -> None:
    """A transport that has just spoken to a peer may open a stream before it hears that nobody serves."""
    stream = await transport.open(peer, "waits", deadline=in_s(2))
    await stream.receive(max_bytes=10, deadline=in_s(2))


def test_closing_a_transport_leaves_no_task_and_ends_what_is_open(kind: TransportKind) -> None:
    async def test() -> None:
        cancelled: list[bool] = []

        async def waits(stream: Stream) -> None:
            try:
                while True:
                    await stream.receive(max_bytes=10, deadline=in_s(100))
            finally:
                cancelled.append(True)

        before = asyncio.all_tasks()
        async with kind.pair() as (a, b):
            await b.serve("waits", waits)
            await a.serve("waits", waits)
            there = await a.open(b.local_id, "waits", deadline=in_s(10))
            back = await b.open(a.local_id, "waits", deadline=in_s(10))
            await there.send(b"begin", deadline=in_s(10))
            await back.send(b"begin", deadline=in_s(10))
            await b.aclose()
            await b.aclose()
            assert cancelled, "the handler was ended"
            with pytest.raises(PeerError):
                await there.receive(max_bytes=10, deadline=in_s(10))
            with pytest.raises(PeerError):
                await back.receive(max_bytes=10, deadline=in_s(10))
            with pytest.raises(NetworkError):
                await b.open(a.local_id, "waits", deadline=in_s(10))
            with pytest.raises((PeerError, NetworkError, TimeoutError)):
                await opened_and_used(a, b.local_id)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before

    kind.run(test)
