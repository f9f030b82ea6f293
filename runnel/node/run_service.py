"""What any member tells a newcomer: the manifest, the names of the first state, the corpus, the chain.

Request and answer are one message each. A newcomer checks everything against the run id in its
invite; nothing here is believed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from runnel.dht.wire import pack, unpack
from runnel.errors import NetworkError
from runnel.node.records import blob, digest_of, items, row
from runnel.node.ticket import RUN_ID_BYTES
from runnel.protocols import Stream, Transport
from runnel.types import Digest, PeerId

RUN_PROTOCOL = "run"
MANIFEST, GENESIS, CORPUS, RECORDS = "manifest", "genesis", "corpus", "records"
_MAX_REQUEST_BYTES = 16 << 10
_MAX_ANSWER_BYTES = 4 << 20
_ANSWER_S = 10.0

Answer = Callable[[list[Digest]], bytes]


class RunService:
    """Answers newcomers. `answers` gives, for each kind of request, the bytes of the answer."""

    def __init__(self, transport: Transport, run: bytes, answers: Mapping[str, Answer]) -> None:
        self._transport, self._run, self._answers = transport, run, dict(answers)

    async def serve(self) -> None:
        """Starts answering."""
        await self._transport.serve(RUN_PROTOCOL, self._on_stream)

    async def _on_stream(self, stream: Stream) -> None:
        deadline = asyncio.get_running_loop().time() + _ANSWER_S
        data = await stream.receive(max_bytes=_MAX_REQUEST_BYTES, deadline=deadline)
        run, kind, names = row(unpack(bytes(data), max_bytes=_MAX_REQUEST_BYTES), 3)
        answer = self._answers.get(kind) if isinstance(kind, str) else None
        if answer is None or not self._is_ours(blob(run, 32)):
            await stream.send(pack([False, b"this peer is not in that run"]), deadline=deadline)
            return
        content = answer([digest_of(name) for name in items(names, 256)])
        await stream.send(pack([True, content]), deadline=deadline)

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
        await stream.send(pack([run, kind, list(names or [])]), deadline=deadline)
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
