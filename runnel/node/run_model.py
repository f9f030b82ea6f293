"""The built-in model as a run's settings describe it."""

from __future__ import annotations

from runnel.node.gpt import Gpt, GptConfig
from runnel.node.manifest import RunSpec


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
