"""The built-in model as a run's settings describe it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Union

from runnel.errors import RunMismatchError
from runnel.node.gpt import Gpt, GptConfig
from runnel.node.manifest import RunSpec
from runnel.node.seed_history import read_base
from runnel.optim.putting import put_parameters

if TYPE_CHECKING:
    from torch import nn

    from runnel.node.hf_model import HfModel

LanguageModel = Union[Gpt, "HfModel"]


def load_base(model: nn.Module, base: Path) -> None:
    """Puts the weights of a checkpoint, or of a file of safetensors, into a model.

    Raises:
        InputFileError: it cannot be read.
        RunMismatchError: they are of another model; the line names the first difference.
    """
    misfit = put_parameters(model, read_base(base))
    if misfit is not None:
        raise RunMismatchError(
            f"parameter {misfit.name!r}: the run's model has {misfit.held}, {base} has"
            f" {misfit.given}: set [model] to what the base was made with"
        )


def language_model(spec: RunSpec, source: str = "") -> LanguageModel:
    """The run's model of text with its first parameters; ``spec.model.kind`` must not be "custom".

    `source` is where this machine has a model of kind "hf", if not where the run says.

    Raises:
        ConfigError: sizes that do not fit each other, or an extra that is not installed.
        InputFileError: the source is no model.
    """
    if spec.model.kind != "hf":
        return build_model(spec)
    from runnel.node.hf_model import HfModel  # torch takes seconds to load

    return HfModel(source or spec.model.source)


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
