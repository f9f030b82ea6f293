"""Between a `RunSpec` and people: run.toml, ``--set`` and the docs table."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import ValidationError

from runnel.errors import ConfigError, InputFileError
from runnel.node.manifest_patterns import AUTO
from runnel.node.manifest_sections import NAME_PATTERN, NAME_WORDS
from runnel.node.manifest_spec import RunSpec, section_kinds
from runnel.node.manifest_words import (
    error_lines,
    expected,
    shortened,
    suggestion,
    toml_literal,
)

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

MAX_FILE_BYTES = 2**20
"""Longer files are not a run.toml."""

_COMMENT_COLUMN = 30

Tables = dict[str, dict[str, Any]]


def load_spec(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """The spec in the TOML file `path`, with each override ``section.field=value`` put over it.

    Raises:
        InputFileError: the file is missing or cannot be read.
        ConfigError: not TOML, or fields that are unknown, mistyped, out of range or contradictory;
            one line for each.
    """
    tables = _parsed(_read(path), source=path.name)
    given = parse_overrides(overrides)
    for section, fields in given.items():
        table = tables.setdefault(section, {})
        if isinstance(table, dict):  # anything else is refused with the other wrong fields
            table.update(fields)
    return make_spec(tables, source=path.name, overrides=given)


def make_spec(
    tables: Mapping[str, Any],
    *,
    source: str,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> RunSpec:
    """The spec of parsed tables. `source` names them in errors; `overrides` came from ``--set``.

    Raises:
        ConfigError: one line for each wrong field.
    """
    try:
        spec = RunSpec.model_validate(dict(tables))
    except ValidationError as error:
        lines = error_lines(error, source=source, overridden=overrides or {})
        raise ConfigError("\n".join(lines)) from None
    if spec.outer.budget and spec.outer.codec != AUTO:
        raise ConfigError(
            f"{source}: outer.budget is {spec.outer.budget!r} with outer.codec {spec.outer.codec}, which"
            " is not chosen by it: set outer.codec to auto, or remove the budget"
        )
    return spec


def parse_overrides(overrides: Sequence[str]) -> Tables:
    """Tables of ``section.field=value`` texts; of two for one field the last one holds.

    A value is TOML (``0.7``, ``true``, ``"text"``); texts need no quotes. Values are checked
    together with the file's, by `load_spec`.

    Raises:
        ConfigError: not of this form, or no such setting.
    """
    tables: Tables = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        section, dot, name = (part.strip() for part in path.partition("."))
        kind = section_kinds().get(section)
        if not equals or not dot:
            problem = "is not of the form section.field=value"
        elif kind is None or name not in kind.model_fields:
            problem = f"names no setting of a run ({section}.{name})"
        else:
            value = _override_value(text.strip(), kind.model_fields[name])
            tables.setdefault(section, {})[name] = value
            continue
        raise ConfigError(f"--set {shortened(override)} {problem}{suggestion(path.strip())}")
    return tables


def method_settings(method: str) -> list[str]:
    """What ``runnel new --method`` sets, as overrides.

    Raises:
        ConfigError: no such method.
    """
    if method == "streaming":
        return []
    methods = get_args(section_kinds()["seeds"].model_fields["method"].annotation)[1:]
    if method not in methods:
        raise ConfigError(
            f"--method {shortened(method)} is none, expected streaming, {', '.join(methods)}"
        )
    lr = "0.1" if method == "ferret" else "0"
    return [f"seeds.method={method}", f"seeds.lr={lr}", "rounds.snapshot_every=64"]


def new_run_toml(name: str, overrides: Sequence[str] = ()) -> str:
    """The text of a new run's file: all settings at their defaults, with comments.

    Raises:
        ConfigError: `name` cannot be a run's name, or an override is wrong.
    """
    if not re.fullmatch(NAME_PATTERN, name) or name.endswith("\n"):
        raise ConfigError(
            f"a run cannot be called {shortened(repr(name))}, expected {NAME_WORDS}:"
            " choose another name, my-run for example"
        )
    given = parse_overrides(overrides)
    tables: Tables = {**given, "run": {**given.get("run", {}), "name": name}}
    return spec_to_toml(make_spec(tables, source="runnel new", overrides=given))


def spec_to_toml(spec: RunSpec) -> str:
    """A commented run.toml, one line per field; `load_spec` gives the same spec back."""
    lines = [
        "# A run of runnel. Start it with: runnel launch FILE",
        "# Every line can be changed for one launch with: --set section.field=value",
    ]
    for section, kind in section_kinds().items():
        table = getattr(spec, section)
        settings = [f"{name} = {toml_literal(getattr(table, name))}" for name in kind.model_fields]
        column = min(max(map(len, settings)) + 2, _COMMENT_COLUMN)
        lines += ["", f"[{section}]  # {kind.__doc__}"]
        for setting, (name, field) in zip(settings, kind.model_fields.items(), strict=True):
            lines.append(f"{setting:<{column}}# {field.description} ({expected(name, field)})")
    return "\n".join(lines) + "\n"


def docs_table() -> str:
    """All settings as Markdown: a heading and a table for each section."""
    blocks = []
    for section, kind in section_kinds().items():
        rows = [f"## `[{section}]`", "", kind.__doc__ or "", ""]
        rows += ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
        for name, field in kind.model_fields.items():
            default = "required" if field.is_required() else f"`{toml_literal(field.default)}`"
            cells = (f"`{name}`", default, expected(name, field), field.description or "")
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks) + "\n"


def _override_value(text: str, field: FieldInfo) -> Any:
    takes_text = field.annotation is str or get_origin(field.annotation) is Literal
    if "\n" in text or (takes_text and not text.startswith(('"', "'"))):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise InputFileError(
            f"{path} does not exist, expected a run file: `runnel new NAME` writes one"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise InputFileError(
            f"{path} cannot be read ({reason.lower()}), expected a run file: correct the path"
        ) from None
    if len(text) > MAX_FILE_BYTES:
        raise InputFileError(
            f"{path} is longer than {MAX_FILE_BYTES} bytes, expected a run file: correct the path"
        )
    return text


def _parsed(text: bytes, *, source: str) -> dict[str, Any]:
    advice = "expected TOML as `runnel new NAME` writes it: correct the file"
    try:
        return tomllib.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: byte {error.start} is not UTF-8, {advice}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{source}: {reason}, {advice}") from None
