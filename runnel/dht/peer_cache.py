"""Addresses of peers seen, kept on disk: how a node finds its swarm again when the bootstrap is gone."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import TYPE_CHECKING

from runnel.dht.multiaddr import PeerAddress, parse_peer_address
from runnel.files import make_folder, part_beside, remove, replace, write_new

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_log = logging.getLogger(__name__)

MAX_ADDRESSES = 64
"""Addresses kept, the newest first."""

MAX_FILE_BYTES = 64 * 1024

_VERSION = 1


class PeerCache:
    """A small JSON file. It is a convenience: damage or a full disk cost a log line, nothing else."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._addresses = [] if path is None else _load(path)

    @property
    def addresses(self) -> tuple[PeerAddress, ...]:
        """What is known, newest first."""
        return tuple(self._addresses)

    def add(self, seen: Iterable[PeerAddress]) -> None:
        """Puts addresses in front, drops the oldest, and writes the file if anything is new."""
        fresh = list(dict.fromkeys(seen))
        merged = list(dict.fromkeys([*fresh, *self._addresses]))[:MAX_ADDRESSES]
        if set(merged) == set(self._addresses):
            return
        self._addresses = merged
        if self._path is not None:
            _save(self._path, merged)


def _load(path: Path) -> list[PeerAddress]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        _log.warning("cannot read known peers from %s: %s", path, error.strerror)
        return []
    try:
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES} bytes")  # noqa: TRY301 - same end
        content = json.loads(data)
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']!r}")  # noqa: TRY301 - same end
        return [parse_peer_address(text) for text in content["addresses"][:MAX_ADDRESSES]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        _log.warning("the file of known peers %s is damaged (%s); starting a new one", path, error)
        return []


def _save(path: Path, addresses: list[PeerAddress]) -> None:
    content = {"version": _VERSION, "addresses": [str(address) for address in addresses]}
    part = part_beside(path)
    try:
        make_folder(path.parent)
        write_new(part, json.dumps(content, indent=1).encode())
        replace(part, path)
    except OSError as error:
        _log.warning("cannot keep known peers in %s: %s", path, error.strerror)
        with contextlib.suppress(OSError):
            remove(part)
