"""The exchangeable parts of an outer store that a run's settings name."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from runnel.dht.blobs import tree_root
from runnel.node.actions import RoundKey
from runnel.optim.codecs import codec_named
from runnel.optim.exchange import StoreParts
from runnel.optim.outer import optimizer_named
from runnel.optim.schedule import WindowSchedule
from runnel.verification.aggregators import aggregator_named

if TYPE_CHECKING:
    from runnel.node.manifest_sections import OuterSection
    from runnel.node.manifest_spec import RunSpec
    from runnel.optim.fragments import FragmentPlan
    from runnel.protocols import OuterOptimizer


def optimizer_of(outer: OuterSection) -> OuterOptimizer:
    """How results move the outer parameters."""
    return optimizer_named(
        outer.optimizer,
        lr=outer.lr,
        momentum=outer.momentum,
        beta2=outer.beta2,
        epsilon=outer.epsilon,
    )


def parts_of(outer: OuterSection, plan: FragmentPlan) -> StoreParts:
    """What an outer store of so planned fragments is made of."""
    return StoreParts(
        codec=codec_named(outer.codec),
        result_codec=codec_named(outer.result_codec),
        aggregator=aggregator_named(outer.aggregator),
        optimizer=optimizer_of(outer),
        root_of=tree_root,
        decay=outer.residual_decay,
        cap=outer.residual_cap,
        seed_of=_seed_of,
        public_start=outer.windows == "public",
        edges=plan.edges,
    )


def has_public_windows(spec: RunSpec) -> bool:
    """Whether all fragments are due at one step, at which local training starts from public values."""
    return spec.outer.windows == "public" and not spec.seeds.is_on


def schedule_of(spec: RunSpec) -> WindowSchedule:
    """When fragments of a run are due."""
    return WindowSchedule(spec.num_fragments, spec.steps_per_window, has_public_windows(spec))


def _seed_of(key: Hashable) -> int:
    """A round's number, the same with all members on whichever path it is."""
    return key.number if isinstance(key, RoundKey) else hash(key)
