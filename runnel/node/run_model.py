"""The built-in model as a run's settings describe it."""

from __future__ import annotations

from pathlib import Path

from runnel.errors import RunMismatchError
from runnel.node.gpt import Gpt, GptConfig
from runnel.node.manifest import RunSpec
from runnel.node.seed_history import read_base


def load_base(model: Gpt, base: Path) -> None:
    """Puts the weights of a checkpoint, or of a file of safetensors, into a model.

    Raises:
        InputFileError: it cannot be read.
        RunMismatchError: they are of another model; the line names the first difference.
    """
    import torch

    held, found = dict(model.named_parameters()), read_base(base)
    for name in sorted(held.keys() | found.keys()):
        ours = tuple(held[name].shape) if name in held else "none"
        theirs = tuple(found[name].shape) if name in found else "none"
        if ours != theirs:
            raise RunMismatchError(
                f"parameter {name!r}: the run's model has {ours}, {base} has {theirs}: set [model] to"
                " what the base was made with"
            )
    with torch.no_grad():
        for name, parameter in held.items():
            parameter.copy_(torch.from_numpy(found[name]))


def build_model(spec: RunSpec) -> Gpt:
    """The run's model with its first parameters; ``spec.model.kind`` must be "gpt".

    Raises:
        ConfigError: sizes that do not fit each other.
    """
    model = spec.model
    config = GptConfig(
        layers=model.layers,
        heads=model.heads,
        width=model.width,
        context=model.context,
        vocab=model.vocab,
        seed=spec.run.seed,
    )
    return Gpt(config)
