"""Between a torch model and the float32 buffers of the outer path. Only the trainer's thread uses it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from runnel.errors import ConfigError, RunMismatchError
from runnel.optim.check import exchanged_parameters, plain_name, survey
from runnel.optim.fragments import FragmentPlan, ParameterShape, Piece, plan_fragments
from runnel.protocols import Float32


def plan_model(model: nn.Module, num_fragments: int) -> FragmentPlan:
    """The plan of a model's trainable parameters; tied ones are in it once, frozen ones not.

    Raises:
        ConfigError: a parameter that cannot be exchanged, nothing trainable, or too many fragments.
    """
    found = survey(model)
    if found.problems:
        raise ConfigError(_first_of(found.problems))
    return plan_fragments(found.exchanged, num_fragments)


class ModelBinding:
    """Reads and writes the fragments of a model.

    Parameters may be float32, float64, float16 or bfloat16, contiguous or not, on any device; the
    buffers are float32 on the CPU. Half-precision parameters are updated in float32 and then
    rounded to nearest even. Gradients and optimizer state are never touched. The model's parameters
    must stay the same objects: ``load_state_dict`` is fine, replacing a module is not (see
    `require_same`).

    Raises:
        ConfigError: a parameter that cannot be exchanged.
        RunMismatchError: the model's names or shapes are not the plan's.
    """

    def __init__(self, model: nn.Module, plan: FragmentPlan) -> None:
        found = survey(model)
        if found.problems:
            raise ConfigError(_first_of(found.problems))
        _check_shapes(found.exchanged, plan.shapes)
        self.plan = plan
        self._model, self._parameters = model, exchanged_parameters(model)
        self._shapes = {shape.name: shape.shape for shape in plan.shapes}

    def require_same(self) -> None:
        """Checks that the model still has the parameters that it had at first, in their shapes.

        Raises:
            RunMismatchError: one was replaced or removed, and its training would not reach the swarm; or
                one has another shape, and its values would not be those that others take them for.
        """
        present = {id(parameter) for parameter in self._model.parameters()}
        for name, parameter in self._parameters.items():
            if id(parameter) not in present:
                raise RunMismatchError(
                    f"parameter {name!r} is not in the model any more, expected the parameters that"
                    " it had at first: change modules before joining, later only values in place"
                )
            self._require_shape(name, parameter)

    def unshared(self) -> tuple[str, ...]:
        """Trainable parameters that are not exchanged: unfrozen or added after this was made."""
        known = {id(parameter) for parameter in self._parameters.values()}
        return tuple(
            plain_name(name)
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad and id(parameter) not in known
        )

    def new_buffer(self, fragment: int) -> Float32:
        """A float32 array of a fragment's size, zeros."""
        return np.zeros(self.plan.sizes[fragment], dtype=np.float32)

    @torch.no_grad()
    def read(self, fragment: int, out: Float32) -> None:
        """Copies a fragment's parameters to `out`, float32 [size of the fragment], contiguous.

        Raises:
            RunMismatchError: a parameter has another shape than at first.
            ValueError: `out` is not such an array.
        """
        target = self._tensor(fragment, out)
        for piece in self.plan.fragments[fragment]:
            flat = self._parameter(piece).reshape(-1)
            _span(target, piece).copy_(flat[piece.start : piece.stop])

    @torch.no_grad()
    def write(self, fragment: int, values: Float32) -> None:
        """Sets a fragment's parameters to `values`, rounded to their type.

        Raises:
            RunMismatchError: a parameter has another shape than at first.
            ValueError: `values` is not a contiguous float32 array [size of the fragment].
        """
        source = self._tensor(fragment, values)
        for piece in self.plan.fragments[fragment]:
            parameter = self._parameter(piece)
            flat = parameter.reshape(-1)
            flat[piece.start : piece.stop].copy_(_span(source, piece))
            _put_back(parameter, flat)

    @torch.no_grad()
    def add(self, fragment: int, delta: Float32) -> None:
        """Adds `delta` to a fragment's parameters in place: one rounded addition per value.

        Raises:
            RunMismatchError: a parameter has another shape than at first.
            ValueError: `delta` is not a contiguous float32 array [size of the fragment].
        """
        source = self._tensor(fragment, delta)
        for piece in self.plan.fragments[fragment]:
            parameter = self._parameter(piece)
            flat = parameter.reshape(-1)
            target = flat[piece.start : piece.stop]
            wide = torch.promote_types(parameter.dtype, torch.float32)
            change = _span(source, piece).to(device=parameter.device, dtype=wide)
            target.copy_(target.to(wide) + change)
            _put_back(parameter, flat)

    def _parameter(self, piece: Piece) -> Tensor:
        parameter = self._parameters[piece.parameter]
        self._require_shape(piece.parameter, parameter)
        return parameter.detach()

    def _require_shape(self, name: str, parameter: Tensor) -> None:
        if parameter.shape != self._shapes[name]:
            raise RunMismatchError(
                f"parameter {name!r} has shape {tuple(parameter.shape)} now, expected"
                f" {self._shapes[name]} as at first: resize modules before joining, later change only values"
            )

    def _tensor(self, fragment: int, array: Float32) -> Tensor:
        """The array as a tensor on the same memory (a copy if it is read-only)."""
        size = self.plan.sizes[fragment]
        if array.dtype != np.float32 or array.shape != (size,) or not array.flags.c_contiguous:
            raise ValueError(
                f"fragment {fragment}: got {array.dtype} {array.shape}, expected a contiguous"
                f" float32 array ({size},)"
            )
        # torch warns of read-only memory, which decoded results may be.
        return torch.from_numpy(array if array.flags.writeable else array.copy())


def _span(buffer: Tensor, piece: Piece) -> Tensor:
    return buffer[piece.offset : piece.offset + piece.numel]


def _put_back(parameter: Tensor, flat: Tensor) -> None:
    """Writes `flat` into a parameter that it is a copy of; a view of it has changed it already."""
    if flat.data_ptr() != parameter.data_ptr():
        parameter.copy_(flat.view(parameter.shape))


def _check_shapes(seen: tuple[ParameterShape, ...], expected: tuple[ParameterShape, ...]) -> None:
    if seen == expected:
        return
    for shape in sorted(set(seen) ^ set(expected), key=lambda shape: shape.name):
        own = next((one.shape for one in seen if one.name == shape.name), "no such parameter")
        theirs = next((one.shape for one in expected if one.name == shape.name), "none")
        raise RunMismatchError(
            f"parameter {shape.name!r}: this model has {own}, the run expects {theirs};"
            " build the model exactly as the run's owner does"
        )


def _first_of(problems: tuple[str, ...]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"parameter {problems[0]}{more}"
