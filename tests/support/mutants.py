"""Rules of the protocol, each with a way to turn it back, so that tests show what each of them is for.

A mutant replaces a piece of a module's source. Functions that come out different get their new code in
place, whoever has imported them, and their old code back afterwards. A piece that is not found exactly
once is an error, so that a table of mutants cannot rot.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule, and how to revert it: `old` becomes `new` in the source of `module`, below ``runnel.``.

    `shown_by` are what must fail then: names of unit tests (``folder.file:test``, below ``tests.unit``),
    or schedules (``SEED KIND``, see `tests.support.sweep`).
    """

    rule: str
    module: str
    old: str
    new: str
    shown_by: tuple[str, ...]

    @property
    def schedules(self) -> tuple[tuple[int, str], ...]:
        """Schedules that show what the rule is for."""
        words = (where.split() for where in self.shown_by if ":" not in where)
        return tuple((int(seed), kind) for seed, kind in words)

    @property
    def tests(self) -> tuple[str, ...]:
        """Unit tests that show it."""
        return tuple(where for where in self.shown_by if ":" in where)


@contextmanager
def reverted(mutant: Mutant) -> Iterator[None]:
    """The product without one of its rules.

    Raises:
        ValueError: the piece of source to replace is not there exactly once, or changes no function.
    """
    module = importlib.import_module(f"runnel.{mutant.module}")
    source = Path(str(module.__file__)).read_text()
    found = source.count(mutant.old)
    if found != 1:
        raise ValueError(f"{mutant.rule}: found {found} times in {mutant.module}, expected once")
    changed = _changed(source, source.replace(mutant.old, mutant.new))
    functions = {_function(module, name): code for name, code in changed.items()}
    if not functions:
        raise ValueError(f"{mutant.rule}: no function of {mutant.module} is another one then")
    before = {function: function.__code__ for function in functions}
    try:
        for function, code in functions.items():
            function.__code__ = code
        yield
    finally:
        for function, code in before.items():
            function.__code__ = code


def _changed(source: str, other: str) -> dict[str, CodeType]:
    """The functions of `other` that are not those of `source`, by qualified name."""
    old, new = (
        _functions(compile(source, "<old>", "exec")),
        _functions(compile(other, "<new>", "exec")),
    )
    if set(old) != set(new):
        raise ValueError(f"functions come or go: {set(old) ^ set(new)}")
    return {name: code for name, code in new.items() if _bare(code) != _bare(old[name])}


def _functions(code: CodeType, prefix: str = "") -> dict[str, CodeType]:
    """Functions and methods by qualified name; what is nested in them is theirs."""
    found: dict[str, CodeType] = {}
    for inner in code.co_consts:
        if isinstance(inner, CodeType) and not inner.co_name.startswith("<"):
            name = prefix + inner.co_name
            is_function = bool(inner.co_flags & 0x2)  # its names are local to it
            found |= {name: inner} if is_function else _functions(inner, f"{name}.")
    return found


def _bare(code: CodeType) -> tuple[Any, ...]:
    """What code does, without where it stands."""
    constants = tuple(_bare(c) if isinstance(c, CodeType) else (type(c), c) for c in code.co_consts)
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars


def _function(module: ModuleType, name: str) -> FunctionType:
    found: Any = module
    for part in name.split("."):
        found = vars(found)[part]
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    elif isinstance(found, property):
        found = found.fget
    elif isinstance(found, cached_property):
        found = found.func
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    if not isinstance(found, FunctionType):
        raise TypeError(f"{name} of {module.__name__} is no function")
    return found
