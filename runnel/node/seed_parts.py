"""From a run's settings to the parts of a shared-seed run: its method, its directions' key, its store."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from runnel.dht.blobs import tree_root
from runnel.errors import BugError, ConfigError
from runnel.hashing import digest
from runnel.node.commitments import MAX_CARRIED_BYTES
from runnel.node.manifest_spec import RunSpec
from runnel.optim.fixed_point import MasterWeights
from runnel.optim.seed_methods import (
    BlockMethod,
    LearningRate,
    OneByteMethod,
    PoolMethod,
    SeedMethod,
    largest_payload,
)
from runnel.optim.seed_store import SeedStore

if TYPE_CHECKING:
    from torch import nn

    from runnel.optim.fixed_point import Key
    from runnel.optim.fragments import FragmentPlan


def run_key(spec: RunSpec) -> Key:
    """The key of a run's directions: of its name and seed, so that it is known before its first record."""
    words = digest(b"runnel.directions.1", spec.run.name.encode(), b"/%d" % spec.run.seed)
    return int.from_bytes(words[:4], "little"), int.from_bytes(words[4:8], "little")


def seed_method(spec: RunSpec, blocks: int) -> SeedMethod:
    """The method of a run whose model has so many parameter tensors.

    Raises:
        ConfigError: its contributions would not fit into commitments.
    """
    seeds, method = spec.seeds, _method(spec, blocks)
    if largest_payload(method) > MAX_CARRIED_BYTES:
        fits = MAX_CARRIED_BYTES // blocks - 4
        raise ConfigError(
            f"seeds.directions is {seeds.directions} with {blocks} parameter tensors, expected at most"
            f" {max(0, fits)}, because a contribution has at most {MAX_CARRIED_BYTES} bytes: lower it"
            " or freeze some tensors"
        )
    return method


def _method(spec: RunSpec, blocks: int) -> SeedMethod:
    seeds = spec.seeds
    lr = LearningRate(seeds.lr, seeds.final_lr_share)
    match seeds.method:
        case "spsa":
            return OneByteMethod(seeds.probes, lr, seeds.lr_per == "member")
        case "fedkseed":
            return PoolMethod(seeds.candidates, seeds.local_steps, lr)
        case "ferret":
            return BlockMethod(blocks, seeds.directions, lr)
    raise BugError(f"no method of shared seeds: {seeds.method}")


def blank_store(plan: FragmentPlan, spec: RunSpec) -> SeedStore:
    """A store to load a state into."""
    shapes = {shape.name: shape.shape for shape in plan.shapes}
    blank = MasterWeights.read(
        shapes, lambda name: np.zeros(shapes[name], np.float32), run_key(spec)
    )
    return SeedStore(blank, seed_method(spec, len(shapes)), tree_root)


def seed_store(model: nn.Module, spec: RunSpec) -> SeedStore:
    """The store of a run that starts, or is yet to be fetched, with a model's values.

    Raises:
        ConfigError: a parameter cannot be held, or the method does not suit the model.
    """
    from runnel.optim.fixed_point_model import master_of  # torch takes seconds to load

    weights = master_of(model, run_key(spec))
    method = seed_method(spec, len(weights.tensors))
    return SeedStore(weights, method, tree_root, lock=threading.Lock())
