"""What is exchanged of a model and how it is applied: fragments, schedules, inner optimizers.

The names are imported when first used: planning and schedules need neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runnel.optim.binding import ModelBinding, plan_model
    from runnel.optim.check import ModelSurvey, survey
    from runnel.optim.fragments import FragmentPlan, ParameterShape, Piece, plan_fragments
    from runnel.optim.inner import (
        INNER_OPTIMIZERS,
        clip_gradients,
        inner_optimizer,
        set_learning_rates,
    )
    from runnel.optim.muon import Muon
    from runnel.optim.schedule import WindowSchedule, lr_factor
    from runnel.optim.schedule_free import ScheduleFreeAdamW

__all__ = [
    "INNER_OPTIMIZERS",
    "FragmentPlan",
    "ModelBinding",
    "ModelSurvey",
    "Muon",
    "ParameterShape",
    "Piece",
    "ScheduleFreeAdamW",
    "WindowSchedule",
    "clip_gradients",
    "inner_optimizer",
    "lr_factor",
    "plan_fragments",
    "plan_model",
    "set_learning_rates",
    "survey",
]

_HOMES = {
    "INNER_OPTIMIZERS": "runnel.optim.inner",
    "FragmentPlan": "runnel.optim.fragments",
    "ModelBinding": "runnel.optim.binding",
    "ModelSurvey": "runnel.optim.check",
    "Muon": "runnel.optim.muon",
    "ParameterShape": "runnel.optim.fragments",
    "Piece": "runnel.optim.fragments",
    "ScheduleFreeAdamW": "runnel.optim.schedule_free",
    "WindowSchedule": "runnel.optim.schedule",
    "clip_gradients": "runnel.optim.inner",
    "inner_optimizer": "runnel.optim.inner",
    "lr_factor": "runnel.optim.schedule",
    "plan_fragments": "runnel.optim.fragments",
    "plan_model": "runnel.optim.binding",
    "set_learning_rates": "runnel.optim.inner",
    "survey": "runnel.optim.check",
}


def __getattr__(name: str) -> object:
    """Imports a public name from its home on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, also those not imported yet."""
    return sorted({*globals(), *__all__})
