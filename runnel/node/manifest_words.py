"""What to say about a setting: allowed values in words, suggestions, one line for each wrong field."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from runnel.node.manifest_sections import MAX_INT
from runnel.node.manifest_spec import CONTRADICTION, section_kinds

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

_LONGEST_SEEN = 60
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_SIGNS = (("gt", "{} < "), ("ge", "{} <= "), ("lt", " < {}"), ("le", " <= {}"))


def error_lines(
    error: ValidationError, *, source: str, overridden: Mapping[str, Collection[str]]
) -> list[str]:
    """One line for each wrong field: where it stands, what was seen, what is expected, what to do.

    Args:
        error: what pydantic found.
        source: the name of the file.
        overridden: fields by section whose value came from ``--set``.
    """
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        kind, seen = detail["type"], detail["input"]
        if kind == CONTRADICTION:
            lines += [f"{source}: {line}" for line in detail["ctx"]["lines"].split("\n")]
            continue
        section, name = (*(str(part) for part in detail["loc"]), "")[:2]
        if name in overridden.get(section, ()):
            lines.append(_override_fault(section, name, seen, kind))
        else:
            lines.append(f"{source}: {_fault(section, name, seen, kind)}")
    return lines


def expected(name: str, field: FieldInfo, *, is_mistyped: bool = False) -> str:
    """The allowed values: ``0 < lr <= 10``, ``one of "a", "b"``; with the type if that was wrong."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "expected" in extra:
        return str(extra["expected"])
    if get_origin(field.annotation) is Literal:
        names = [json.dumps(value) for value in get_args(field.annotation)]
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    words = next(text for kind, text in _KINDS.items() if kind is field.annotation)
    bounds = _bounds(name, field)
    if field.annotation is int or is_mistyped or not bounds:
        return f"{words}, {bounds}" if bounds else words
    return bounds


def suggestion(path: str) -> str:
    """`: did you mean ...?` for a mistyped path, or what there is to choose from.

    A path that is right as far as it goes gets an example, or the settings of its section.
    """
    sections = section_kinds()
    known = [
        f"{section}.{name}" for section, kind in sections.items() for name in kind.model_fields
    ]
    section, _, name = path.partition(".")
    if section in sections and name in sections[section].model_fields:
        return f": for example --set {_example(path, sections[section].model_fields[name])}"
    if section in sections and not name:
        return f": [{section}] has {', '.join(sections[section].model_fields)}"
    names = get_close_matches(name or section, [_name(field) for field in known], n=1, cutoff=0.8)
    found = (
        [field for field in known if _name(field) == (name or section)]
        or get_close_matches(path, [*known, *sections], n=1, cutoff=0.75)
        or [field for field in known if _name(field) in names]
    )
    if found:
        return f": did you mean {' or '.join(found[:3])}?"
    if name and section in sections:
        return f": [{section}] has {', '.join(sections[section].model_fields)}"
    return f": the sections are {', '.join(sections)}"


def toml_literal(value: Any) -> str:
    """A value as run.toml writes it; what TOML does not have comes as Python shows it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value) if isinstance(value, float) and math.isfinite(value) else str(value)


def shortened(text: str) -> str:
    """`text` on one line of at most 60 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_SEEN else line[: _LONGEST_SEEN - 3] + "..."


def _override_fault(section: str, name: str, seen: Any, kind: str) -> str:
    path, field = f"{section}.{name}", section_kinds()[section].model_fields[name]
    wanted = expected(name, field, is_mistyped=kind.endswith("_type"))
    given = shortened(seen if isinstance(seen, str) else toml_literal(seen))
    return f"--set {path}={given}: expected {wanted}, for example --set {_example(path, field)}"


def _fault(section: str, name: str, seen: Any, kind: str) -> str:
    path = f"{section}.{name}" if name else section
    if kind == "extra_forbidden":
        return f"{path} is not a setting{suggestion(path)}"
    if not name:
        seen_text = "missing" if kind == "missing" else shortened(toml_literal(seen))
        return f"{path} is {seen_text}, expected a table: write [{path}] and its settings below it"
    field = section_kinds()[section].model_fields[name]
    wanted = expected(name, field, is_mistyped=kind.endswith("_type"))
    if kind == "missing":
        return f"{path} is missing, expected {wanted}: add it or use --set {_example(path, field)}"
    return (
        f"{path} is {shortened(toml_literal(seen))}, expected {wanted}:"
        f" edit the file or use --set {_example(path, field)}"
    )


def _bounds(name: str, field: FieldInfo) -> str:
    found = {"low": "", "high": ""}
    for rule in field.metadata:
        for attribute, form in _SIGNS:
            bound = getattr(rule, attribute, None)
            if bound is not None and bound != MAX_INT:
                side = "low" if attribute.startswith("g") else "high"
                found[side] = form.format(_plain(bound))
    if found["low"] and not found["high"] and " <= " in found["low"]:
        return f"{name} >= {found['low'].removesuffix(' <= ')}"
    return f"{found['low']}{name}{found['high']}" if any(found.values()) else ""


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else repr(bound)


def _example(path: str, field: FieldInfo) -> str:
    value = "my-run" if field.is_required() else field.default
    return f"{path}={value if isinstance(value, str) and value else toml_literal(value)}"


def _name(path: str) -> str:
    return path.partition(".")[2]
