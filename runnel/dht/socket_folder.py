"""A private folder for the daemon's sockets: short, ours alone, and gone when its process is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from runnel.errors import StorageError
from runnel.files import is_ours, open_file, try_lock

_log = logging.getLogger(__name__)

PREFIX = "runnel-daemon-"
MAX_SOCKET_PATH_BYTES = 103
"""The shortest limit among the systems that we run on (macOS); Linux allows four more."""

_LONGEST_NAME = len(PREFIX) + 8 + len("/daemon.sock")
_LOCK, _PID = "lock", "daemon.pid"
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_END_S, _POLL_S = 1.0, 0.01


class SocketFolder:
    """A folder with mode 0700 under the system's temporary one, locked while this process lives.

    Creating one removes those of processes that were killed: their locks are free.
    """

    def __init__(self) -> None:
        remove_stale()
        parent = _parent()
        try:
            self._path, self._lock = _create(parent)
        except OSError as error:
            raise StorageError(
                f"cannot create a folder for sockets in {parent} ({error.strerror}); "
                "set TMPDIR to a short path of a writable folder"
            ) from error

    @property
    def daemon_socket(self) -> str:
        """Where the daemon listens for requests."""
        return str(self._path / "daemon.sock")

    @property
    def stream_socket(self) -> str:
        """Where we listen for incoming streams."""
        return str(self._path / "stream.sock")

    def note_daemon(self, pid: int) -> None:
        """Notes which process is to end with this folder."""
        (self._path / _PID).write_text(str(pid), encoding="ascii")

    def remove_socket(self) -> None:
        """Deletes the daemon's socket, which a killed daemon leaves behind."""
        Path(self.daemon_socket).unlink(missing_ok=True)

    def remove(self) -> None:
        """Deletes the folder with all that is in it. Idempotent."""
        if self._lock >= 0:
            shutil.rmtree(self._path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _parent() -> Path:
    parent = Path(tempfile.gettempdir())
    if len(os.fsencode(parent)) + 1 + _LONGEST_NAME > MAX_SOCKET_PATH_BYTES:
        return Path("/tmp")  # noqa: S108 - only the parent: the folder itself is new, and ours
    return parent


def _create(parent: Path) -> tuple[Path, int]:
    """Makes and locks a folder before it gets the name under which others may find it stale."""
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
    lock = open_file(hidden / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try_lock(lock)
    path = parent / hidden.name[1:]
    hidden.rename(path)
    return path, lock


def remove_stale() -> None:
    """Removes the folders of processes that were killed, and ends their daemons.

    Such a daemon ends by itself, but until then it holds its port, and others stay connected to it.
    """
    for path in _parent().glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or removed by another process just now
            if not is_ours(path):
                continue
            lock = open_file(path / _LOCK, os.O_RDWR | _NO_FOLLOW)
            try:
                if try_lock(lock):
                    _end_daemon(path)
                    shutil.rmtree(path, ignore_errors=True)
                    _log.debug("removed %s, left behind by a process that was killed", path)
            finally:
                os.close(lock)


def _end_daemon(path: Path) -> None:
    """Ends the daemon noted in a stale folder, if it is one still and the system tells (/proc)."""
    try:
        pid = int((path / _PID).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    line, ours = Path(f"/proc/{pid}/cmdline"), os.fsencode(path / "daemon.sock")
    for attempt in range(int(_END_S / _POLL_S)):
        if not line.exists() or ours not in line.read_bytes():
            return
        if attempt == 0:
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()
        time.sleep(_POLL_S)
