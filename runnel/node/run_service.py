"""What any member tells a newcomer: the manifest, the names of the first state, the chain, old entries.

Request and answer are one message each. A newcomer checks everything against the run id in its
invite; nothing here is believed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runnel.dht.wire import pack, unpack
from runnel.errors import InputFileError, NetworkError, PeerError, StorageError
from runnel.node.records import blob, digest_of, items, row
from runnel.node.ticket import RUN_ID_BYTES
from runnel.protocols import Stream, Transport
from runnel.types import Digest, PeerId

RUN_PROTOCOL = "run"
MANIFEST, GENESIS, RECORDS = "manifest", "genesis", "records"
ENTRIES = "entries"
_MAX_REQUEST_BYTES = 16 << 10
_MAX_ANSWER_BYTES = 4 << 20
_ANSWER_S = 10.0

Answer = Callable[[list[Digest]], bytes]
Job = Callable[[Answer, list[Digest]], Awaitable[bytes]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """What a newcomer asks of the run `run` (see `ask`); `names` are records that it has, newest first.

    For entries it is the one record whose round, and those after it, are asked for.
    """

    run: bytes
    kind: str
    names: tuple[Digest, ...] = ()

    def encode(self) -> bytes:
        """Canonical bytes."""
        return pack([self.run, self.kind, list(self.names)])

    @staticmethod
    def decode(data: bytes) -> Question:
        """Reads a question; PeerError for anything malformed."""
        run, kind, names = row(unpack(data, max_bytes=_MAX_REQUEST_BYTES), 3)
        if not isinstance(kind, str):
            raise PeerError("malformed", "a question without a kind")
        return Question(blob(run, 32), kind, tuple(digest_of(name) for name in items(names, 256)))


class RunService:
    """Answers newcomers.

    Args:
        transport: to serve on.
        run: the run's id.
        answers: gives, for each kind of request, the bytes of the answer; may block on the disk.
        job: runs an answer on a thread that may block.
    """

    def __init__(
        self, transport: Transport, run: bytes, answers: Mapping[str, Answer], *, job: Job
    ) -> None:
        self._transport, self._run = transport, run
        self._answers, self._job = dict(answers), job

    async def serve(self) -> None:
        """Starts answering."""
        await self._transport.serve(RUN_PROTOCOL, self._on_stream)

    async def _on_stream(self, stream: Stream) -> None:
        deadline = asyncio.get_running_loop().time() + _ANSWER_S
        data = await stream.receive(max_bytes=_MAX_REQUEST_BYTES, deadline=deadline)
        question = Question.decode(bytes(data))
        answer = self._answers.get(question.kind)
        if answer is None or not self._is_ours(question.run):
            await stream.send(pack([False, b"this peer is not in that run"]), deadline=deadline)
            return
        try:
            told = [True, await self._job(answer, list(question.names))]
        except (InputFileError, StorageError) as error:
            logger.warning("%s; it is not given to others", error)
            told = [False, b"this peer's disk does not give it"]
        await stream.send(pack(told), deadline=deadline)

    def _is_ours(self, run: bytes) -> bool:
        """Whether `run` is this run's id or the beginning of it that invites carry."""
        return len(run) >= RUN_ID_BYTES and self._run.startswith(run)


async def ask(
    transport: Transport, peer: PeerId, run: bytes, kind: str, names: list[Digest] | None = None
) -> bytes:
    """A member's answer. `run` is the run's id or the beginning of it that invites carry.

    Raises:
        NetworkError: it cannot be reached, or does not know the run.
        PeerError: its answer is malformed.
        TimeoutError: no answer in time.
    """
    deadline = asyncio.get_running_loop().time() + _ANSWER_S
    stream = await transport.open(peer, RUN_PROTOCOL, deadline=deadline)
    try:
        question = Question(run, kind, tuple(names or ()))
        await stream.send(question.encode(), deadline=deadline)
        data = await stream.receive(max_bytes=_MAX_ANSWER_BYTES, deadline=deadline)
    finally:
        await stream.aclose()
    known, content = row(unpack(bytes(data), max_bytes=_MAX_ANSWER_BYTES), 2)
    answer: Any = blob(content, _MAX_ANSWER_BYTES)
    if known is not True:
        raise NetworkError(
            f"asked for the run's {kind}: {bytes(answer)[:200].decode(errors='replace')}"
        )
    return bytes(answer)
