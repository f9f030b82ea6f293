"""The manifest of a checkpoint: JSON that has one form only and carries its own hash."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runnel.errors import InputFileError
from runnel.hashing import digest
from runnel.node.checkpoint_tensors import FileEntry
from runnel.types import DIGEST_BYTES, Digest

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024

_FORMAT = "runnel-checkpoint"
_VERSION = 1
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}\.safetensors")
_KEYS = frozenset(
    {
        "files",
        "format",
        "momentum",
        "parameters",
        "record",
        "round",
        "run",
        "seal",
        "state_root",
        "tokens",
        "version",
    }
)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointMeta:
    """Where in which run a state stands.

    Attributes:
        run_id: of the run.
        round: the newest round whose result is in the state; -1 before the first.
        tokens: decided up to there.
        record_hash: of that round's record.
        state_root: of the outer state, as the record has it.
    """

    run_id: Digest
    round: int
    tokens: int
    record_hash: Digest
    state_root: Digest

    def __post_init__(self) -> None:
        if any(len(d) != DIGEST_BYTES for d in (self.run_id, self.record_hash, self.state_root)):
            raise ValueError(f"run id, record hash and state root have {DIGEST_BYTES} bytes each")
        if self.round < -1 or self.tokens < 0:
            raise ValueError(
                f"round {self.round} and tokens {self.tokens}, expected >= -1 and >= 0"
            )


@dataclass(frozen=True, slots=True)
class CheckpointManifest:
    """All that a manifest says.

    Attributes:
        meta: see `CheckpointMeta`.
        files: by name, without folders.
        parameters: shapes by name.
        momentum: shapes by parameter name.
    """

    meta: CheckpointMeta
    files: Mapping[str, FileEntry]
    parameters: Shapes
    momentum: Shapes

    @property
    def seal(self) -> Digest:
        """blake3-256 of everything else in the manifest: it names the checkpoint."""
        return digest(_canonical(self._body()))

    def encode(self) -> bytes:
        """The manifest's bytes; equal manifests have equal ones."""
        return _canonical({**self._body(), "seal": self.seal.hex()})

    def _body(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "run": self.meta.run_id.hex(),
            "round": self.meta.round,
            "tokens": self.meta.tokens,
            "record": self.meta.record_hash.hex(),
            "state_root": self.meta.state_root.hex(),
            "files": {
                name: {"blake3": entry.digest.hex(), "size_bytes": entry.size_bytes}
                for name, entry in self.files.items()
            },
            "parameters": {name: list(shape) for name, shape in self.parameters.items()},
            "momentum": {name: list(shape) for name, shape in self.momentum.items()},
        }


def read_manifest(folder: Path) -> CheckpointManifest:
    """The manifest of a checkpoint; its own hash is right, the files are not looked at.

    Raises:
        InputFileError: missing, too long, damaged, of another version, or not a manifest.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise InputFileError(
            f"{path} cannot be read ({(error.strerror or str(error)).lower()}), expected the folder"
            " of a checkpoint: give another path"
        ) from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise InputFileError(f"{path} has over {MAX_MANIFEST_BYTES} bytes: this is no checkpoint")
    try:
        return _parse(data)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise InputFileError(
            f"{path} is damaged or no manifest of runnel ({_one_line(error)}): copy it again or use"
            " another checkpoint"
        ) from None


def _parse(data: bytes) -> CheckpointManifest:
    values = json.loads(data)
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise ValueError(f"format is not {_FORMAT!r}")
    if values.get("version") != _VERSION or isinstance(values["version"], bool):
        raise ValueError(f"version {values.get('version')!r}, expected {_VERSION}: update runnel")
    if set(values) != _KEYS:
        raise ValueError(f"fields {sorted(set(values) ^ _KEYS)} are missing or unknown")
    meta = CheckpointMeta(
        run_id=_digest(values["run"]),
        round=_integer(values["round"], low=-1),
        tokens=_integer(values["tokens"]),
        record_hash=_digest(values["record"]),
        state_root=_digest(values["state_root"]),
    )
    files = {
        _file_name(name): FileEntry(_integer(entry["size_bytes"]), _digest(entry["blake3"]))
        for name, entry in _mapping(values["files"]).items()
    }
    manifest = CheckpointManifest(
        meta, files, _shapes(values["parameters"]), _shapes(values["momentum"])
    )
    # One form only: no second key, no number written differently, nothing that was not looked at.
    if manifest.encode() != data:
        raise ValueError("its hash is not that of its content")
    return manifest


def _canonical(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} where an object was expected")
    return value


def _integer(value: Any, *, low: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{value!r} where an integer >= {low} was expected")
    return value


def _digest(value: Any) -> Digest:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{value!r} where 64 hex digits were expected")
    return Digest(bytes.fromhex(value))


def _file_name(name: str) -> str:
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"file {name!r} is not a plain .safetensors name in this folder")
    return name


def _shapes(value: Any) -> Shapes:
    return {
        name: tuple(_integer(size) for size in _listed(shape))
        for name, shape in _mapping(value).items()
    }


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a {type(value).__name__} where a list was expected")
    return value


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else words[:200] + "..."
