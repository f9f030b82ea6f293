"""Gates on contributions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

import runnel.verification
from runnel.kernels import norm
from runnel.types import Decision, Verdict
from runnel.verification import check_norm_claim, check_weight, first_refusal


@pytest.mark.parametrize(("weight", "accepted"), [(1, True), (4096, True), (4096.5, False)])
def test_weights_up_to_the_cap_pass(weight: float, accepted: bool) -> None:
    assert check_weight(weight, cap=4096).accepted == accepted


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf, 1e30])
def test_weights_that_are_not_positive_and_finite_are_refused(weight: float) -> None:
    verdict = check_weight(weight, cap=1e6)
    assert verdict.decision is Decision.REJECT
    assert "weight is" in verdict.reason


def test_a_true_norm_passes_and_one_beyond_the_tolerance_does_not() -> None:
    decoded = norm(np.array([3, 4], np.float32))
    assert check_norm_claim(5.0, decoded).accepted
    assert check_norm_claim(5.004, decoded).accepted
    assert not check_norm_claim(5.006, decoded).accepted
    assert not check_norm_claim(4.994, decoded).accepted
    assert check_norm_claim(0.0, 0.0).accepted
    assert not check_norm_claim(1e-9, 0.0).accepted
    assert not check_norm_claim(0.0, 1e-9).accepted


@pytest.mark.parametrize(
    ("claimed", "decoded"), [(math.nan, 1), (math.inf, 1), (1, math.nan), (math.inf,) * 2, (-1, 1)]
)
def test_norms_that_are_not_finite_are_refused(claimed: float, decoded: float) -> None:
    assert check_norm_claim(claimed, decoded).decision is Decision.REJECT


def test_the_first_refusal_ends_the_questions() -> None:
    def gates() -> Iterator[Verdict]:
        yield check_weight(1, cap=2)
        yield check_weight(3, cap=2)
        raise AssertionError("asked for more")

    refusal = first_refusal(gates())
    assert refusal is not None
    assert refusal.reason == "weight is 3, the run allows at most 2"
    assert first_refusal([check_weight(1, cap=2)]) is None


def test_every_public_name_of_the_folder_exists() -> None:
    for name in runnel.verification.__all__:
        assert getattr(runnel.verification, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        runnel.verification.nothing  # noqa: B018
