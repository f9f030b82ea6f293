"""What a run is: the one object behind run.toml, ``--set``, the signed manifest and the docs table.

The order of sections and fields is part of the wire format: the signed encoding is a list of values
in this order. A new field, another order or another type needs a new `manifest.VERSION`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from runnel.node.manifest_rules import contradictions
from runnel.node.manifest_sections import (
    DataSection,
    EndSection,
    InnerSection,
    ModelSection,
    OuterSection,
    RoundsSection,
    RunSection,
    Section,
    SeedsSection,
)

CONTRADICTION = "contradiction"
"""Type of the validation error of fields that are fine alone and impossible together."""


class RunSpec(Section):
    """Everything that all peers of a run must agree on."""

    run: RunSection
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    inner: InnerSection = InnerSection()
    outer: OuterSection = OuterSection()
    seeds: SeedsSection = SeedsSection()
    rounds: RoundsSection = RoundsSection()
    end: EndSection = EndSection()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        found = contradictions(self)
        if found:
            raise PydanticCustomError(CONTRADICTION, "{lines}", {"lines": "\n".join(found)})
        return self

    @property
    def num_fragments(self) -> int:
        """Parts that are exchanged in turn: one where scalars stand for the whole model."""
        return 1 if self.seeds.is_on else self.outer.fragments

    @property
    def open_rounds(self) -> int:
        """Rounds under way at once: a scalar is of the newest weights only."""
        return 1 if self.seeds.is_on else self.rounds.open

    @property
    def steps_per_window(self) -> int:
        """Inner steps of a peer between two rounds of one fragment."""
        return self.seeds.local_steps if self.seeds.is_on else self.outer.every_steps

    def values(self) -> list[list[Any]]:
        """All values, section by section, in declared order: what a signature covers."""
        return [list(section.model_dump().values()) for _, section in _sections_of(self)]

    @classmethod
    def from_values(cls, values: list[list[Any]]) -> RunSpec:
        """The inverse of `values`.

        Raises:
            ValueError: other sections or fields than this version has, or a value out of range
                (pydantic's ValidationError is a ValueError).
        """
        kinds = section_kinds()
        tables = {
            name: dict(zip(kind.model_fields, fields, strict=True))
            for (name, kind), fields in zip(kinds.items(), values, strict=True)
        }
        return cls.model_validate(tables)

    def published(self) -> RunSpec:
        """The spec as others may see it: of a path on this machine only the file's name is left."""
        text = PurePath(self.data.text).name or self.data.text
        source = self.model.source
        if source.startswith((".", "~")) or PurePath(source).is_absolute():
            source = f"./{PurePath(source).name}"  # and not one of the hub
        data, model = {"text": text}, {"source": source}
        return self.model_copy(
            update={
                "data": self.data.model_copy(update=data),
                "model": self.model.model_copy(update=model),
            }
        )


def section_kinds() -> Mapping[str, type[Section]]:
    """The class of each section by its name, in declared order."""
    return {
        name: field.annotation
        for name, field in RunSpec.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def _sections_of(spec: RunSpec) -> list[tuple[str, Section]]:
    return [(name, getattr(spec, name)) for name in section_kinds()]
