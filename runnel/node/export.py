"""What people take out of a run's folder: checkpoints, and text that the model writes.

Both work while a peer trains there, and without it. Everything here blocks.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.errors import ConfigError
from runnel.node.checkpoint import CheckpointContent, write_checkpoint
from runnel.node.outer_state import read_outer_state

if TYPE_CHECKING:
    from runnel.node.gpt import Gpt
    from runnel.node.manifest import RunSpec

_KEEP_ALL = sys.maxsize


def save_checkpoint(folder: Path, out: Path) -> Path:
    """Writes the newest state of the run in `folder` into the folder of checkpoints `out`.

    Checkpoints that are there already stay.

    Returns:
        The checkpoint's own folder, in `out`.

    Raises:
        InputFileError: there is no state yet, or it is damaged.
        RunMismatchError: the state is not the one that the run's records name.
        StorageError: the disk refused to read or write; what was in `out` is intact.
    """
    _, content = read_outer_state(folder)
    return write_checkpoint(out, content, keep=_KEEP_ALL)


def sample_text(folder: Path, *, prompt: str, tokens: int, seed: int) -> str:
    """`prompt` and the `tokens` tokens by which the newest model of the run in `folder` goes on.

    Bytes that are no UTF-8 appear as U+FFFD. The same state and seed give the same text.

    Raises:
        ConfigError: the model is not the built-in one, or its tokens are not bytes.
        InputFileError, RunMismatchError, StorageError: see `save_checkpoint`.
    """
    manifest, content = read_outer_state(folder)
    _check_speaks(manifest.spec)
    model = restored_model(manifest.spec, content)
    start = prompt.encode()
    return (start + model.generate(start, tokens, seed=seed)).decode(errors="replace")


def restored_model(spec: RunSpec, content: CheckpointContent) -> Gpt:
    """The run's built-in model with the parameters of a checkpoint, ready to evaluate."""
    import torch  # takes seconds to load

    from runnel.node.run_model import build_model
    from runnel.optim.check import exchanged_parameters

    model = build_model(spec)
    with torch.no_grad():
        for name, parameter in exchanged_parameters(model).items():
            parameter.copy_(torch.from_numpy(content.parameters[name]))
    return model.eval()


def _check_speaks(spec: RunSpec) -> None:
    if spec.model.kind != "gpt":
        raise ConfigError(
            "the run has a model of its own, expected the built-in one: sample it in its author's"
            " program, from what `runnel checkpoint` writes"
        )
    from runnel.node.gpt import BYTE_VALUES  # torch takes seconds to load

    if spec.model.vocab > BYTE_VALUES:
        raise ConfigError(
            f"the model knows {spec.model.vocab} tokens, expected the 256 bytes: sample it in a"
            " program that has its tokenizer, from what `runnel checkpoint` writes"
        )
