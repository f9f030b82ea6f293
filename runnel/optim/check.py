"""What of a torch model can be exchanged, and what cannot, by name. Nothing here changes the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from runnel.optim.fragments import ParameterShape

EXCHANGED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types of parameters that are read into and written from float32."""

_COMPILED_PREFIX = "_orig_mod."


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSurvey:
    """The parameters and buffers of a model, sorted by what happens to them.

    Attributes:
        exchanged: trainable parameters that go into fragments, in name order.
        tied: groups of names that share one parameter; the first name stands for all.
        frozen: parameters with ``requires_grad=False``: they stay as they are on every peer.
        float_buffers: buffers such as BatchNorm's running statistics: not exchanged, each peer
            keeps its own.
        other_buffers: integer and boolean buffers, such as masks and counters: not exchanged.
        problems: one line for each parameter that cannot be exchanged.
    """

    exchanged: tuple[ParameterShape, ...]
    tied: tuple[tuple[str, ...], ...]
    frozen: tuple[str, ...]
    float_buffers: tuple[str, ...]
    other_buffers: tuple[str, ...]
    problems: tuple[str, ...]


def survey(model: nn.Module) -> ModelSurvey:
    """Sorts a model's parameters and buffers; never raises for a bad model."""
    groups = _parameters(model)
    trainable = {names[0]: value for names, value in groups if value.requires_grad}
    problems = {name: reason for name, value in trainable.items() if (reason := _refusal(value))}
    exchanged = {name: value for name, value in trainable.items() if name not in problems}
    buffers = [(plain_name(name), value) for name, value in model.named_buffers()]
    float_buffers = [name for name, value in buffers if value.is_floating_point()]
    return ModelSurvey(
        exchanged=tuple(
            ParameterShape(name, tuple(value.shape)) for name, value in sorted(exchanged.items())
        ),
        tied=tuple(tuple(names) for names, _ in groups if len(names) > 1),
        frozen=tuple(name for names, value in groups if not value.requires_grad for name in names),
        float_buffers=tuple(sorted(float_buffers)),
        other_buffers=tuple(sorted({name for name, _ in buffers} - set(float_buffers))),
        problems=(
            *(f"{name}: {reason}" for name, reason in sorted(problems.items())),
            *_overlaps(exchanged),
        ),
    )


def not_finite(model: nn.Module) -> tuple[str, ...]:
    """One line for each exchanged parameter that holds NaN or infinity as float32.

    Costs one pass over the values.
    """
    lines = []
    for name, value in exchanged_parameters(model).items():
        if _refusal(value):
            continue
        bad = value.numel() - int(value.detach().float().isfinite().sum())
        if bad:
            lines.append(
                f"{name}: {bad} of {value.numel()} values are NaN or infinite in float32; initialise"
                " it, or load weights that are finite"
            )
    return tuple(lines)


def exchanged_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All trainable parameters by the name that stands for them, tied ones once, in name order."""
    return {names[0]: value for names, value in _parameters(model) if value.requires_grad}


def plain_name(name: str) -> str:
    """The name without what `torch.compile` adds, so that a compiled model has the same plan."""
    return name.replace(_COMPILED_PREFIX, "")


def _parameters(model: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Each parameter with its sorted names, by first name: independent of registration order."""
    names: dict[int, list[str]] = {}
    values: dict[int, nn.Parameter] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(plain_name(name))
        values[id(value)] = value
    return sorted((sorted(found), values[key]) for key, found in names.items())


def _refusal(value: nn.Parameter) -> str:
    """Why a trainable parameter cannot be exchanged, or nothing."""
    if isinstance(value, UninitializedParameter):
        return "has no shape yet; run the model once on a batch before it joins"
    if not _is_plain(value):
        return (
            f"is a {type(value).__name__}, expected a plain tensor on one device;"
            " gather or unwrap it first"
        )
    if value.layout is not torch.strided:
        return f"is {_word(value.layout)}, expected a dense tensor; use sparse=False or to_dense()"
    if value.is_meta:
        return "is on the meta device and has no values; move it with to_empty() and fill it"
    if value.dtype not in EXCHANGED_DTYPES:
        expected = ", ".join(_word(dtype) for dtype in EXCHANGED_DTYPES)
        return f"has type {_word(value.dtype)}, expected one of {expected}; convert or freeze it"
    if _repeats(value):
        return "shows one value in several places (an expanded tensor); clone it"
    return ""


def _is_plain(value: Tensor) -> bool:
    """Whether this is no subclass, such as a DTensor, whose values may lie elsewhere."""
    return type(value.detach()) is Tensor


def _repeats(value: Tensor) -> bool:
    return any(
        size > 1 and stride == 0 for size, stride in zip(value.shape, value.stride(), strict=True)
    )


def _overlaps(parameters: dict[str, nn.Parameter]) -> list[str]:
    """Distinct parameters on one memory: an update would reach their values twice."""
    ranges = sorted(
        (str(value.device), value.data_ptr(), value.data_ptr() + _extent_bytes(value), name)
        for name, value in parameters.items()
        if value.numel()
    )
    found = []
    owner, reach = "", ("", 0)  # the parameter that extends furthest so far; device and address
    for device, start, stop, name in ranges:
        if device == reach[0] and start < reach[1]:
            found.append(
                f"{name}: shares memory with {owner} but is another parameter;"
                " assign the same Parameter object to tie them, or clone one"
            )
        if (device, stop) > reach:
            owner, reach = name, (device, stop)
    return found


def _extent_bytes(value: Tensor) -> int:
    """Bytes from the first value to the end of the last, gaps included."""
    strides = zip(value.shape, value.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in strides)) * value.element_size()


def _word(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
