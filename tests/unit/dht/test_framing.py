"""Framing against an other end that speaks raw bytes; what two honest ends do is in the contract."""

from __future__ import annotations

import array
import asyncio
import itertools
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from xxhash import xxh3_128

from runnel.dht.frames import HEADER_BYTES, Header, Kind, Refusal, batches, tag_of
from runnel.dht.framing import LINGER_S, FramedStream, TakeRoom, fresh_room
from runnel.dht.identity import null_peer_id
from runnel.dht.memory import Link, MemoryNetwork
from runnel.dht.memory_stream import MemoryByteStream
from runnel.dht.traffic import ByteCounter
from runnel.dht.virtual_loop import run_virtual
from runnel.errors import PeerError

DEADLINE = 50.0
Script = Callable[[FramedStream, MemoryByteStream], Coroutine[Any, Any, None]]


class RawPeer:
    """The other end: hands out the bare stream."""

    def __init__(self) -> None:
        self.streams: list[MemoryByteStream] = []

    def accept(self, protocol: str, stream: MemoryByteStream) -> bool:
        self.streams.append(stream)
        return True

    def die(self) -> None:
        raise AssertionError("not in these tests")


def against_raw(
    script: Script,
    *,
    traffic: ByteCounter | None = None,
    window_bytes: int = 1 << 20,
    take_room: TakeRoom = fresh_room,
) -> None:
    async def main() -> None:
        link = Link(latency_s=0.05)
        network = MemoryNetwork(seed=0, default_link=link, window_bytes=window_bytes)
        raw = RawPeer()
        network.attach(null_peer_id(1), RawPeer())
        network.attach(null_peer_id(2), raw)
        byte_stream = await network.connect(null_peer_id(1), null_peer_id(2), "test")
        stream = FramedStream(byte_stream, traffic or ByteCounter(), "test", take_room=take_room)
        await script(stream, raw.streams[0])

    run_virtual(main, limit_s=100)


def now() -> float:
    return asyncio.get_running_loop().time()


def tag(payload: bytes) -> bytes:
    return bytes(xxh3_128(payload).digest())


def data(payload: bytes) -> bytes:
    return b"\x02\x01" + len(payload).to_bytes(4, "big") + tag(payload) + payload


async def read_exactly(raw: MemoryByteStream, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = await raw.read(size - len(got))
        assert piece, f"closed after {len(got)} of {size} bytes"
        got += piece
    return got


async def fails(reason: str, awaitable: Coroutine[Any, Any, Any]) -> str:
    with pytest.raises(PeerError) as caught:
        await awaitable
    assert caught.value.reason == reason
    return str(caught.value)


def test_a_frame_is_the_bytes_of_the_specification() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        sending = asyncio.get_running_loop().create_task(
            stream.send(b"he", b"", b"llo", deadline=DEADLINE)
        )
        expected = b"\x02\x01\x00\x00\x00\x05" + tag(b"hello") + b"hello"
        assert await read_exactly(raw, len(expected)) == expected
        await raw.write(b"\x02\x02\x00\x00\x00\x00" + tag(b"hello"))
        await sending

        await raw.write(data(b"world"))
        assert bytes(await stream.receive(max_bytes=5, deadline=DEADLINE)) == b"world"
        assert await read_exactly(raw, 22) == b"\x02\x02\x00\x00\x00\x00" + tag(b"world")

    against_raw(script)


def test_a_message_in_single_bytes_is_put_together() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        for byte in data(b"hello"):
            await raw.write(bytes([byte]))
        assert bytes(await stream.receive(max_bytes=5, deadline=DEADLINE)) == b"hello"

    against_raw(script)


def test_a_changed_payload_is_refused() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        frame = bytearray(data(b"hello"))
        frame[-1] ^= 1
        await raw.write(frame)
        await fails("hash-mismatch", stream.receive(max_bytes=5, deadline=DEADLINE))
        assert await read_exactly(raw, 22) == (b"\x02\x03\x00\x00\x00\x02" + tag(b"hello")), (
            "REFUSE with the reason"
        )
        await fails("closed", stream.receive(max_bytes=5, deadline=DEADLINE))

    against_raw(script)


def test_a_refusal_arrives_before_the_close() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        await raw.write(data(bytes(1001)))
        await fails("too-large", stream.receive(max_bytes=1000, deadline=DEADLINE))
        closing = asyncio.get_running_loop().create_task(stream.aclose())
        assert await read_exactly(raw, 22) == (b"\x02\x03\x00\x00\x00\x01" + tag(bytes(1001)))
        await raw.write(bytes(5000))  # still sending: thrown away
        await asyncio.sleep(0.5)
        assert not closing.done()
        await raw.aclose()
        await closing

    against_raw(script)


def test_an_announced_length_takes_no_memory() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        await raw.write(b"\x02\x01\x40\x00\x00\x00" + bytes(16) + b"just a little")
        tracemalloc.start()
        with pytest.raises(TimeoutError):
            await stream.receive(max_bytes=2**31, deadline=now() + 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000

    against_raw(script)


@pytest.mark.parametrize(
    "header",
    [
        b"\x00\x01\x00\x00\x00\x00" + bytes(16),  # version
        b"\x01\x01\x00\x00\x00\x00" + bytes(16),
        b"\x03\x01\x00\x00\x00\x00" + bytes(16),
        b"\x02\x00\x00\x00\x00\x00" + bytes(16),  # kind
        b"\x02\x04\x00\x00\x00\x00" + bytes(16),
        b"\x02\x02\x00\x00\x00\x00" + bytes(16),  # an answer to nothing
        b"\x02\x03\x00\x00\x00\x01" + bytes(16),
        b"HTTP/1.1 400 Bad Request\r\n"[:22],
    ],
)
def test_a_header_that_makes_no_sense_is_malformed(header: bytes) -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        await raw.write(header)
        await fails("malformed", stream.receive(max_bytes=100, deadline=DEADLINE))
        await fails("closed", stream.send(b"x", deadline=DEADLINE))

    against_raw(script)


@pytest.mark.parametrize(
    "reply",
    [
        b"\x02\x02\x00\x00\x00\x00" + bytes(16),  # the tag of something else
        b"\x02\x03\x00\x00\x00\x01" + bytes(16),
        b"\x02\x02\x00\x00\x00\x01" + tag(b"hello"),  # an acknowledgement has no length
        b"\x02\x03\x00\x00\x00\x63" + tag(b"hello"),  # no such reason
    ],
)
def test_an_answer_that_makes_no_sense_is_malformed(reply: bytes) -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        await raw.write(reply)
        await fails("malformed", stream.send(b"hello", deadline=DEADLINE))

    against_raw(script)


@pytest.mark.parametrize("size", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 4])
def test_a_truncated_frame_is_a_closed_stream(size: int) -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        await raw.write(data(b"hello")[:size])
        await asyncio.sleep(1)
        await raw.aclose()
        await fails("closed", stream.receive(max_bytes=100, deadline=DEADLINE))

    against_raw(script)


def test_a_refusal_stops_a_long_message_early_and_says_why() -> None:
    traffic = ByteCounter()

    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        message = bytes(8 << 20)
        sending = asyncio.get_running_loop().create_task(stream.send(message, deadline=DEADLINE))
        header = await read_exactly(raw, HEADER_BYTES)
        await raw.write(Header(Kind.REFUSE, Refusal.TOO_LARGE, header[6:]).encode())
        with pytest.raises(PeerError, match="refused: a message of 8388608 bytes: too large"):
            await sending

    against_raw(script, traffic=traffic)
    assert traffic.sent("test") <= 2 << 20


def test_an_end_that_wrote_last_lingers_until_the_other_closes() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        await raw.write(data(b"last"))
        await stream.receive(max_bytes=10, deadline=DEADLINE)
        closing = asyncio.get_running_loop().create_task(stream.aclose())
        await read_exactly(raw, 22)
        await asyncio.sleep(1)
        assert not closing.done()
        await raw.aclose()
        await closing
        assert now() < 2

    against_raw(script)


def test_lingering_is_bounded() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        await raw.write(data(b"last"))
        await stream.receive(max_bytes=10, deadline=DEADLINE)
        start = now()
        await stream.aclose()
        assert now() - start == pytest.approx(LINGER_S)
        await read_exactly(raw, 22)
        assert await raw.read(1) == b""

    against_raw(script)


def test_an_end_that_read_last_closes_at_once() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        await raw.write(b"\x02\x02\x00\x00\x00\x00" + tag(b"hello"))
        await stream.send(b"hello", deadline=DEADLINE)
        start = now()
        await stream.aclose()
        assert now() == start
        await read_exactly(raw, HEADER_BYTES + 5)
        assert await raw.read(1) == b""

    against_raw(script)


def test_a_new_message_ends_the_lingering() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        await raw.write(data(b"one"))
        await stream.receive(max_bytes=10, deadline=DEADLINE)
        await raw.write(data(b"two, which nobody awaits"))
        start = now()
        await stream.aclose()
        assert now() - start < 1

    against_raw(script)


@pytest.mark.parametrize("busy", ["receive", "send"])
def test_closing_never_lingers_under_a_call_in_progress(busy: str) -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        await raw.write(data(b"one"))
        await stream.receive(max_bytes=10, deadline=DEADLINE)
        call = asyncio.get_running_loop().create_task(
            stream.receive(max_bytes=10, deadline=DEADLINE)
            if busy == "receive"
            else stream.send(bytes(60), bytes(60), deadline=DEADLINE)  # stuck: nobody reads
        )
        await asyncio.sleep(0.5)
        start = now()
        await stream.aclose()
        assert now() == start
        assert isinstance(await _outcome(call), PeerError)
        assert now() == start

    against_raw(script, window_bytes=50)


def test_a_past_deadline_is_a_timeout() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            await stream.send(b"hello", deadline=0.5)
        await fails("closed", stream.send(b"hello", deadline=DEADLINE))

    against_raw(script)


def test_waiting_for_ones_turn_to_send_spoils_nothing() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        first = asyncio.get_running_loop().create_task(stream.send(b"hello", deadline=DEADLINE))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await stream.send(b"impatient", deadline=now() + 1)
        await raw.write(b"\x02\x02\x00\x00\x00\x00" + tag(b"hello"))
        await first
        await read_exactly(raw, HEADER_BYTES + 5)

    against_raw(script)


def test_a_cancelled_receive_spoils_the_stream() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        receiving = asyncio.get_running_loop().create_task(
            stream.receive(max_bytes=10, deadline=DEADLINE)
        )
        await asyncio.sleep(0)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        await fails("closed", stream.receive(max_bytes=10, deadline=DEADLINE))
        assert await raw.read(1) == b"", "the other end learns at once"

    against_raw(script)


def test_closing_ends_calls_in_progress() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        loop = asyncio.get_running_loop()
        receiving = loop.create_task(stream.receive(max_bytes=10, deadline=DEADLINE))
        sending = loop.create_task(stream.send(b"hello", deadline=DEADLINE))
        await asyncio.sleep(0.1)
        await stream.aclose()
        assert isinstance(await _outcome(receiving), PeerError)
        assert isinstance(await _outcome(sending), PeerError)
        assert now() < 1

    against_raw(script)


def test_a_receiver_hands_answers_to_the_sender() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        loop = asyncio.get_running_loop()
        receiving = loop.create_task(stream.receive(max_bytes=10, deadline=DEADLINE))
        await asyncio.sleep(0.1)  # it is at the wire first
        sending = loop.create_task(stream.send(b"hello", deadline=DEADLINE))
        await raw.write(b"\x02\x02\x00\x00\x00\x00" + tag(b"hello"))
        await sending
        assert not receiving.done()
        await raw.write(data(b"world"))
        assert bytes(await receiving) == b"world"

    against_raw(script)


def test_a_sender_leaves_messages_to_the_receiver() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        sending = asyncio.get_running_loop().create_task(stream.send(b"hello", deadline=DEADLINE))
        await raw.write(data(b"world"))
        await raw.write(b"\x02\x02\x00\x00\x00\x00" + tag(b"hello"))
        await asyncio.sleep(1)
        assert not sending.done(), "the answer is behind a message that nobody has taken"
        assert bytes(await stream.receive(max_bytes=10, deadline=DEADLINE)) == b"world"
        await sending

    against_raw(script)


def test_parts_of_any_contiguous_kind_are_their_bytes() -> None:
    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        numbers = array.array("f", [1.0, 2.0])
        empty = memoryview(array.array("f")).cast("B").cast("f")
        expected = numbers.tobytes()
        await raw.write(b"\x02\x02\x00\x00\x00\x00" + tag(expected))
        await stream.send(numbers, empty, deadline=DEADLINE)
        assert await read_exactly(raw, HEADER_BYTES + 8) == data(expected)

    against_raw(script)


def test_batches_hold_every_byte_once_and_are_never_large() -> None:
    payload = bytes(index % 253 for index in range(700_001))
    cuts = [0, 1, 1, 300_000, 300_005, 699_999, 700_001]
    views = [memoryview(payload)[a:b] for a, b in itertools.pairwise(cuts)]
    written = [b"".join(batch) for batch in batches(b"header", views)]
    assert b"".join(written) == b"header" + payload
    assert max(map(len, written)) <= 256 * 1024 + len(b"header")
    assert len(list(batches(b"header", []))) == 1


def test_the_tag_does_not_depend_on_the_cutting() -> None:
    async def main() -> None:
        payload = bytes(9 << 20)
        whole = await tag_of([memoryview(payload)])
        assert whole == tag(payload)
        cut = [memoryview(payload)[start : start + 999_983] for start in range(0, 9 << 20, 999_983)]
        assert await tag_of(cut) == whole

    run_virtual(main)


async def _outcome(task: asyncio.Task[Any]) -> BaseException | None:
    await asyncio.wait([task])
    return task.exception()


def test_a_message_arrives_in_the_memory_that_was_given_for_it() -> None:
    rooms: list[memoryview] = []

    def take_room(size_bytes: int) -> memoryview:
        rooms.append(memoryview(bytearray(size_bytes)))
        return rooms[-1]

    async def script(stream: FramedStream, raw: MemoryByteStream) -> None:
        await raw.write(data(b"hello"))
        await stream.receive(max_bytes=5, deadline=DEADLINE)
        await raw.write(data(bytes(1001)))
        await fails("too-large", stream.receive(max_bytes=1000, deadline=DEADLINE))

    against_raw(script, take_room=take_room)
    assert [bytes(room) for room in rooms] == [b"hello"], "no memory for what is refused"
