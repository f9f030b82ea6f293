"""Files of shared-seed runs: a log beside its base, and the weights that both make. Everything here blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.errors import ConfigError, InputFileError, RunMismatchError
from runnel.files import make_folder, name_new, part_beside
from runnel.node.atomic import write_atomically
from runnel.node.checkpoint import is_checkpoint, read_checkpoint
from runnel.node.checkpoint_tensors import write_tensors
from runnel.node.disk import storage_error
from runnel.optim.fixed_point import MasterWeights, Spread
from runnel.optim.seed_log import LogHead, LogReader, encode_log
from runnel.types import Digest

if TYPE_CHECKING:
    from runnel.optim.seed_updates import SeedUpdate
    from runnel.protocols import Float32

MAX_LOG_BYTES = 1 << 32


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of a base and a log.

    Attributes:
        path: of the weights that were written.
        steps: of the run.
        directions: that were applied.
        state: the name of the weights, the same for everyone who has them.
    """

    path: Path
    steps: int
    directions: int
    state: Digest


def save_log(path: Path, head: LogHead, updates: Iterable[SeedUpdate]) -> int:
    """Writes a whole log to a new file; its size in bytes.

    Raises:
        ConfigError: there is a file of that name; it stays.
        StorageError: the disk refused.
        ValueError: a step is missing, or comes too early.
    """
    data = b"".join(encode_log(head, updates))
    write_atomically(path, data, overwrite=False)
    return len(data)


def apply_log(base: Path, log: Path, out: Path, *, spread: Spread | None = None) -> Rebuilt:
    """Rebuilds the weights of a run from its base and its log, and writes them to a new file.

    Tensors of the base that the run did not tune are written as they are. One pass over the weights
    per 1,024 steps, and no forward pass.

    Args:
        base: a folder that `runnel checkpoint` wrote, or a file of safetensors.
        log: what `save_log` wrote.
        out: a file of safetensors, float32; made, never replaced.
        spread: who does the work.

    Raises:
        ConfigError: there is a file `out`; it stays.
        InputFileError: base or log is missing or damaged, or the log lacks steps.
        RunMismatchError: the log is for another base.
        StorageError: the disk refused to write.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already, expected a new file: choose another --out")
    reader = LogReader(_read(log), str(log))
    arrays = read_base(base)
    weights = MasterWeights.from_arrays(
        _tuned(arrays, reader.head, log), reader.head.key, spread=spread
    )
    reader.require_base(weights.digest())
    steps = directions = 0
    for chunk in reader.chunks():
        weights.apply(chunk)
        steps += len({update.step for update in chunk})
        directions += sum(len(update) for update in chunk)
    write_weights(out, {**arrays, **weights.arrays()})
    return Rebuilt(out, steps, directions, weights.digest())


def read_base(path: Path) -> dict[str, Float32]:
    """The tensors of a checkpoint's folder or of a file of safetensors, as float32 by name.

    Raises:
        InputFileError: it is neither, or damaged.
    """
    if is_checkpoint(path):
        return dict(read_checkpoint(path).parameters)
    if not path.is_file():
        raise InputFileError(
            f"{path} is no checkpoint: name a folder that `runnel checkpoint` wrote, or a file of safetensors"
        )
    import torch  # takes seconds to load
    from safetensors import SafetensorError, safe_open

    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                found[name] = file.get_tensor(name).to(torch.float32).numpy()
    except (SafetensorError, OSError) as error:
        raise InputFileError(
            f"{path} is no safetensors file ({error}): name another base"
        ) from None
    return found


def write_weights(out: Path, tensors: Mapping[str, Float32]) -> None:
    """Writes tensors by name to a new file of safetensors.

    Raises:
        ConfigError: there is a file of that name; it stays.
        StorageError: the disk refused.
    """
    part = part_beside(out)
    try:
        make_folder(out.parent)
        write_tensors(part, tensors)
        name_new(part, out)
    except FileExistsError:
        raise ConfigError(
            f"{out} is there already, expected a new file: choose another --out"
        ) from None
    except OSError as error:
        raise storage_error("write weights to", out, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_LOG_BYTES:
            raise InputFileError(f"{path} holds more than {MAX_LOG_BYTES} bytes: this is no log")
        return path.read_bytes()
    except OSError as error:
        raise InputFileError(
            f"{path} cannot be read ({(error.strerror or str(error)).lower()}): name a log of seeds"
        ) from None


def _tuned(arrays: Mapping[str, Float32], head: LogHead, log: Path) -> dict[str, Float32]:
    missing = [name for name in head.tensors if name not in arrays]
    if missing:
        raise RunMismatchError(
            f"the base lacks tensor {missing[0]!r}, which {log} tunes: name the checkpoint"
            f" {head.base.hex()} that it was made from"
        )
    return {name: arrays[name] for name in head.tensors}
