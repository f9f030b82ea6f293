"""Walks of shared seeds: what is asked for again is given again, and a lent model comes back as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from runnel.hashing import digest
from runnel.optim.fixed_point_model import master_of
from runnel.optim.seed_claims import Author, claim_of
from runnel.optim.seed_methods import LearningRate, PoolMethod
from runnel.optim.seed_store import SeedStore
from runnel.optim.seed_walks import Part, PoolWalk
from runnel.optim.spsa_loss import epsilon_amount

METHOD = PoolMethod(64, 3, LearningRate(0.01))
AMOUNT = epsilon_amount(1e-3)
PART = Part(0, 0, b"seed")


class Walking:
    """A model, its store, and a walk that counts its losses."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(5, 3).eval()
        self.store = SeedStore(
            master_of(self.model, (1, 2)), METHOD, lambda parts: digest(*map(bytes, parts))
        )
        self.walk = PoolWalk(self.model, self.store, METHOD, AMOUNT, uneven=False)
        self.walk.begin(self.store.state)
        self.walk.enter(PART)
        self.losses = 0

    def loss(self) -> torch.Tensor:
        self.losses += 1
        found: torch.Tensor = self.model(torch.ones(2, 5)).square().mean()
        return found

    def values(self) -> np.ndarray:
        return np.concatenate([p.detach().numpy().ravel() for p in self.model.parameters()])


@pytest.fixture
def walking() -> Walking:
    return Walking()


def test_a_complete_contribution_that_is_asked_for_again_is_the_same(walking: Walking) -> None:
    taken = [walking.walk.step(walking.loss) for _ in range(3)]
    assert [one.payload is None for one in taken] == [True, True, False]
    assert walking.losses == 6
    again = walking.walk.step(walking.loss)
    assert (again.payload, again.loss, again.forwards) == (taken[-1].payload, taken[-1].loss, 0)
    assert walking.losses == 6
    walking.walk.enter(Part(0, 0, b"of another round"))
    assert walking.walk.step(walking.loss).payload is None


def test_a_model_that_was_lent_goes_on_where_the_walk_was(walking: Walking) -> None:
    taken = [walking.walk.step(walking.loss) for _ in range(3)]
    payload, after = taken[-1].payload or b"", walking.values()
    author = Author(0, 0, b"seed", AMOUNT, uneven=False)
    claim = claim_of(METHOD, walking.store.state, payload, 1, author)
    found = walking.walk.replay(
        claim,
        lambda n, out, probe: walking.store.materialise_at(0, n, out, probe, after=claim.moved),
        walking.loss,
    )
    assert round(found.scalar / claim.unit) == claim.code
    assert np.array_equal(walking.values(), after)
