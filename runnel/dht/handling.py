"""Serving one incoming stream: the border at which what goes wrong in a handler stops."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from runnel.errors import PeerError
from runnel.types import short

if TYPE_CHECKING:
    from runnel.dht.framing import FramedStream
    from runnel.protocols import StreamHandler

_log = logging.getLogger(__name__)


async def run_handler(handler: StreamHandler, stream: FramedStream) -> None:
    """Serves one incoming stream and ends it: the border at which a handler's failures stop.

    The other end sees the stream close, and nothing of what went wrong.
    """
    try:
        await handler(stream)
    except (PeerError, TimeoutError) as error:
        _log.debug("stream of %s: %s", short(stream.remote), str(error) or "too late")
        if not stream.refused:
            stream.abort()
    except Exception:  # noqa: BLE001 - a task border: one handler's mistake ends no other
        _log.exception("a handler failed while serving %s", short(stream.remote))
        stream.abort()
    except BaseException:
        stream.abort()
        raise
    await stream.aclose()
