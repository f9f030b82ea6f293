"""One byte per scalar: the quantizer, its scale, and the step."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import ConfigError
from runnel.optim.byte_scale import ByteScale, code_of, exponent_for, scale_value, unit_of
from runnel.optim.just_one_byte import (
    ByteState,
    pack_codes,
    probes_of,
    take_step,
    units_agree,
    unpack_codes,
)

CODES = st.lists(st.integers(-127, 127), max_size=40)


def gaussian(deviation: float, count: int, seed: int) -> list[float]:
    return [float(x) * deviation for x in np.random.default_rng(seed).standard_normal(count)]


@given(st.integers(-400, 400))
def test_a_scale_is_two_to_a_quarter_of_its_exponent(exponent: int) -> None:
    assert scale_value(exponent) == pytest.approx(2.0 ** (exponent / 4), rel=1e-15)
    assert scale_value(exponent + 4) == 2 * scale_value(exponent)


def test_codes_are_rounded_clipped_and_never_made_of_what_is_no_number() -> None:
    scale = ByteScale()
    assert [scale.code_of(g) for g in (0.0, 1.0, -1.0, 3.96875, 1e30, -1e30)] == [
        0,
        32,
        -32,
        127,
        127,
        -127,
    ]
    assert [scale.code_of(g) for g in (math.nan, math.inf, -math.inf)] == [None] * 3
    assert code_of(0.5, -4) == 32


@pytest.mark.parametrize("deviation", [1e-4, 0.03, 1.0, 37.0, 5e4])
@pytest.mark.parametrize("per_step", [1, 3, 8, 40])
def test_the_scale_finds_the_scalars_spread_and_stays_there(
    deviation: float, per_step: int
) -> None:
    scale = ByteScale()
    for step in range(12 + 200 // per_step):
        scalars = gaussian(deviation, per_step, step)
        scale = scale.after([scale.code_of(g) or 0 for g in scalars])
    found = {scale.exponent}
    for step in range(100):
        scalars = gaussian(deviation, per_step, 10_000 + step)
        scale = scale.after([scale.code_of(g) or 0 for g in scalars])
        found.add(scale.exponent)
    wanted = 4 * math.log2(deviation)
    assert all(abs(exponent - wanted) < 4 for exponent in found), (found, wanted)


@given(CODES, st.randoms(use_true_random=False))
def test_a_scale_depends_on_no_order(codes: list[int], random: object) -> None:
    mixed = list(codes)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert ByteScale().after(codes) == ByteScale().after(mixed)
    assert sorted(ByteScale().clipped(codes)) == sorted(ByteScale().clipped(mixed))


def test_outliers_are_cut_at_five_deviations() -> None:
    honest = [20, -22, 19, -21, 23, 20, -18]
    assert ByteScale().clipped([*honest, 127, -127]) == (*honest, 100 + 5, -100 - 5)
    assert ByteScale().clipped([3, 127]) == (3, 127)
    assert ByteScale(recent=(2,) * 60).clipped([3, 127]) == (3, 10)
    assert ByteScale(recent=(0,) * 60).clipped([3, 127]) == (3, 5)
    with pytest.raises(ValueError, match="-128"):
        ByteScale().clipped([-128])


def test_a_step_moves_against_the_mean_slope() -> None:
    update, after = take_step(ByteState(9), {64: -32, 0: 16}, lr=1e-3)
    assert (update.step, update.counter, update.tensor) == (9, 9, -1)
    assert update.unit == unit_of(1e-3, 0, 2) == round(1e-3 * 2**28 / 64)
    assert update.slots.tolist() == [0, 64]
    assert update.codes.tolist() == [16, -32]
    assert after == ByteState(10, ByteScale(0, (16, 32)))


def test_a_step_without_scalars_counts_and_changes_nothing() -> None:
    update, after = take_step(ByteState(3), {}, lr=1e-3)
    assert (len(update), update.unit, after.step) == (0, 0, 4)


@given(st.dictionaries(st.integers(0, 2**32 - 1), st.integers(-127, 127), max_size=20))
def test_a_step_depends_on_no_order_of_arrival(codes: dict[int, int]) -> None:
    one, after = take_step(ByteState(), codes, lr=1e-3)
    mixed = dict(reversed(list(codes.items())))
    other, other_after = take_step(ByteState(), mixed, lr=1e-3)
    assert (one.slots.tolist(), one.codes.tolist(), one.unit, after) == (
        other.slots.tolist(),
        other.codes.tolist(),
        other.unit,
        other_after,
    )


def test_each_peer_and_probe_has_a_direction_of_its_own() -> None:
    probes = [probes_of(ByteState(5), peer, 64, 100) for peer in range(3)]
    slots = [probe.slot for row in probes for probe in row]
    assert all(a < b for a, b in pairwise(slots))
    assert {probe.counter for row in probes for probe in row} == {5}
    assert probes[0][0].mirror.amount == -100
    with pytest.raises(ValueError, match="65 probes"):
        probes_of(ByteState(), 0, 65, 1)


def test_a_probe_takes_one_byte_on_its_way() -> None:
    payload = pack_codes([5, None, -127])
    assert len(payload) == 3
    assert unpack_codes(payload, peer=2) == {128: 5, 130: -127}
    for bad in (b"", bytes(65)):
        with pytest.raises(ValueError, match="bytes, expected 1 to 64"):
            unpack_codes(bad, peer=0)


def test_learning_rates_that_would_throw_weights_out_of_range_are_refused() -> None:
    assert unit_of(0.0, 0, 1) == 0
    for lr, exponent in ((1e9, 0), (-1e-3, 0), (1e-3, 400)):
        with pytest.raises(ConfigError, match="smaller"):
            unit_of(lr, exponent, 1)


def test_units_that_differ_by_rounding_agree_and_others_do_not() -> None:
    assert units_agree(4195, 4195)
    assert units_agree(4196, 4195)
    assert not units_agree(4198, 4195)
    assert not units_agree(8390, 4195)


def test_a_scale_that_is_sent_along_suits_its_scalars() -> None:
    for deviation in (1e-6, 0.5, 300.0):
        exponent = exponent_for(0.6745 * deviation)
        assert abs(exponent - 4 * math.log2(deviation)) <= 0.5
    assert exponent_for(0.0) == -400
    assert exponent_for(math.nan) == -400
