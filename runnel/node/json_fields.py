"""Flat frozen dataclasses to JSON values and back, with every field's type checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def field_values(instance: DataclassInstance) -> dict[str, Any]:
    """The fields of `instance` as JSON values; NaN and infinities as strings."""
    return {f.name: _encode(getattr(instance, f.name)) for f in fields(instance)}


def fields_from(kind: type[DataclassInstance], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for `kind` out of JSON values; names that it does not know are dropped.

    Raises:
        TypeError: a value has another type than its field, or a field without default is missing.
    """
    values: dict[str, Any] = {}
    for f in fields(kind):
        if f.name in raw:
            values[f.name] = _DECODERS[str(f.type)](raw[f.name])
        elif f.default is MISSING and f.default_factory is MISSING:
            raise TypeError(f"{kind.__name__} needs {f.name}")
    return values


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return dict(value) if isinstance(value, Mapping) else value


def to_float(value: Any) -> float:
    """A number, or one of the strings "nan", "inf", "-inf".

    Raises:
        TypeError: neither a number nor a string.
        ValueError: another string.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _exactly(kind: type) -> Callable[[Any], Any]:
    def decode(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{value!r} is not {kind.__name__}")
        return value

    return decode


def _to_names(value: Any) -> tuple[str, ...]:
    return tuple(_exactly(str)(name) for name in _exactly(list)(value))


def _to_counts(value: Any) -> dict[str, int]:
    return {str(name): _exactly(int)(count) for name, count in _exactly(dict)(value).items()}


_DECODERS: Mapping[str, Callable[[Any], Any]] = {
    "float": to_float,
    "int": _exactly(int),
    "bool": _exactly(bool),
    "str": _exactly(str),
    "tuple[str, ...]": _to_names,
    "Mapping[str, int]": _to_counts,
}
