"""Universal checkpoints: the outer state by parameter name, whatever the fragments, codec or peers.

A folder of checkpoints::

    latest                                   the name of the newest one
    round-00000042-0123456789abcdef/
        manifest.json                        run, round, tokens, record, shapes, sizes, hashes
        parameters.safetensors               NAME: float32
        momentum.safetensors                 outer.momentum/NAME: float32
        run.bin                              the run's signed manifest, whose hash is the run's id

Equal states of one round make equal bytes on every machine, so the seal in the manifest (the hash
of the rest of it) names a checkpoint, and the second half of a folder's name is its beginning.
Writing and reading block: they are work for a thread other than the loop's.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.errors import InputFileError, PeerError
from runnel.files import make_folder, remove_parts, replace, sync_directory, write_new
from runnel.node.atomic import write_atomically
from runnel.node.checkpoint_manifest import (
    MANIFEST_NAME,
    CheckpointManifest,
    CheckpointMeta,
    Shapes,
    read_manifest,
)
from runnel.node.checkpoint_tensors import FileEntry, read_tensors, write_tensors
from runnel.node.disk import storage_error
from runnel.node.manifest import MAX_MANIFEST_BYTES, SignedManifest

if TYPE_CHECKING:
    import os

    from runnel.protocols import Float32

__all__ = [
    "CheckpointContent",
    "CheckpointMeta",
    "is_checkpoint",
    "latest_checkpoint",
    "read_checkpoint",
    "read_manifest",
    "read_run",
    "write_checkpoint",
]

_log = logging.getLogger(__name__)

LATEST_NAME = "latest"
RUN_NAME = "run.bin"
MOMENTUM_PREFIX = "outer.momentum/"

_FOLDER = re.compile(r"(initial|round-\d{8,20})-[0-9a-f]{16}")
_UNFINISHED = re.compile(r"\.(new|old)-[0-9a-f]{12}")
_MAX_POINTER_BYTES = 100


@dataclass(frozen=True, slots=True)
class CheckpointContent:
    """An outer state.

    Attributes:
        parameters: float32 by name, any shapes.
        momentum: the outer optimizer's, float32 by parameter name; may lack some or all. Where it keeps
            several values of each parameter (adam: mean and mean square), they are along a first axis.
        meta: where it stands.
    """

    parameters: Mapping[str, Float32]
    momentum: Mapping[str, Float32]
    meta: CheckpointMeta


def write_checkpoint(
    directory: str | os.PathLike[str],
    content: CheckpointContent,
    *,
    run: bytes = b"",
    keep: int = 2,
) -> Path:
    """Writes a checkpoint into a folder of checkpoints; the path of its own folder.

    It appears complete, under its final name and synced, or not at all; `latest` names it afterwards.
    One writer per folder at a time. Costs one pass over the values and no copy of them.

    Args:
        directory: of the checkpoints; made if there is none.
        content: what to write.
        run: the encoded manifest of the run, for `read_run`; empty leaves it out.
        keep: how many earlier ones stay; older ones are deleted, those written last stay.

    Raises:
        StorageError: the disk refused; what was there before is intact.
        ValueError: a tensor that is not float32, momentum without its parameter, a negative `keep`.
    """
    directory = Path(directory)
    if keep < 0:
        raise ValueError(f"keep {keep}, expected >= 0")
    _check_momentum(_shapes(content.parameters), _shapes(content.momentum))
    part = directory / f".new-{secrets.token_hex(6)}"
    try:
        make_folder(directory)
        _remove_unfinished(directory)
        folder = directory / _folder_name(_write_files(part, content, run))
        _put(part, folder)
    except OSError as error:
        raise storage_error("write a checkpoint to", directory, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    write_atomically(directory / LATEST_NAME, f"{folder.name}\n".encode())
    _prune(directory, newest=folder, keep=keep)
    return folder


def read_checkpoint(path: str | os.PathLike[str]) -> CheckpointContent:
    """Reads a checkpoint after every hash was checked.

    Args:
        path: of a checkpoint's folder, or of a folder of checkpoints: then its latest.

    Raises:
        InputFileError: missing, truncated, damaged, of another version, or not a checkpoint.
    """
    folder = _resolved(Path(path))
    manifest = read_manifest(folder)
    parameters: dict[str, Float32] = {}
    momentum: dict[str, Float32] = {}
    for name, entry in manifest.files.items():
        for key, tensor in read_tensors(folder / name, entry).items():
            is_momentum = key.startswith(MOMENTUM_PREFIX)
            target = momentum if is_momentum else parameters
            key = key.removeprefix(MOMENTUM_PREFIX)
            if key in target:
                raise InputFileError(
                    f"{folder} holds {key!r} twice: this is no checkpoint of runnel"
                )
            target[key] = tensor
    _check_shapes(folder, "parameter", _shapes(parameters), manifest.parameters)
    _check_shapes(folder, "momentum", _shapes(momentum), manifest.momentum)
    try:
        _check_momentum(manifest.parameters, manifest.momentum)
    except ValueError as error:
        raise InputFileError(f"{folder}: {error}: this is no checkpoint of runnel") from None
    return CheckpointContent(parameters, momentum, manifest.meta)


def read_run(path: str | os.PathLike[str]) -> SignedManifest:
    """The manifest of the run that a checkpoint is of; it has the run id that the checkpoint names.

    Args:
        path: as for `read_checkpoint`.

    Raises:
        InputFileError: missing, damaged, or another run's.
    """
    folder = _resolved(Path(path))
    file, expected = folder / RUN_NAME, read_manifest(folder).meta.run_id
    advice = "copy the checkpoint again or use another one"
    try:
        with file.open("rb") as content:
            found = SignedManifest.decode(content.read(MAX_MANIFEST_BYTES + 1))
    except (OSError, PeerError) as error:
        reason = str(getattr(error, "strerror", None) or error).lower()
        raise InputFileError(
            f"{file} does not tell the run's settings ({reason}), expected the manifest that"
            f" `runnel checkpoint` puts there: {advice}"
        ) from None
    if found.run_id != expected:
        raise InputFileError(
            f"{file} is the manifest of run {found.run_id.hex()[:8]}, expected that of"
            f" {expected.hex()[:8]}: {advice}"
        )
    return found


def is_checkpoint(path: Path) -> bool:
    """Whether `path` looks like a checkpoint's folder, or a folder of checkpoints."""
    return (path / MANIFEST_NAME).exists() or (path / LATEST_NAME).exists()


def latest_checkpoint(directory: str | os.PathLike[str]) -> Path:
    """The folder of the newest complete checkpoint in `directory`; its hashes are not checked.

    Raises:
        InputFileError: there is none.
    """
    pointer = Path(directory) / LATEST_NAME
    try:
        with pointer.open("rb") as file:
            name = file.read(_MAX_POINTER_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        raise InputFileError(
            f"{directory} holds no checkpoint ({LATEST_NAME}:"
            f" {(error.strerror or str(error)).lower()}): give the folder of a run that wrote one"
        ) from None
    folder = Path(directory) / name
    if not _FOLDER.fullmatch(name) or not folder.is_dir():
        raise InputFileError(
            f"{pointer} names {name!r}, expected a checkpoint beside it: give the path of a"
            " checkpoint itself"
        )
    return folder


def _resolved(path: Path) -> Path:
    """The folder of a checkpoint: `path`, or the latest in it."""
    if not (path / MANIFEST_NAME).exists() and (path / LATEST_NAME).exists():
        return latest_checkpoint(path)
    return path


def _write_files(part: Path, content: CheckpointContent, run: bytes) -> CheckpointManifest:
    part.mkdir()
    files: dict[str, FileEntry] = {
        "parameters.safetensors": write_tensors(part / "parameters.safetensors", content.parameters)
    }
    if content.momentum:
        files["momentum.safetensors"] = write_tensors(
            part / "momentum.safetensors",
            {MOMENTUM_PREFIX + name: tensor for name, tensor in content.momentum.items()},
        )
    manifest = CheckpointManifest(
        content.meta, files, _shapes(content.parameters), _shapes(content.momentum)
    )
    if run:
        write_new(part / RUN_NAME, run)
    write_new(part / MANIFEST_NAME, manifest.encode())
    sync_directory(part)
    return manifest


def _put(part: Path, folder: Path) -> None:
    """Gives a finished folder its name; one of that name has the same content, or is damaged."""
    if folder.exists():
        try:
            read_checkpoint(folder)
            if (part / RUN_NAME).exists():
                read_run(folder)
        except InputFileError as error:
            _log.warning("replacing a damaged checkpoint: %s", error)
            _remove(folder)
        else:
            return
    replace(part, folder)
    sync_directory(folder.parent)


def _prune(directory: Path, *, newest: Path, keep: int) -> None:
    try:
        others = [
            path
            for path in directory.iterdir()
            if _FOLDER.fullmatch(path.name) and path.is_dir() and path != newest
        ]
        others.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
        for path in others[keep:]:
            _remove(path)
    except OSError as error:  # the new one is written, and that is what was asked for
        _log.warning("old checkpoints in %s could not be deleted: %s", directory, error)


def _remove(folder: Path) -> None:
    """Deletes a checkpoint; it first loses its name, so that no half of it is ever seen under it."""
    grave = folder.with_name(f".old-{secrets.token_hex(6)}")
    replace(folder, grave)
    sync_directory(folder.parent)
    shutil.rmtree(grave)


def _remove_unfinished(directory: Path) -> None:
    """Deletes what a crash left behind."""
    remove_parts(directory)
    for path in directory.iterdir():
        if _UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _folder_name(manifest: CheckpointManifest) -> str:
    number = manifest.meta.round
    stem = "initial" if number < 0 else f"round-{number:08d}"
    return f"{stem}-{manifest.seal.hex()[:16]}"


def _shapes(tensors: Mapping[str, Float32]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_momentum(parameters: Shapes, momentum: Shapes) -> None:
    for name in parameters:
        if name.startswith(MOMENTUM_PREFIX):
            raise ValueError(f"parameter {name!r} begins like a momentum: rename it")
    for name, shape in momentum.items():
        if parameters.get(name) not in (shape, shape[1:]):
            raise ValueError(
                f"momentum {name!r} has shape {shape}, its parameter {parameters.get(name)}"
            )


def _check_shapes(folder: Path, kind: str, seen: Shapes, expected: Shapes) -> None:
    for name in sorted({*seen, *expected}):
        if seen.get(name) != expected.get(name):
            raise InputFileError(
                f"{folder}: {kind} {name!r} has shape {seen.get(name)}, its manifest says"
                f" {expected.get(name)}: this is no checkpoint of runnel"
            )
