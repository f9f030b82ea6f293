"""What a crash could leave of files: after every call, with what was not synced there, lost, or torn.

The disk of the model is a hard one. A file's unsynced writes may be missing from any point on, the
last of them cut at any byte, or with zeros from some sector on; a folder's unsynced changes of names may be missing
from any point on, whatever became of the files behind them. What was synced stays.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from runnel.hashing import digest
from tests.support.file_layer import Call, FileLayer

Image = dict[str, "bytes | Image"]
"""The content of a folder: bytes of files, images of folders."""

_SECTOR_BYTES = 512

_Write = tuple[int, bytes | None]
"""At an offset these bytes; None cuts the file there."""


@dataclass(slots=True, eq=False)
class _File:
    """Bytes on the disk, and what was written since they were synced."""

    synced: bytes = b""
    pending: list[_Write] = field(default_factory=list)

    def sync(self) -> None:
        self.synced, self.pending = _written(self.synced, self.pending), []

    def now(self) -> bytes:
        return _written(self.synced, self.pending)

    def after_a_crash(self, rng: Random) -> bytes:
        count = rng.randint(0, len(self.pending))
        content = _written(self.synced, self.pending[:count])
        if count == len(self.pending):
            return content
        offset, data = self.pending[count]
        if not data:
            return content
        if rng.randrange(2):
            return _written(content, [(offset, data[: rng.randint(0, len(data))])])
        sectors = range(-offset % _SECTOR_BYTES, len(data), _SECTOR_BYTES)
        cut = rng.choice([0, *sectors])
        return _written(content, [(offset, data[:cut] + bytes(len(data) - cut))])


@dataclass(slots=True, eq=False)
class _Folder:
    """Names on the disk, names now, and the changes in between, each of which happens or not."""

    synced: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[dict[str, _File | _Folder | None]] = field(default_factory=list)

    def change(self, names: dict[str, _File | _Folder | None]) -> None:
        self.pending.append(names)

    def sync(self) -> None:
        self.synced, self.pending = self.names(len(self.pending)), []

    def names(self, count: int) -> dict[str, _File | _Folder]:
        names: dict[str, _File | _Folder | None] = dict(self.synced)
        for change in self.pending[:count]:
            names |= change
        return {name: node for name, node in names.items() if node is not None}

    def now(self) -> Image:
        return {name: node.now() for name, node in self.names(len(self.pending)).items()}

    def after_a_crash(self, rng: Random) -> Image:
        names = self.names(rng.randint(0, len(self.pending)))
        return {name: node.after_a_crash(rng) for name, node in names.items()}

    def least(self) -> Image:
        return {
            name: node.least() if isinstance(node, _Folder) else node.synced
            for name, node in self.synced.items()
        }


@dataclass(frozen=True, slots=True)
class Crash:
    """One thing a crash could leave. `step` counts calls before it, `marks` what was promised by then."""

    step: int
    marks: int
    how: str
    image: Image

    def write(self, folder: Path) -> None:
        """Makes `folder` what the crash left."""
        _write(self.image, folder)


def crashes(
    calls: Sequence[Call], *, seed: int, draws: int = 2, share: float = 1.0
) -> Iterator[Crash]:
    """All the crashes to look at: before the first call and after each one.

    Each leaves everything (the process was killed), what was synced (the power failed), the last
    write cut at some byte, and `draws` mixtures. Equal ones between the same marks come once. Of all
    these a `share` is drawn.
    """
    rng, disk, marks, seen = Random(seed), _Disk(), 0, set[bytes]()
    for step, call in enumerate((None, *calls)):
        ways: dict[str, Callable[[], Image | None]] = {
            "killed": disk.root.now,
            "power failed": disk.root.least,
            **{f"draw {n}": lambda: disk.root.after_a_crash(rng) for n in range(draws)},
        }
        if call is not None:
            torn = _torn(disk, call, rng) if rng.random() < share else None
            ways["killed while writing"] = lambda torn=torn: torn  # type: ignore[misc]
            marks += call.kind == "mark"
            disk.apply(call)
        for how, make in ways.items():
            image = make() if rng.random() < share else None
            name = (marks.to_bytes(4, "big") + _name_of(image)) if image is not None else b""
            if image is not None and name not in seen:
                seen.add(name)
                yield Crash(step, marks, how, image)


def _torn(disk: _Disk, call: Call, rng: Random) -> Image | None:
    """A write that the process did not live to finish."""
    if call.kind != "write" or len(call.data) < 2:
        return None
    file = disk.files[call.file]
    file.pending.append((call.offset, call.data[: rng.randrange(1, len(call.data))]))
    image = disk.root.now()
    file.pending.pop()
    return image


class _Disk:
    """Carries calls out on files and folders in memory."""

    def __init__(self) -> None:
        self.root = _Folder()
        self.files: dict[int, _File] = {}

    def apply(self, call: Call) -> None:
        match call.kind:
            case "create":
                self.files[call.file] = _File()
                self._change(call.path, self.files[call.file])
            case "write":
                self.files[call.file].pending.append((call.offset, call.data))
            case "truncate":
                self.files[call.file].pending.append((call.offset, None))
            case "sync" if call.file >= 0:
                self.files[call.file].sync()
            case "sync":
                self._folder(call.path).sync()
            case "rename":
                self._rename(call)
            case "link":
                self._change(call.target, self._node(call.path))
            case "mkdir":
                self._change(call.path, _Folder())
            case "unlink" | "rmdir":
                self._change(call.path, None)

    def _rename(self, call: Call) -> None:
        assert os.path.dirname(call.path) == os.path.dirname(call.target), call
        folder, names = self._folder(os.path.dirname(call.path)), (call.path, call.target)
        old, new = map(os.path.basename, names)
        folder.change({old: None, new: self._node(call.path)})

    def _change(self, path: str, node: _File | _Folder | None) -> None:
        self._folder(os.path.dirname(path)).change({os.path.basename(path): node})

    def _node(self, path: str) -> _File | _Folder:
        folder = self._folder(os.path.dirname(path))
        return folder.names(len(folder.pending))[os.path.basename(path)]

    def _folder(self, path: str) -> _Folder:
        if path in {"", "."}:
            return self.root
        found = self._node(path)
        assert isinstance(found, _Folder), path
        return found


def _name_of(image: Image) -> bytes:
    parts = [
        name.encode() + (_name_of(inner) if isinstance(inner, dict) else digest(inner))
        for name, inner in sorted(image.items())
    ]
    return digest(*parts)


def _written(content: bytes, writes: Iterable[_Write]) -> bytes:
    result = bytearray(content)
    for offset, data in writes:
        result.extend(bytes(max(0, offset - len(result))))
        if data is None:
            del result[offset:]
        else:
            result[offset : offset + len(data)] = data
    return bytes(result)


def _write(image: Image, folder: Path) -> None:
    folder.mkdir()
    for name, content in image.items():
        if isinstance(content, dict):
            _write(content, folder / name)
        else:
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)


def check_every_crash(
    work: Callable[[Path, FileLayer], None],
    check: Callable[[Path, int], None],
    *,
    seed: int,
    share: float = 1.0,
) -> int:
    """Lets `work` write into a folder, then looks with `check` at what crashes on the way could leave.

    Args:
        work: gets a folder to write into, and the layer it is watched by, for its marks.
        check: gets what a crash left, and how many marks there were before it.
        seed: of the draws.
        share: of all crashes that are looked at.

    Returns how many that were.
    """
    count = 0
    with memory_folder() as folder:
        home, left = folder / "home", folder / "left"
        home.mkdir()
        with FileLayer(home) as layer:
            work(home, layer)
        for crash in crashes(layer.calls, seed=seed, share=share):
            crash.write(left)
            try:
                check(left, crash.marks)
            except BaseException as error:
                last = layer.calls[crash.step - 1] if crash.step else None
                error.add_note(f"{crash.how} after call {crash.step} ({last!r:.300}), seed {seed}")
                raise
            count += 1
            shutil.rmtree(left)
    return count


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder for many small files that nobody needs afterwards: in memory, where the system has that."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)
