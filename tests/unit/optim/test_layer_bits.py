"""Bits for each layer: the choice is the cheapest there is, never worse than the uniform one, and hard to move."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.kernels import Float32, sum_of_squares
from runnel.node.rounds import slice_bounds
from runnel.optim.codec_layers import LEAST, Cell, LayersCodec
from runnel.optim.codecs import codec_named, planned_bytes
from runnel.optim.layer_bits import (
    FEWEST_PIECES,
    MOST_GROUPS,
    PIECES,
    SPARE,
    cells_of,
    cheapest,
    choosing_s,
    chosen,
    expected_part,
    fitted,
    fitted_like,
    groups_of,
    num_pieces,
    pieces_of,
)
from runnel.optim.parts import PART, parts_of
from runnel.protocols import Codec
from tests.support.codecs import values_of

LAYERS = (0, 6_000, 6_064, 22_448, 26_544)
SIZE = 40_000
LOUDNESS = (1.0, 1.0, 8.0, 0.3, 0.01)


def codec_of(reference: str = "e3m0") -> LayersCodec:
    codec = codec_named(f"l-greco+{reference}")
    assert isinstance(codec, LayersCodec)
    return codec


CODEC = codec_of()


def layered(seed: int = 0, size: int = SIZE) -> Float32:
    """Values of layers that differ in size."""
    x = values_of(size, seed)
    for start, loudness in zip(LAYERS, LOUDNESS, strict=True):
        x[start:] = values_of(size, seed)[start:] * np.float32(loudness)
    return x


table = st.integers(1, 4).flatmap(
    lambda choices: st.lists(
        st.lists(
            st.tuples(st.integers(0, 9), st.integers(0, 20)), min_size=choices, max_size=choices
        ),
        min_size=0,
        max_size=5,
    )
)


@given(rows=table, allowed=st.integers(0, 25))
@settings(max_examples=100, deadline=None)
def test_no_choice_that_is_allowed_takes_fewer_bytes(
    rows: list[list[tuple[int, int]]], allowed: int
) -> None:
    errors = np.array([[error for error, _ in row] for row in rows], np.int64)
    sizes = np.array([[size for _, size in row] for row in rows], np.int64)
    found = cheapest(errors, sizes, allowed)
    totals = [
        (sum(size for _, size in some), sum(error for error, _ in some))
        for some in product(*rows)
        if sum(error for error, _ in some) <= allowed
    ]
    if not totals:
        assert found is None
        return
    assert found is not None
    picked = [row[choice] for row, choice in zip(rows, found, strict=True)]
    assert (sum(size for _, size in picked), sum(error for error, _ in picked)) == min(totals)


@given(
    low=st.integers(0, 9).map(lambda n: n * 4_096),
    numel=st.integers(0, 2 * PART + 999),
    edges=st.lists(st.integers(0, 3 * PART), max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_cells_are_a_slice_cut_where_layers_and_parts_begin(
    low: int, numel: int, edges: list[int]
) -> None:
    cells = cells_of(low, low + numel, sorted(set(edges)))
    assert [low, *(stop for _, stop in cells)] == [*(start for start, _ in cells), low + numel]
    starts = {start for start, _ in cells}
    for part in parts_of(low, low + numel):
        assert part.start in starts
        inside = {start for start in starts if part.start < start < part.stop}
        assert all((start - part.start) % LEAST == 0 for start in inside)
        assert all(any(abs(start - edge) <= LEAST // 2 for edge in edges) for start in inside)
        near = [edge for edge in edges if part.start + LEAST <= edge <= part.stop - LEAST]
        assert all(any(abs(start - edge) <= LEAST // 2 for start in inside) for edge in near)


SAVED = {"int8": 0.9, "int4": 0.8, "e3m0": 0.8, "two-bit": 0.8}


@pytest.mark.parametrize("reference", list(SAVED))
@pytest.mark.parametrize("members", [1, 3])
def test_the_error_is_that_of_the_uniform_choice_at_most_and_so_are_the_bytes(
    reference: str, members: int
) -> None:
    codec, x, bounds = codec_of(reference), layered(), slice_bounds(SIZE, members)
    codecs = fitted(codec, x, bounds, LAYERS)
    sent, lost, uniform, uniform_lost = 0, 0.0, 0, 0.0
    for each, (low, high) in zip(codecs, bounds, strict=True):
        left = np.empty(high - low, np.float32)
        sent += len(each.encode(x[low:high], left))
        lost += sum_of_squares(left)
        codec_named(reference).encode(x[low:high], left)
        uniform += planned_bytes(codec.name, high - low)
        uniform_lost += sum_of_squares(left)
    assert lost <= SPARE * uniform_lost
    assert sent < SAVED[reference] * uniform


@given(
    loudness=st.lists(st.integers(-12, 12), min_size=1, max_size=10),
    size=st.integers(1, 60_000),
    members=st.integers(2, 6),
    seed=st.integers(0, 3),
)
@settings(max_examples=15, deadline=None)
def test_a_contribution_never_takes_more_than_is_planned_whoever_reduces_what(
    loudness: list[int], size: int, members: int, seed: int
) -> None:
    x, bounds = values_of(size, seed), slice_bounds(size, members)
    edges = [size * i // len(loudness) for i in range(len(loudness))]
    for start, power in zip(edges, loudness, strict=True):
        x[start:] *= np.float32(2.0**power)
    codecs = fitted(CODEC, x, bounds, edges)
    sent = [len(each.encode(x[low:high])) for each, (low, high) in zip(codecs, bounds, strict=True)]
    planned = sum(planned_bytes(CODEC.name, high - low) for low, high in bounds)
    assert sum(sent) <= planned
    kept = [sent[place] if place < len(sent) else 0 for place in range(members)]
    left = [sum(sent) - own for own in kept]  # sent by a member if it reduces that slice, or none
    assert sum(left) / members <= planned * (members - 1) / members


def test_what_is_expected_of_a_contribution_is_measured_or_all_there_is() -> None:
    assert expected_part("l-greco+e3m0", 7 * 4_096) < 1
    assert num_pieces(6 * 4_096) == FEWEST_PIECES - 1
    for codec, size in (("l-greco+e3m0", 6 * 4_096), ("l-greco+int4", 10**6), ("e3m0", 10**6)):
        assert expected_part(codec, size) == 1
    assert 0.01 < choosing_s(30_000) < choosing_s(10**6) < choosing_s(10**8) < 1


def test_loud_layers_get_more_bits_than_quiet_ones() -> None:
    (codec,) = fitted(codec_of(), layered(), [(0, SIZE)], LAYERS)
    cells = codec_of().cells_in(codec.encode(layered()), SIZE)
    assert [cell.numel for cell in cells][:4] == [4_096, 2_048, 2_048, 4_096]
    choices = np.repeat([cell.choice for cell in cells], [cell.numel for cell in cells])
    loud = slice(6_144, 22_528)  # borders are at multiples of 512
    assert choices[loud].min() > choices[: loud.start].max()
    assert choices[loud].min() > choices[loud.stop : 26_624].max()
    assert choices[26_624:].max() == 0


@given(numel=st.integers(0, 1 << 27), edges=st.sets(st.integers(0, 1 << 27), max_size=9))
@settings(max_examples=25, deadline=None)
def test_pieces_are_few_and_begin_where_layers_do_too(numel: int, edges: set[int]) -> None:
    found = pieces_of(numel, edges)
    assert found == sorted(set(found))
    assert edges <= set(found)
    assert len(found) <= PIECES + len(edges)
    assert all(place % 4_096 == 0 for place in set(found) - edges)


@pytest.mark.parametrize("size", [0, 1, 255, 700])
def test_short_fragments_and_zeros_are_sent_as_the_uniform_choice_has_them(size: int) -> None:
    for x in (np.zeros(size, np.float32), np.zeros(SIZE, np.float32)):
        bounds = slice_bounds(x.size, 2)
        for each, (low, high) in zip(fitted(CODEC, x, bounds, LAYERS), bounds, strict=True):
            assert each is CODEC
            assert len(each.encode(x[low:high])) == planned_bytes(CODEC.name, high - low)


def test_values_that_are_not_finite_are_left_to_the_encoder_to_refuse() -> None:
    x = layered()
    x[30_000] = np.inf
    (codec,) = fitted(CODEC, x, [(0, SIZE)], LAYERS)
    assert codec is CODEC
    with pytest.raises(ValueError, match="value 30000 is inf"):
        codec.encode(x)


def test_many_cells_share_their_choices_so_that_choosing_stays_cheap() -> None:
    size, edges = 40 * MOST_GROUPS * PART, [0, 3 * PART, 2_000 * PART + 5]
    bounds = slice_bounds(size, 3)
    cells = [cells_of(low, high, edges) for low, high in bounds]
    starts = groups_of(cells, edges)
    spans = [span for each in cells for span in each]
    layers = {
        spans.index(next(s for s in spans if abs(s[0] - edge) <= LEAST // 2)) for edge in edges
    }
    assert len(starts) <= MOST_GROUPS + len(edges) + len(bounds)
    assert layers | {spans.index(each[0]) for each in cells} <= set(starts)
    few = [cells_of(low, high, LAYERS) for low, high in slice_bounds(SIZE, 3)]
    assert groups_of(few, LAYERS) == list(range(sum(map(len, few))))


def test_what_is_measured_is_what_is_owed() -> None:
    theta, w, e = layered(1), layered(2), layered(3)
    bounds = slice_bounds(SIZE, 3)
    cut = chosen(CODEC, (theta, w, e), np.empty(SIZE, np.float32), bounds, LAYERS)
    wanted = fitted(CODEC, (theta - w) + e, bounds, LAYERS)
    for one, other, (low, high) in zip(cut, wanted, bounds, strict=True):
        assert one.encode(theta[low:high]) == other.encode(theta[low:high])
    plain = codec_named("int4")
    assert chosen(plain, (theta, w, e), theta, bounds, LAYERS) == [plain] * 3


NUMELS = (512, 512, 976)
RESULT = values_of(sum(NUMELS), seed=5)
RESULT[512:1_024] *= np.float32(20)


def payload_with(choices: tuple[int, ...], numels: tuple[int, ...] = NUMELS) -> bytes:
    return CODEC.cut(map(Cell, choices, numels)).encode(values_of(sum(numels)))


def lost_by(codec: Codec) -> float:
    """What an encoding of the result loses."""
    left = np.empty_like(RESULT)
    codec.encode(RESULT, left)
    return sum_of_squares(left)


def result_of(payloads: list[bytes]) -> tuple[int, float]:
    """Bytes of a result and what it loses, after contributions with these payloads."""
    codec = fitted_like(CODEC, CODEC, payloads, RESULT)
    return len(codec.encode(RESULT)), lost_by(codec)


def test_a_result_loses_what_the_lower_median_contributors_choice_would_for_no_more_bytes() -> None:
    rows = [(0, 4, 1), (1, 1, 3), (3, 3, 2), (2, 3, 1), (0, 0, 0)]
    codecs = [CODEC.cut(map(Cell, row, NUMELS)) for row in rows]
    for count in range(1, 6):
        among = sorted(codecs[:count], key=lost_by)
        middle = among[(count - 1) // 2]
        size, lost = result_of([payload_with(row) for row in rows[:count]])
        assert lost <= SPARE * lost_by(middle)
        assert size <= len(middle.encode(RESULT))
        assert count == 1 or lost < lost_by(among[-1])


@given(
    honest=st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=3, max_size=6),
    lie=st.tuples(*[st.integers(0, 4)] * 3),
)
@settings(max_examples=25, deadline=None)
def test_one_liar_cannot_sway_a_result_beyond_what_honest_members_chose(
    honest: list[tuple[int, int, int]], lie: tuple[int, int, int]
) -> None:
    size, lost = result_of([payload_with(lie), *map(payload_with, honest)])
    cuts = [CODEC.cut(map(Cell, row, NUMELS)) for row in honest]
    assert lost <= SPARE * max(map(lost_by, cuts))
    assert size <= len(min(cuts, key=lost_by).encode(RESULT))


def test_cells_that_nobody_else_has_do_not_count() -> None:
    alone = payload_with((4, 4), (1_000, 1_000))
    others = [payload_with((1, 1, 1)), payload_with((0, 2, 1))]
    assert result_of([alone, *others]) == result_of(others)


def test_results_by_another_codec_are_left_as_they_are() -> None:
    plain = codec_named("e3m0")
    payload = plain.encode(RESULT)
    assert fitted_like(plain, CODEC, [payload_with((1, 2, 3))], RESULT) is plain
    assert fitted_like(CODEC, plain, [payload], RESULT) is CODEC


def test_a_result_of_zeros_is_encoded_as_a_contributor_would() -> None:
    zeros = np.zeros_like(RESULT)
    codec = fitted_like(CODEC, CODEC, [payload_with((3, 2, 4))], zeros)
    assert [c.choice for c in CODEC.cells_in(codec.encode(zeros), zeros.size)] == [3, 2, 4]
