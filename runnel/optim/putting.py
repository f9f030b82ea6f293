"""Arrays put into a model by name: all of them, or none and the first that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from runnel.optim.check import exchanged_parameters
from runnel.protocols import Float32


class Misfit(NamedTuple):
    """A parameter and its shapes in a model and in the arrays for it: they differ, or one is "none"."""

    name: str
    held: str
    given: str


def put_parameters(model: nn.Module, arrays: Mapping[str, Float32]) -> Misfit | None:
    """Sets a model's exchanged parameters; with a misfit, by name the first, nothing is changed."""
    held = exchanged_parameters(model)
    for name in sorted(held.keys() | arrays.keys()):
        ours = str(tuple(held[name].shape)) if name in held else "none"
        theirs = str(arrays[name].shape) if name in arrays else "none"
        if ours != theirs:
            return Misfit(name, ours, theirs)
    with torch.no_grad():
        for name, parameter in held.items():
            parameter.copy_(torch.from_numpy(arrays[name]))
    return None
