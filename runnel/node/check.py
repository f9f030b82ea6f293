"""What a swarm would exchange of a model, and what it cannot: a report before anybody joins."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runnel.errors import ConfigError, RunnelError
from runnel.optim.codecs import CODECS, planned_bytes

if TYPE_CHECKING:
    from torch import nn

    from runnel.optim.check import ModelSurvey
    from runnel.optim.fragments import FragmentPlan

_NAMES_SHOWN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReport:
    """What `check` found. ``str()`` gives a table, a notebook shows it as one.

    Attributes:
        exchanged: trainable parameters with their number of values, by name; tied ones once.
        fragment_sizes: values in each fragment; empty if there is a problem.
        split: huge parameters, in several fragments to keep these about equal.
        tied: groups of names that share one parameter; the first stands for all.
        frozen: parameters that do not train and stay as they are.
        float_buffers: buffers such as BatchNorm's statistics: not exchanged, each peer keeps its own.
        other_buffers: integer and boolean buffers: not exchanged.
        round_bytes: by codec, the payload of the largest fragment: about what a peer sends, and
            receives, in a round.
        fingerprint: hexadecimal digest that must be equal on all peers; empty with a problem.
        problems: one line for each thing that keeps the model from training in a swarm.
    """

    exchanged: Mapping[str, int]
    fragment_sizes: tuple[int, ...]
    split: tuple[str, ...]
    tied: tuple[tuple[str, ...], ...]
    frozen: tuple[str, ...]
    float_buffers: tuple[str, ...]
    other_buffers: tuple[str, ...]
    round_bytes: Mapping[str, int]
    fingerprint: str
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the model can train in a swarm."""
        return not self.problems

    @property
    def numel(self) -> int:
        """Values that are exchanged."""
        return sum(self.exchanged.values())

    def __str__(self) -> str:
        """A table for people, one line per finding."""
        rows = self._rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)

    def _repr_html_(self) -> str:
        """The table for notebooks."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(label)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for label, text in self._rows()
        )
        return f"<table>{rows}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        found = [
            ("exchanged", f"{self.numel:,} values in {len(self.exchanged)} parameters"),
            ("fragments", _fragments_text(self.fragment_sizes)),
            ("per round", ", ".join(f"{k} {_size(v)}" for k, v in self.round_bytes.items())),
            ("split", _listed(self.split, "in several fragments, to keep these equal")),
            ("tied", _listed((" = ".join(names) for names in self.tied), "exchanged once")),
            ("frozen", _listed(self.frozen, "not exchanged")),
            (
                "float buffers",
                _listed(self.float_buffers, "not exchanged, each peer keeps its own"),
            ),
            ("other buffers", _listed(self.other_buffers, "not exchanged")),
            *(("problem", problem) for problem in self.problems),
            ("fingerprint", self.fingerprint[:16]),
            ("verdict", "can train in a swarm" if self.ok else "cannot train in a swarm yet"),
        ]
        return [(label, text) for label, text in found if text]


def check(model: nn.Module, *, fragments: int = 4) -> ModelReport:
    """Reports what would be exchanged of `model` and what cannot be; raises nothing for a bad model.

    Args:
        model: any torch module; it is only looked at.
        fragments: number of fragments that the run would use (``outer.fragments``).

    Raises:
        ConfigError: not a torch module.
    """
    from runnel.optim.check import not_finite

    found = _surveyed(model)
    return _checked(found, fragments, (*found.problems, *not_finite(model)))


def require(model: nn.Module, *, fragments: int = 4) -> ModelReport:
    """The report of a model whose parameters can be exchanged, whatever their values.

    Raises:
        ConfigError: they cannot; one line with the first problem.
    """
    found = _surveyed(model)
    report = _checked(found, fragments, found.problems)
    if report.problems:
        raise ConfigError(f"the model cannot train in a swarm: {_first_of(report.problems)}")
    return report


def require_finite(model: nn.Module) -> None:
    """Checks the values of a model from which a run is to start; who joins one gets its values.

    Raises:
        ConfigError: some are NaN or infinite; one line with the first parameter.
    """
    from runnel.optim.check import not_finite

    if problems := not_finite(model):
        raise ConfigError(f"a run cannot start from this model: {_first_of(problems)}")


def _surveyed(model: nn.Module) -> ModelSurvey:
    from torch import nn

    from runnel.optim.check import survey

    if not isinstance(model, nn.Module):
        raise ConfigError(f"the model is a {type(model).__name__}, expected a torch.nn.Module")
    return survey(model)


def _checked(found: ModelSurvey, fragments: int, problems: tuple[str, ...]) -> ModelReport:
    from runnel.optim.fragments import plan_fragments

    plan = None
    try:
        plan = plan_fragments(found.exchanged, fragments)
    except RunnelError as error:
        # With parameters refused, "nothing to train" would only repeat that.
        problems = (*problems, *(() if problems else (str(error),)))
    return _report(found, None if problems else plan, problems)


def _first_of(problems: tuple[str, ...]) -> str:
    more = len(problems) - 1
    return problems[0] + (f" (and {more} more: see runnel.check(model))" if more else "")


def _report(
    found: ModelSurvey, plan: FragmentPlan | None, problems: tuple[str, ...]
) -> ModelReport:
    sizes = plan.sizes if plan else ()
    names = [shape.name for shape in found.exchanged]
    return ModelReport(
        exchanged={shape.name: shape.numel for shape in found.exchanged},
        fragment_sizes=sizes,
        split=tuple(name for name in names if plan and len(plan.homes(name)) > 1),
        tied=found.tied,
        frozen=found.frozen,
        float_buffers=found.float_buffers,
        other_buffers=found.other_buffers,
        round_bytes={name: planned_bytes(name, max(sizes)) for name in CODECS} if sizes else {},
        fingerprint=plan.fingerprint().hex() if plan else "",
        problems=problems,
    )


def _fragments_text(sizes: tuple[int, ...]) -> str:
    if not sizes:
        return ""
    return f"{len(sizes)} of {min(sizes):,} to {max(sizes):,} values"


def _listed(names: Iterable[str], remark: str) -> str:
    """The first few of `names` and what happens to them; nothing for none."""
    names = list(names)
    if not names:
        return ""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more} ({remark})"


def _size(size_bytes: int) -> str:
    size: float = size_bytes
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
