"""What can go wrong, sorted by who must act.

::

    RunnelError
    ├── ConfigError        exit 2   the user edits a file, a flag or an invite
    ├── InputFileError     exit 3   a key, checkpoint, text or journal file is missing, damaged or not ours
    ├── NetworkError       exit 4   nobody reachable, a port in use, a daemon that does not start: retry
    ├── RunMismatchError   exit 5   this software, model or data is not what the run's manifest says
    ├── StorageError       exit 6   the disk is full, read-only or failing
    ├── PeerError          never    blame a peer; the handler turns it into a verdict
    └── BugError           exit 70  a broken promise of ours: please report it

A message says what was seen, what was expected and what to do, in one line.
"""

from __future__ import annotations


class RunnelError(Exception):
    """Base of everything runnel raises on purpose."""

    exit_code = 1


class ConfigError(RunnelError):
    """A file, option or invite that its author must correct."""

    exit_code = 2


class InputFileError(RunnelError):
    """A file given by the user that is missing, unreadable, damaged or of another kind."""

    exit_code = 3


class NetworkError(RunnelError):
    """The network or the daemon did not do its part; trying again can help."""

    exit_code = 4


class RunMismatchError(RunnelError):
    """What this machine has differs from what the run's manifest promises."""

    exit_code = 5


class StorageError(RunnelError):
    """The disk refused a write or lost a read."""

    exit_code = 6


class PeerError(RunnelError):
    """A peer sent something unusable. Caught at the handler, counted under `reason`, never fatal."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class BugError(RunnelError):
    """An invariant of our own does not hold."""

    exit_code = 70


EXIT_INTERRUPTED = 130
"""Exit code after a second Ctrl-C, or one before the peer took part."""
