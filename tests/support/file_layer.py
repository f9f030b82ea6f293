"""Everything a program does to the files of one folder, passed through here: written down, or made to fail.

A `FileLayer` stands in place of the functions of `os` that change files, and of Python's own files,
for as long as it is entered and for all threads. It does the real thing (but for waiting for the disk); before that a fault may say
no, and afterwards the change is in `calls`, from which `crash_images` makes what a crash could leave.
"""

from __future__ import annotations

import builtins
import io
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

import runnel.files

Fault = Callable[[str, Path], None]
"""Asked before anything is done, with the kind of call and the file; what it raises is what the disk says."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True, slots=True)
class Call:
    """One change. Paths are relative to the folder; `file` numbers a file for life.

    ========== =============================================
    create     path, file; files from before the start too
    write      file, offset, data
    truncate   file, offset (the new size)
    sync       file, or path for a folder
    rename     path, target
    link       path, target
    unlink     path
    mkdir      path
    rmdir      path
    mark       nothing: the program calls something done
    ========== =============================================
    """

    kind: str
    path: str = ""
    target: str = ""
    file: int = -1
    offset: int = 0
    data: bytes = b""


def allow(kind: str, path: Path) -> None:
    """No fault."""


class FileLayer:
    """See the module. Use as a context manager, one at a time.

    Attributes:
        calls: what was done, in order.
        fault: asked before each call, reading included; may be replaced at any time.
    """

    def __init__(self, root: Path, *, fault: Fault = allow) -> None:
        self.calls: list[Call] = []
        self.fault = fault
        self._root = os.path.realpath(root)
        self._lock = threading.RLock()
        self._parents: dict[str, str] = {}
        self._ids: dict[str, int] = {}
        self._places: dict[int, str] = {}  # descriptor -> path it was opened under
        self._files: dict[int, int] = {}  # descriptor -> number of the file
        self._patch = pytest.MonkeyPatch()
        self._real_open = io.open

    def __enter__(self) -> Self:
        for folder, names, files in os.walk(self._root):
            for name in names:
                path = self._inside(os.path.join(folder, name))
                self._note("mkdir", path=path)
            for name in files:
                self._note_existing(os.path.join(folder, name))
            self._note("sync", path=self._inside(folder))
        self._real = {name: getattr(os, name) for name in self._stand_ins()}
        for name, stand_in in self._stand_ins().items():
            self._patch.setattr(os, name, stand_in)
        self._patch.setattr(io, "open", self._open_python)
        self._patch.setattr(builtins, "open", self._open_python)
        self._patch.setattr(runnel.files, "_FULL_SYNC", None)
        # trees are removed by path, as on systems that know no other way
        self._patch.setattr(shutil, "_use_fd_functions", False)
        return self

    def __exit__(self, *exc: object) -> None:
        self._patch.undo()

    def mark(self) -> None:
        """Notes that all that was done until now is promised to be there."""
        with self._lock:
            self._note("mark")

    def _stand_ins(self) -> dict[str, Callable[..., Any]]:
        return {
            "open": self._open,
            "close": self._close,
            "dup": self._dup,
            "write": self._write,
            "pwrite": self._pwrite,
            "ftruncate": self._ftruncate,
            "fsync": self._fsync,
            "rename": self._rename,
            "replace": self._rename,
            "link": self._link,
            "unlink": self._unlink,
            "remove": self._unlink,
            "mkdir": self._mkdir,
            "rmdir": self._rmdir,
        }

    def _note(self, kind: str, **fields: Any) -> None:
        self.calls.append(Call(kind, **fields))

    def _note_existing(self, path: str) -> None:
        name = self._inside(path)
        assert name is not None
        self._create(name)
        with self._real_open(path, "rb") as file:
            self._note("write", file=self._ids[name], data=file.read())
        self._note("sync", file=self._ids[name])

    def _create(self, name: str) -> None:
        self._ids[name] = len(self.calls)
        self._note("create", path=name, file=self._ids[name])

    def _inside(self, path: Any) -> str | None:
        """The path below the folder, or None if it is elsewhere."""
        if isinstance(path, int):
            return None
        parent, name = os.path.split(os.fspath(path))
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent or ".")
        whole = os.path.join(self._parents[parent], name)
        if whole == self._root:
            return "."
        return whole[len(self._root) + 1 :] if whole.startswith(self._root + os.sep) else None

    def _ask(self, kind: str, name: str | None) -> None:
        if name is not None:
            self.fault(kind, Path(self._root, name))

    # -- in place of functions of os

    def _open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        name = self._inside(path)
        if name is None or kwargs.get("dir_fd") is not None:
            return int(self._real["open"](path, flags, *args, **kwargs))
        with self._lock:
            self._ask("open" if flags & WRITING else "read", name)
            existed = os.path.lexists(path)
            descriptor: int = self._real["open"](path, flags, *args, **kwargs)
            self._places[descriptor] = name
            if not os.path.isdir(path):
                if not existed:
                    self._create(name)
                elif flags & os.O_TRUNC:
                    self._note("truncate", file=self._ids[name])
                self._files[descriptor] = self._ids[name]
            return descriptor

    def _close(self, descriptor: int) -> None:
        with self._lock:
            self._forget(descriptor)
            self._real["close"](descriptor)

    def _forget(self, descriptor: int) -> None:
        self._places.pop(descriptor, None)
        self._files.pop(descriptor, None)

    def _dup(self, descriptor: int) -> int:
        with self._lock:
            copy: int = self._real["dup"](descriptor)
            if descriptor in self._files:
                self._places[copy] = self._places[descriptor]
                self._files[copy] = self._files[descriptor]
            return copy

    def _write(self, descriptor: int, data: Any) -> int:
        if descriptor not in self._files:
            return int(self._real["write"](descriptor, data))
        with self._lock:
            self._ask("write", self._places[descriptor])
            written: int = self._real["write"](descriptor, data)
            end = os.lseek(descriptor, 0, os.SEEK_CUR)  # also for files that are appended to
            self._note_write(descriptor, end - written, data, written)
            return written

    def _pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        if descriptor not in self._files:
            return int(self._real["pwrite"](descriptor, data, offset))
        with self._lock:
            self._ask("write", self._places[descriptor])
            written: int = self._real["pwrite"](descriptor, data, offset)
            self._note_write(descriptor, offset, data, written)
            return written

    def _note_write(self, descriptor: int, offset: int, data: Any, written: int) -> None:
        kept = bytes(memoryview(data).cast("B")[:written])
        self._note("write", file=self._files[descriptor], offset=offset, data=kept)

    def _ftruncate(self, descriptor: int, length: int) -> None:
        with self._lock:
            if descriptor in self._files:
                self._ask("truncate", self._places[descriptor])
            self._real["ftruncate"](descriptor, length)
            if descriptor in self._files:
                self._note("truncate", file=self._files[descriptor], offset=length)

    def _fsync(self, descriptor: int) -> None:
        with self._lock:
            if descriptor in self._places:
                self._ask("sync", self._places[descriptor])
            if descriptor not in self._places:
                self._real["fsync"](descriptor)
            if descriptor in self._files:
                self._note("sync", file=self._files[descriptor])
            elif descriptor in self._places:
                self._note("sync", path=self._places[descriptor])

    def _rename(self, source: Any, target: Any, **kwargs: Any) -> None:
        name, new_name = self._inside(source), self._inside(target)
        if name is None or new_name is None:
            assert name is new_name, f"{source} is moved across the border of {self._root}"
            self._real["replace"](source, target, **kwargs)
            return
        with self._lock:
            self._ask("rename", new_name)
            self._real["replace"](source, target, **kwargs)
            self._note("rename", path=name, target=new_name)
            self._ids = {_moved(path, name, new_name): i for path, i in self._ids.items()}

    def _link(self, source: Any, target: Any, **kwargs: Any) -> None:
        name, new_name = self._inside(source), self._inside(target)
        if name is None or new_name is None:
            self._real["link"](source, target, **kwargs)
            return
        with self._lock:
            self._ask("link", new_name)
            self._real["link"](source, target, **kwargs)
            self._note("link", path=name, target=new_name)
            self._ids[new_name] = self._ids[name]

    def _unlink(self, path: Any, **kwargs: Any) -> None:
        self._do("unlink", path, **kwargs)

    def _mkdir(self, path: Any, *args: Any, **kwargs: Any) -> None:
        self._do("mkdir", path, *args, **kwargs)

    def _rmdir(self, path: Any, **kwargs: Any) -> None:
        self._do("rmdir", path, **kwargs)

    def _do(self, kind: str, path: Any, *args: Any, **kwargs: Any) -> None:
        name = self._inside(path)
        with self._lock:
            # what is there already, or is not, is an answer and no change
            if name is not None and os.path.lexists(path) != (kind == "mkdir"):
                self._ask(kind, name)
            self._real[kind](path, *args, **kwargs)
            if name is not None:
                self._note(kind, path=name)

    # -- Python's own files

    def _open_python(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """`open` whose writes come by: only unbuffered binary ones are files of their own here."""
        inside = file in self._files if isinstance(file, int) else self._inside(file) is not None
        if inside and not isinstance(file, int) and not set(mode) & set("wax+"):
            self._ask("read", self._inside(file))
        if not inside or not set(mode) & set("wax+"):
            return self._real_open(file, mode, *args, **kwargs)
        raw = _RawFile(self, file, mode)
        if "b" in mode:
            return io.BufferedWriter(raw)
        return io.TextIOWrapper(io.BufferedWriter(raw), encoding=kwargs.get("encoding"))


class _RawFile(io.FileIO):
    """A file opened by Python whose writes go through `os.write`."""

    def __init__(self, layer: FileLayer, file: Any, mode: str) -> None:
        self._layer = layer
        plain = mode.replace("b", "").replace("t", "")
        super().__init__(file, plain, opener=_opened)

    def write(self, data: Any) -> int:
        return os.write(self.fileno(), data)

    def close(self) -> None:
        if not self.closed:
            self._layer._forget(self.fileno())
        super().close()


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags, 0o666)  # noqa: TID251 - in place of Python's own


def _moved(path: str, source: str, target: str) -> str:
    """Where a file is after `source`, which it may be or lie in, was renamed."""
    inside = path == source or path.startswith(source + os.sep)
    return target + path[len(source) :] if inside else path
