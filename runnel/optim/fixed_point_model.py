"""A torch model whose weights are materialised from integers: all at once, or module by module.

Only the trainer's thread uses it. Trainable parameters follow the integers; frozen ones and buffers
stay as they are. Tied parameters are held once. Parameters may be float32, float16, bfloat16 or
float64, contiguous or not, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from runnel.errors import ConfigError, RunMismatchError
from runnel.kernels.perturb_signatures import Directions, Float64
from runnel.optim.check import exchanged_parameters, survey
from runnel.optim.device_weights import DeviceWeights, project_parts
from runnel.optim.fixed_point import Key, MasterWeights, Probe, Spread
from runnel.optim.seed_updates import SeedUpdate
from runnel.protocols import Float32

Materialise = Callable[[int, Any, Probe | None], None]
"""Writes tensor `number`, at a probe or not, as `MasterWeights.materialise` does."""

_NARROW = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}


def master_of(model: nn.Module, key: Key, *, spread: Spread | None = None) -> MasterWeights:
    """The integers of a model's trainable parameters, nearest to their values; changes nothing.

    Raises:
        ConfigError: a parameter cannot be held (see `runnel.check`), is not finite, or none is trainable.
    """
    found = survey(model)
    if found.problems:
        raise ConfigError(f"parameter {found.problems[0]}")
    if not found.exchanged:
        raise ConfigError("the model has no trainable parameter: set requires_grad on what to tune")
    parameters = exchanged_parameters(model)

    def values(name: str) -> npt.NDArray[Any]:
        held = parameters[name].detach()
        read: npt.NDArray[Any] = held.to("cpu", _readable(held.dtype)).numpy()
        return read

    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    return MasterWeights.read(shapes, values, key, spread=spread)


class FixedPointModel:
    """Binds integers to a model, and writes them into it.

    The parameters' memory is their own: with `by_module` it is given back, and a module has its
    weights only while its ``forward`` runs, so that a model needs 4 bytes per weight and its largest
    module. Then a model must use each parameter inside the ``forward`` of a module that holds it
    or, as `torch.nn.MultiheadAttention` does, holds its holder.

    From `close` on, the model holds the unperturbed weights and is as free as before.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: MasterWeights,
        *,
        by_module: bool = False,
        copied: bool = True,
    ) -> None:
        """Writes the weights into the model.

        Parameters on GPUs with room are written there, from copies of the integers; not if `copied`
        is false, for training that needs the memory and writes seldom.

        Raises:
            ConfigError: a parameter that cannot be held.
            RunMismatchError: the model's names or shapes are not those of the weights.
        """
        found = survey(model)
        if found.problems:
            raise ConfigError(f"parameter {found.problems[0]}")
        self.weights, self.model = weights, model
        self._parameters = exchanged_parameters(model)
        _check_shapes(self._parameters, weights)
        self._beside = DeviceWeights(weights, self._parameters.values() if copied else ())
        self._strides = {name: value.stride() for name, value in self._parameters.items()}
        self._probe: Probe | None = None
        self._source: Materialise | None = None
        self._lent = _Lent(self) if by_module else None
        if self._lent is None:
            self.write()

    def write(self, probe: Probe | None = None) -> None:
        """Sets the parameters to the weights, or to a probe beside them (module by module: when they run).

        Raises:
            RunMismatchError: a parameter has another shape than at first.
        """
        self._probe = probe
        if self._lent is None:
            for name, parameter in self._parameters.items():
                self.write_one(name, parameter)

    @contextmanager
    def perturbed(self, probe: Probe) -> Iterator[None]:
        """The model at a probe inside the block; afterwards at the weights, not one bit changed."""
        self.write(probe)
        try:
            yield
        finally:
            self.write()

    @contextmanager
    def elsewhere(self, source: Materialise) -> Iterator[None]:
        """Inside the block `write` takes its values from `source`, not from the weights.

        Afterwards the parameters hold what was written last: call `write`.
        """
        self._source = source
        try:
            yield
        finally:
            self._source = None

    def apply(self, updates: Iterable[SeedUpdate]) -> None:
        """Moves the weights, in one pass for all updates, and the model with them."""
        self.weights.apply(updates)
        self.write()

    def differences(self) -> Iterator[tuple[int, Float32]]:
        """(tensor id, float32 [n]): the weights minus what the parameters hold now.

        What local steps did to the model since the last `write`, one tensor at a time.

        Raises:
            ConfigError: the parameters are not there, as they are materialised by module.
            RunMismatchError: a parameter has another shape than at first.
        """
        if self._lent is not None:
            raise ConfigError(
                "local steps need the parameters: bind the model without by_module=True"
            )
        for number, tensor in enumerate(self.weights.tensors):
            before = np.empty(tensor.values.size, np.float32)
            self.weights.materialise(number, before)
            self._require_shape(tensor.name, self._parameters[tensor.name])
            now = self._parameters[tensor.name].detach().to("cpu", torch.float32)
            yield number, before - now.reshape(-1).numpy()

    def project(self, number: int, delta: Float32, where: Directions) -> Float64 | None:
        """The parts of a tensor's projections, made by the GPU that holds it; None: not there.

        Args:
            number: the tensor's id.
            delta: float32 [n], on the CPU.
            where: uint32 [K, 5].
        """
        device = self._parameters[self.weights.tensors[number].name].device
        return project_parts(delta, where, device)

    def close(self) -> None:
        """Puts the weights into the model for good. Idempotent."""
        if self._lent is not None:
            self._lent.end()
            self._lent = None
            for name, parameter in self._parameters.items():
                parameter.data = self.fresh(name)
        self.write()
        self._beside.forget()

    @torch.no_grad()
    def write_one(self, name: str, parameter: Tensor) -> None:
        """Sets one parameter, in its own memory where that can be written to directly.

        Raises:
            RunMismatchError: it has another shape than at first.
        """
        self._require_shape(name, parameter)
        number, materialise = self.weights.ids[name], self._source or self.weights.materialise
        flat = parameter.detach()
        if self._source is None and self._beside.holds(flat.device):
            self._beside.materialise(number, flat, self._probe)
            return
        if flat.device.type == "cpu" and flat.is_contiguous() and flat.dtype in _NARROW:
            materialise(number, _numpy_of(flat), self._probe)
            return
        held = torch.empty(flat.shape, dtype=_materialised(flat.dtype))
        materialise(number, _numpy_of(held), self._probe)
        flat.copy_(held)

    def fresh(self, name: str) -> Tensor:
        """A new tensor for one parameter, with the weights or the probe that is asked for.

        Its strides are the old ones, as a product's last bits can depend on them.
        """
        parameter, tensor = self._parameters[name], self.weights.tensors[self.weights.ids[name]]
        made = torch.empty_strided(
            tensor.shape, self._strides[name], dtype=parameter.dtype, device=parameter.device
        )
        self.write_one(name, made)
        return made

    def _require_shape(self, name: str, parameter: Tensor) -> None:
        shape = self.weights.tensors[self.weights.ids[name]].shape
        if parameter.shape != shape:
            raise RunMismatchError(
                f"parameter {name!r} has shape {tuple(parameter.shape)} now, expected {shape} as at first:"
                " resize modules before joining, later change only values"
            )

    def named(self) -> dict[int, str]:
        """The trainable parameters' names, by identity."""
        return {id(parameter): name for name, parameter in self._parameters.items()}


class _Lent:
    """Gives modules their parameters for the length of their forward pass."""

    def __init__(self, owner: FixedPointModel) -> None:
        self._owner, self._names = owner, owner.named()
        self._users: dict[int, int] = dict.fromkeys(self._names, 0)
        self._hooks: list[Any] = []
        for module in owner.model.modules():
            own = self._of(module)
            if own:
                self._hooks += [
                    module.register_forward_pre_hook(self._lend(own)),
                    module.register_forward_hook(self._take_back(own), always_call=True),
                ]
        for parameter in owner.model.parameters():
            self._empty(parameter)

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _of(self, module: nn.Module) -> list[nn.Parameter]:
        # attention hands its projection's weight to a function, and never calls the projection
        deep = isinstance(module, nn.MultiheadAttention)
        return [value for value in module.parameters(recurse=deep) if id(value) in self._names]

    def _lend(self, parameters: list[nn.Parameter]) -> Callable[..., None]:
        def hook(*_: object) -> None:
            for parameter in parameters:
                if self._users[id(parameter)] == 0:
                    parameter.data = self._owner.fresh(self._names[id(parameter)])
                self._users[id(parameter)] += 1

        return hook

    def _take_back(self, parameters: list[nn.Parameter]) -> Callable[..., None]:
        def hook(*_: object) -> None:
            for parameter in parameters:
                self._users[id(parameter)] -= 1
                if self._users[id(parameter)] == 0:
                    self._empty(parameter)

        return hook

    def _empty(self, parameter: nn.Parameter) -> None:
        if id(parameter) in self._names:
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


def _numpy_of(tensor: Tensor) -> Any:
    flat = tensor.view(-1)
    return (flat.view(torch.uint16) if tensor.dtype == torch.bfloat16 else flat).numpy()


def _materialised(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in _NARROW else torch.float32


def _readable(dtype: torch.dtype) -> torch.dtype:
    """A type that numpy has and that holds the same values."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _check_shapes(parameters: dict[str, nn.Parameter], weights: MasterWeights) -> None:
    own = {name: tuple(value.shape) for name, value in parameters.items()}
    theirs = {tensor.name: tensor.shape for tensor in weights.tensors}
    for name in sorted(own.keys() | theirs.keys()):
        if own.get(name) != theirs.get(name):
            raise RunMismatchError(
                f"parameter {name!r}: this model has {own.get(name, 'none')}, the weights have"
                f" {theirs.get(name, 'none')}; build the model, and freeze of it, what the run's owner did"
            )
