"""The exchangeable parts of an outer store that a run's settings name."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from runnel.dht.blobs import tree_root
from runnel.node.actions import RoundKey
from runnel.optim.codecs import codec_named
from runnel.optim.exchange import StoreParts
from runnel.optim.outer import optimizer_named
from runnel.verification.aggregators import aggregator_named

if TYPE_CHECKING:
    from runnel.node.manifest_spec import OuterSection
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


def parts_of(outer: OuterSection) -> StoreParts:
    """What an outer store is made of."""
    return StoreParts(
        codec=codec_named(outer.codec),
        result_codec=codec_named(outer.result_codec),
        aggregator=aggregator_named(outer.aggregator),
        optimizer=optimizer_of(outer),
        root_of=tree_root,
        decay=outer.residual_decay,
        cap=outer.residual_cap,
        seed_of=_seed_of,
    )


def _seed_of(key: Hashable) -> int:
    """A round's number, the same with all members on whichever path it is."""
    return key.number if isinstance(key, RoundKey) else hash(key)
