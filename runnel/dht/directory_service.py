"""The directory for peers that do not carry it: they ask one that does, by a stream of one question.

Question and answer are one message each (`runnel.dht.wire`)::

    ["time"]                              [now_s, true]
    ["publish", key_id, stored, expires_s]    [now_s, whether anybody holds it]
    ["lookup", key_id]                    [now_s, [[author, stored, expires_s], ...]]

`now_s` is what the answering peer's clock says (seconds since 1970), `stored` what
`runnel.dht.records` signs. Whoever publishes is the author: it is who the transport says it is. Both
ends check every record, so that a peer in between can hide records but not make any.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from runnel.dht.rates import Buckets, Rate
from runnel.dht.records import MAX_STORED_BYTES, Record, SignedRecordValidator
from runnel.dht.wire import pack, unpack
from runnel.errors import NetworkError, PeerError
from runnel.hashing import digest
from runnel.types import PeerId, short

if TYPE_CHECKING:
    from runnel.clock import Clock
    from runnel.dht.record_shelf import Found, RecordKeeper
    from runnel.protocols import Stream, Transport

_log = logging.getLogger(__name__)

PROTOCOL = "directory"
TIME, PUBLISH, LOOKUP = "time", "publish", "lookup"

KEY_ID_BYTES = 20
MAX_QUESTION_BYTES = MAX_STORED_BYTES + 256
MAX_RECORDS = 128
"""Records in one answer: of more, each peer that asks gets others."""

MAX_ANSWER_BYTES = MAX_RECORDS * (MAX_STORED_BYTES + 64) + 64

RATE = Rate(per_s=2, burst=30)
"""Questions of one peer: it publishes once a minute and looks up every few seconds."""

MAX_AT_ONCE = 16
"""Questions that are being answered; each may search the whole directory."""

ANSWER_S = 10.0


class DirectoryService:
    """Answers those who ask; `keeper` is the directory that it answers from."""

    def __init__(
        self,
        transport: Transport,
        keeper: RecordKeeper,
        records: SignedRecordValidator,
        clock: Clock,
    ) -> None:
        self._transport = transport
        self._keeper = keeper
        self._records = records
        self._clock = clock
        self._rate = Buckets(RATE)
        self._num_running = 0

    async def serve(self) -> None:
        """Starts answering; ends with the transport."""
        await self._transport.serve(PROTOCOL, self._on_stream)

    async def _on_stream(self, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ANSWER_S
        data = await stream.receive(max_bytes=MAX_QUESTION_BYTES, deadline=deadline)
        question = unpack(bytes(data), max_bytes=MAX_QUESTION_BYTES)
        if not self._rate.take(stream.remote, loop.time()) or self._num_running >= MAX_AT_ONCE:
            raise PeerError("busy", f"too many questions, one of them of {short(stream.remote)}")
        self._num_running += 1
        try:
            answer = await self._answer(stream.remote, question, deadline - ANSWER_S / 2)
        except (NetworkError, TimeoutError) as error:  # there is no directory yet, or none any more
            raise PeerError("busy", str(error) or "no directory in time") from error
        finally:
            self._num_running -= 1
        await stream.send(pack([self._clock.unix_s(), answer]), deadline=deadline)

    async def _answer(self, asker: PeerId, question: Any, deadline: float) -> Any:
        match question:
            case ["time"]:
                return True
            case ["publish", bytes(key_id), bytes(stored), float(expires_s)]:
                record = Record(_key_id(key_id), pack(asker), stored, expires_s)
                if not self._records.check(record):
                    return False
                return await self._keeper.hold(record, deadline=deadline)
            case ["lookup", bytes(key_id)]:
                found = await self._keeper.held(_key_id(key_id), deadline=deadline)
                return _some_of(found, asker)
            case _:
                raise PeerError("malformed", "no question to a directory")


def _key_id(data: bytes) -> bytes:
    if len(data) != KEY_ID_BYTES:
        raise PeerError("malformed", f"a key of {len(data)} bytes, expected {KEY_ID_BYTES}")
    return data


def _some_of(found: Found, asker: PeerId) -> list[list[Any]]:
    """What fits into one answer; if that is not all, who asks decides what is left out."""
    chosen = sorted(found, key=lambda author: digest(author, asker))[:MAX_RECORDS]
    return [[author, *found[author]] for author in chosen]
