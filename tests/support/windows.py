"""A process on Linux made as much like one on Windows as is possible, to see what of ours needs POSIX.

It takes away what Windows has not, and puts Windows' rules about files in place of ours: what is open
is neither renamed, replaced nor deleted; folders cannot be opened; some signs and names are refused; a
file that is opened without `O_BINARY` is a text; locks are `msvcrt.locking`'s. It is not Windows: what
runs here may still fail there.

As a pytest plugin (``-p tests.support.windows``) it runs any test file so; as a program,
``python -m tests.support.windows MODULE ARGUMENTS``, any program.
"""

from __future__ import annotations

import asyncio
import builtins
import errno
import fcntl  # noqa: TID251 - stands behind the lock that Windows has
import functools
import importlib
import io
import os
import pathlib
import re
import runpy
import shutil
import signal
import socket
import struct
import sys
import tempfile
import types
import warnings
from collections.abc import Callable
from typing import Any

# what is not ours may use what it finds here, so it comes first
FOREIGN = (
    "blake3",
    "concurrent.futures.thread",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "ctypes",
    "hypothesis",
    "msgpack",
    "numba",
    "numpy",
    "psutil",
    "pydantic",
    "rich.console",
    "safetensors",
    "torch",
    "typer",
    "xxhash",
)
MISSING_MODULES = ("fcntl", "grp", "hivemind", "pwd", "resource", "termios", "uvloop")
MISSING_NAMES: dict[types.ModuleType, str] = {
    os: """O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_NOATIME O_NOFOLLOW O_NONBLOCK O_SYNC chown chroot
        fchmod fchown fdatasync fork forkpty getegid geteuid getgid getloadavg getpgid getpgrp getsid
        getuid killpg lchown lockf mkfifo mknod nice openpty posix_fadvise posix_fallocate pread preadv
        pwrite pwritev sched_getaffinity setgid setpgid setsid setuid statvfs sync sysconf
        uname wait wait3 wait4""",
    signal: """SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2
        alarm pthread_sigmask setitimer sigwait""",
    socket: "AF_UNIX CMSG_LEN SCM_RIGHTS SO_REUSEPORT",
    asyncio: "open_unix_connection start_unix_server",
}
_O_BINARY = 1 << 29
_SET_LOCK_OF_FILE = 37
"""`F_OFD_SETLK`: a lock of the open file, as on Windows, and not of the process."""
_REFUSED = re.compile(
    r'[<>:"|?*\x00-\x1f]|[ .]$|^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$', re.IGNORECASE
)


def make_windows() -> None:
    """Changes this process for good."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in FOREIGN:
            importlib.import_module(name)
    # there it is a pair of TCP sockets
    socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)
    real_control = fcntl.fcntl
    for name in MISSING_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # makes its import fail
    for module, names in MISSING_NAMES.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    sys.modules["msvcrt"] = _msvcrt(real_control)
    sys.platform = "win32"
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    os.O_BINARY = _O_BINARY  # type: ignore[attr-defined]
    # as tempfile is there: it deletes no open file
    tempfile._bin_openflags |= _O_BINARY  # type: ignore[attr-defined]
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # type: ignore[assignment]
    _stand_in()
    warnings.filterwarnings("error", category=EncodingWarning, module=r"runnel\.")


def _msvcrt(control: Callable[..., Any]) -> types.ModuleType:
    module = types.ModuleType("msvcrt")

    def locking(descriptor: int, mode: int, size_bytes: int) -> None:
        assert mode == 2, "only LK_NBLCK is used"
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            control(descriptor, _SET_LOCK_OF_FILE, struct.pack("hhqqi", 1, 0, start, size_bytes, 0))
        except OSError as error:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES)) from error

    module.LK_NBLCK, module.locking = 2, locking  # type: ignore[attr-defined]
    return module


def _stand_in() -> None:
    """Puts Windows' rules before the calls that name files."""
    real = {
        name: getattr(os, name)
        for name in ("open", "rename", "replace", "unlink", "remove", "rmdir", "mkdir", "link")
    }
    real_open = io.open

    def open_descriptor(path: Any, flags: int, mode: int = 0o777, **kwargs: Any) -> int:
        if os.path.isdir(path):
            raise _denied(path)
        _check_name(path)
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        assert flags & _O_BINARY or not caller.startswith("runnel"), f"{path} is opened as a text"
        return int(real["open"](path, flags & ~_O_BINARY, mode, **kwargs))

    def open_python(file: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(file, int):
            _check_name(file)
        return real_open(file, *args, **kwargs)

    def moving(name: str) -> Callable[..., None]:
        def move(source: Any, target: Any, **kwargs: Any) -> None:
            _check_name(target)
            _check_closed(source)
            _check_closed(target)
            if os.path.lexists(target) and (name == "rename" or os.path.isdir(target)):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            real[name](source, target, **kwargs)

        return move

    def removing(name: str) -> Callable[..., None]:
        def remove(path: Any, **kwargs: Any) -> None:
            _check_closed(path)
            real[name](path, **kwargs)

        return remove

    def make(path: Any, mode: int = 0o777, **kwargs: Any) -> None:
        _check_name(path)
        real["mkdir"](path, mode, **kwargs)

    stand_ins: dict[str, Callable[..., Any]] = {
        "open": open_descriptor,
        "mkdir": make,
        **{name: moving(name) for name in ("rename", "replace")},
        **{name: removing(name) for name in ("unlink", "remove", "rmdir")},
    }
    for name, stand_in in stand_ins.items():
        setattr(os, name, stand_in)
    io.open = builtins.open = open_python


def _check_name(path: Any) -> None:
    for part in pathlib.PurePath(os.fsdecode(path)).parts:
        if part != "/" and part not in {".", ".."} and _REFUSED.search(part):
            raise OSError(
                errno.EINVAL, "The filename, directory name, or volume label is incorrect", path
            )


def _check_closed(path: Any) -> None:
    """Refuses what this process has open, itself or anything below it."""
    whole = os.path.realpath(os.fsdecode(path))
    for entry in os.listdir("/proc/self/fd"):
        try:
            held = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:  # the folder's own, closed by now
            continue
        if held == whole or held.startswith(whole + os.sep):
            raise _denied(path)


def _denied(path: Any) -> PermissionError:
    return PermissionError(errno.EACCES, "The process cannot access the file", str(path))


def pytest_configure() -> None:
    """Of pytest: before any test file is imported."""
    make_windows()


if __name__ == "__main__":
    make_windows()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
