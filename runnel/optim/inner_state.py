"""What an inner optimizer remembers between two steps: copied, named by content, put back."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runnel.hashing import digest

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from runnel.types import Digest


@dataclass(frozen=True, slots=True, eq=False)
class Remembered:
    """One value that an optimizer keeps.

    Attributes:
        parameter: place of the parameter that it belongs to, in the order of the optimizer's groups.
        key: what the optimizer calls it.
        value: a tensor on the CPU, contiguous; or a number.
    """

    parameter: int
    key: str
    value: Tensor | float

    @property
    def header(self) -> bytes:
        """All of it but a tensor's values; no two different ones have equal headers."""
        place = f"{self.parameter} {len(self.key)} {self.key}"
        if isinstance(self.value, Tensor):
            return f"{place} {self.value.dtype} {tuple(self.value.shape)}".encode()
        return f"{place} {type(self.value).__name__} {self.value!r}".encode()


@dataclass(frozen=True, slots=True, eq=False)
class InnerState:
    """A copy of an optimizer's state: `values` by parameter, and by key in alphabetical order.

    Equal ones have equal names. Rates and other settings of groups are not in it: they follow from the run.
    """

    values: tuple[Remembered, ...] = ()

    @property
    def name(self) -> Digest:
        """Its digest; hashes all of it.

        The digest of the digests of each value, each of the length of its header in four bytes,
        big-endian, its header, and a tensor's bytes in the machine's order.
        """
        return digest(*(_name_of(value) for value in self.values))


def copy_inner_state(optimizer: object) -> InnerState | None:
    """A copy of what an optimizer remembers; None if that is not tensors and numbers, or it is none."""
    state = getattr(optimizer, "state", None)
    if not isinstance(state, MutableMapping):
        return None
    found: list[Remembered] = []
    for place, parameter in enumerate(_parameters(optimizer)):  # type: ignore[arg-type]  # or acts like one
        held = state.get(parameter, {})
        for key in sorted(held):
            value = held[key]
            if isinstance(value, Tensor):
                value = value.detach().to("cpu", copy=True).contiguous()
            elif not isinstance(value, int | float):
                return None
            found.append(Remembered(place, key, value))
    return InnerState(tuple(found))


def put_inner_state(state: InnerState, optimizer: Optimizer) -> None:
    """Makes an optimizer remember `state`, copies of it, and nothing else.

    What has a parameter's shape goes to its device; all else stays where it is, as torch has it.

    Raises:
        IndexError: it is of an optimizer of more parameters.
    """
    optimizer.state.clear()
    parameters = list(_parameters(optimizer))
    for one in state.values:
        parameter, value = parameters[one.parameter], one.value
        if isinstance(value, Tensor):
            device = parameter.device if value.shape == parameter.shape else value.device
            value = value.to(device, copy=True)
        optimizer.state[parameter][one.key] = value


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _name_of(one: Remembered) -> Digest:
    size = len(one.header).to_bytes(4, "big")
    if not isinstance(one.value, Tensor):
        return digest(size, one.header)
    content = one.value.reshape(-1).view(torch.uint8)
    return digest(size, one.header, content.numpy().data)
