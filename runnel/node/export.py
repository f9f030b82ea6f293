"""What people take out of a run's folder: checkpoints, and text that the model writes.

Both work while a peer trains there, and without it; a checkpoint gives its parameters and the text
too. Everything here blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.errors import ConfigError, InputFileError
from runnel.node.checkpoint import (
    CheckpointContent,
    is_checkpoint,
    read_checkpoint,
    read_run,
    write_checkpoint,
)
from runnel.node.outer_state import read_outer_state

if TYPE_CHECKING:
    import os

    import torch

    from runnel.node.gpt import Gpt
    from runnel.node.manifest import RunSpec

_KEEP_ALL = sys.maxsize


def save_checkpoint(folder: Path, out: Path) -> Path:
    """Writes the newest state of the run in `folder` into the folder of checkpoints `out`.

    Checkpoints that are there already stay.

    Returns:
        The checkpoint's own folder, in `out`.

    Raises:
        ConfigError: `out` is a file.
        InputFileError: there is no state yet, or it is damaged.
        RunMismatchError: the state is not the one that the run's records name.
        StorageError: the disk refused to read or write; what was in `out` is intact.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(
            f"{out} is a file, expected a folder of checkpoints: choose another --out"
        )
    manifest, content = read_outer_state(folder)
    return write_checkpoint(out, content, run=manifest.encode(), keep=_KEEP_ALL)


def load_checkpoint(folder: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The parameters in a checkpoint by name, float32 on the CPU, after every hash was checked.

    The names are the model's own, of tied parameters one; frozen parameters and buffers are not
    there. ``model.load_state_dict(runnel.load_checkpoint(folder), strict=False)`` puts them into a
    model built as for the run; the ``unexpected_keys`` it returns must be empty.

    Args:
        folder: a checkpoint's, or one of checkpoints: then its latest.

    Raises:
        InputFileError: missing, damaged, of another version, or not a checkpoint.
    """
    import torch  # takes seconds to load

    parameters = read_checkpoint(folder).parameters
    return {name: torch.from_numpy(value) for name, value in parameters.items()}


def sample_text(folder: Path, *, prompt: str, tokens: int, seed: int) -> str:
    """`prompt` and the `tokens` tokens by which a run's newest model, or a checkpoint's, goes on.

    Bytes that are no UTF-8 appear as U+FFFD. The same state and seed give the same text. While the
    model writes, torch has one thread.

    Args:
        folder: of a run, of a checkpoint, or of checkpoints: then of its latest.
        prompt: any text.
        tokens: how many to add.
        seed: of the sampling.

    Raises:
        ConfigError: the model is not the built-in one, or its tokens are not bytes.
        InputFileError: a checkpoint is damaged; else see `save_checkpoint`.
        RunMismatchError, StorageError: see `save_checkpoint`.
    """
    spec, content = _newest_state(folder)
    _check_speaks(spec)
    start = prompt.encode()
    with _one_torch_thread():
        model = restored_model(spec, content)
        return (start + model.generate(start, tokens, seed=seed)).decode(errors="replace")


def export_hf(folder: Path, out: Path, source: str = "") -> str:
    """Writes the newest model of a run of kind hf as a folder that transformers loads; what, in words.

    `source` is where this machine has the model that the run started from, if not where it says.

    Raises:
        ConfigError: the run is of another kind, `out` exists, or the extra is not installed.
        InputFileError: the source is not there or another one; else see `save_checkpoint`.
        RunMismatchError, StorageError: see `save_checkpoint`.
    """
    spec, content = _newest_state(folder)
    if spec.model.kind != "hf":
        raise ConfigError(
            f"the run's model is of kind {spec.model.kind}, expected hf: take it out with `runnel"
            " checkpoint`"
        )
    from runnel.node.hf_model import save_tuned  # torch takes seconds to load

    save_tuned(source or spec.model.source, dict(content.parameters), out)
    return f"wrote {out}: the model after round {content.meta.round}"


def restored_model(spec: RunSpec, content: CheckpointContent) -> Gpt:
    """The run's built-in model with the parameters of a checkpoint, ready to evaluate.

    Raises:
        InputFileError: the parameters are not those of the run's model.
    """
    from runnel.node.run_model import build_model  # torch takes seconds to load
    from runnel.optim.putting import put_parameters

    model = build_model(spec)
    misfit = put_parameters(model, content.parameters)
    if misfit is not None:
        raise InputFileError(
            f"parameter {misfit.name!r} has shape {misfit.given}, expected {misfit.held} as the run's"
            " settings say: use another checkpoint"
        )
    return model.eval()


def _newest_state(folder: Path) -> tuple[RunSpec, CheckpointContent]:
    """The settings and the state of a run, from its own folder or from a checkpoint."""
    if is_checkpoint(folder):
        return read_run(folder).spec, read_checkpoint(folder)
    manifest, content = read_outer_state(folder)
    return manifest.spec, content


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """One thread for torch: for single small steps, more of them only wait for each other.

    On two busy cores a sample took 6 to 40 times as long with two.
    """
    import torch  # takes seconds to load

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_speaks(spec: RunSpec) -> None:
    if spec.model.kind == "hf":
        raise ConfigError(
            "the run's model is of the transformers library, which makes its text: take it out with"
            " `runnel export --as hf`"
        )
    if spec.model.kind != "gpt":
        raise ConfigError(
            "the run has a model of its own, expected the built-in one: sample it in its author's"
            " program, with runnel.load_checkpoint and what `runnel checkpoint` writes"
        )
    from runnel.node.gpt import BYTE_VALUES  # torch takes seconds to load

    if spec.model.vocab > BYTE_VALUES:
        raise ConfigError(
            f"the model knows {spec.model.vocab} tokens, expected the 256 bytes: sample it in a"
            " program that has its tokenizer, with runnel.load_checkpoint and what `runnel checkpoint`"
            " writes"
        )
