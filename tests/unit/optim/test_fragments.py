from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import BugError, ConfigError
from runnel.optim.fragments import (
    TOLERANCE,
    FragmentPlan,
    ParameterShape,
    Piece,
    layer_of,
    plan_fragments,
)

GOLDEN_SIZES = (621, 622, 621)
GOLDEN_FINGERPRINT = "ff5195ef1bdac147"

NAMES = st.sampled_from(["wte.weight", "head.weight", "norm.weight", "scale", "blocks", "proj"])
PARAMETERS = st.dictionaries(
    st.tuples(NAMES, st.none() | st.integers(0, 12)),
    st.lists(st.integers(0, 40), max_size=3).map(tuple),
    min_size=1,
    max_size=24,
).map(
    lambda found: [
        ParameterShape(name if layer is None else f"h.{layer}.{name}", shape)
        for (name, layer), shape in found.items()
    ]
)


def gpt_shapes(layers: int, width: int, vocab: int) -> list[ParameterShape]:
    shapes = [ParameterShape("wte.weight", (vocab, width)), ParameterShape("norm.weight", (width,))]
    for layer in range(layers):
        shapes.append(ParameterShape(f"blocks.{layer}.in.weight", (3 * width, width)))
        shapes.append(ParameterShape(f"blocks.{layer}.out.weight", (width, width)))
        shapes.append(ParameterShape(f"blocks.{layer}.norm.weight", (width,)))
    return shapes


def occurrences(plan: FragmentPlan) -> dict[str, list[int]]:
    counts = {shape.name: [0] * shape.numel for shape in plan.shapes}
    for pieces in plan.fragments:
        for piece in pieces:
            for index in range(piece.start, piece.stop):
                counts[piece.parameter][index] += 1
    return counts


@given(PARAMETERS, st.integers(1, 9))
def test_every_element_is_in_exactly_one_fragment(
    shapes: list[ParameterShape], num_fragments: int
) -> None:
    total = sum(shape.numel for shape in shapes)
    if num_fragments > total:
        with pytest.raises(ConfigError):
            plan_fragments(shapes, num_fragments)
        return
    plan = plan_fragments(shapes, num_fragments)
    for name, counts in occurrences(plan).items():
        assert all(count == 1 for count in counts), name
    for pieces, size in zip(plan.fragments, plan.sizes, strict=True):
        places = [place for one in pieces for place in range(one.offset, one.offset + one.numel)]
        assert places == list(range(size))
    assert plan.numel == total


@given(PARAMETERS, st.integers(1, 9))
def test_fragments_are_within_a_tenth_of_the_mean_or_one_value(
    shapes: list[ParameterShape], num_fragments: int
) -> None:
    total = sum(shape.numel for shape in shapes)
    if num_fragments > total:
        return
    mean, tolerance = Fraction(total, num_fragments), Fraction(str(TOLERANCE))
    for size in plan_fragments(shapes, num_fragments).sizes:
        assert abs(size - mean) <= max(tolerance * mean, Fraction(1))
        assert size > 0


@given(PARAMETERS, st.integers(1, 5), st.integers(0, 2**32))
def test_the_order_of_the_parameters_does_not_matter(
    shapes: list[ParameterShape], num_fragments: int, seed: int
) -> None:
    if num_fragments > sum(shape.numel for shape in shapes):
        return
    shuffled = random.Random(seed).sample(shapes, len(shapes))
    first, second = plan_fragments(shapes, num_fragments), plan_fragments(shuffled, num_fragments)
    assert first == second
    assert first.fingerprint() == second.fingerprint()


def test_layers_are_strided_and_embedding_and_head_are_at_the_ends() -> None:
    shapes = [*gpt_shapes(8, 16, 20), ParameterShape("head.weight", (20, 16))]
    plan = plan_fragments(shapes, 4)
    for layer in range(8):
        assert plan.homes(f"blocks.{layer}.in.weight") == (layer % 4,)
        assert plan.homes(f"blocks.{layer}.norm.weight") == (layer % 4,)
    assert plan.homes("wte.weight") == (0,)
    assert plan.homes("norm.weight") == (3,)
    assert plan.homes("head.weight") == (3,)
    assert plan.homes("no such parameter") == ()


def test_pieces_are_in_name_order() -> None:
    for pieces in plan_fragments(gpt_shapes(5, 16, 400), 3).fragments:
        assert [(p.parameter, p.start) for p in pieces] == sorted(
            (p.parameter, p.start) for p in pieces
        )


def test_a_huge_embedding_is_split_over_fragments() -> None:
    plan = plan_fragments(gpt_shapes(4, 8, 1000), 4)
    assert plan.homes("wte.weight") == (0, 1, 2, 3)
    assert max(plan.sizes) <= 1.1 * plan.numel / 4


def test_a_model_of_one_parameter_is_cut_evenly() -> None:
    plan = plan_fragments([ParameterShape("weight", (1003,))], 4)
    assert sorted(plan.sizes) == [250, 251, 251, 251]


def test_uneven_layers_are_balanced() -> None:
    plan = plan_fragments(gpt_shapes(6, 32, 4), 4)
    assert max(plan.sizes) <= 1.1 * plan.numel / 4
    assert min(plan.sizes) >= 0.9 * plan.numel / 4


def test_scalars_count_and_empty_parameters_do_not() -> None:
    plan = plan_fragments([ParameterShape("gain", ()), ParameterShape("none", (0, 4))], 1)
    assert plan.fragments == ((Piece("gain", 0, 1, 0),),)
    assert len(plan.shapes) == 2


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blocks.3.norm.weight", 3),
        ("transformer.h.11.attn.bias", 11),
        ("layers.7.experts.2.w", 7),
        ("0.weight", 0),
        ("params.4", 4),
        ("wte.weight", None),
        ("layer1.weight", None),
    ],
)
def test_the_layer_is_the_first_numeric_part(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_the_fingerprint_depends_on_names_shapes_and_cut() -> None:
    shapes = gpt_shapes(4, 8, 16)
    renamed = [ParameterShape("x" + shapes[0].name, shapes[0].shape), *shapes[1:]]
    reshaped = [ParameterShape(shapes[0].name, (math.prod(shapes[0].shape),)), *shapes[1:]]
    plans = [plan_fragments(shapes, 2), plan_fragments(shapes, 3)]
    plans += [plan_fragments(renamed, 2), plan_fragments(reshaped, 2)]
    assert len({plan.fingerprint() for plan in plans}) == len(plans)


def test_the_plan_of_a_known_model_stays_as_it_is() -> None:
    """Peers of different versions meet in one run: a change of the rule needs a new tag."""
    plan = plan_fragments(gpt_shapes(4, 8, 100), 3)
    assert plan.sizes == GOLDEN_SIZES
    assert plan.fingerprint().hex()[:16] == GOLDEN_FINGERPRINT


@pytest.mark.parametrize("shapes", [[], [ParameterShape("none", (0,))]])
def test_nothing_to_train_is_a_config_error(shapes: list[ParameterShape]) -> None:
    with pytest.raises(ConfigError, match="0 trainable values"):
        plan_fragments(shapes, 4)


@pytest.mark.parametrize("num_fragments", [0, -1, 4])
def test_an_impossible_number_of_fragments_is_a_config_error(num_fragments: int) -> None:
    with pytest.raises(ConfigError, match=r"fragments is .*outer\.fragments=1"):
        plan_fragments([ParameterShape("a", (3,))], num_fragments)


def test_a_name_twice_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="twice"):
        plan_fragments([ParameterShape("a", (3,)), ParameterShape("a", (2,))], 2)


@pytest.mark.parametrize(
    "pieces",
    [
        (Piece("a", 0, 2, 0),),
        (Piece("a", 0, 2, 0), Piece("a", 1, 3, 2)),
        (Piece("a", 0, 3, 1),),
        (Piece("a", 0, 3, 0), Piece("b", 0, 1, 3)),
        (Piece("a", 0, 4, 0),),
    ],
)
def test_a_plan_that_skips_or_repeats_values_cannot_exist(pieces: tuple[Piece, ...]) -> None:
    with pytest.raises(BugError):
        FragmentPlan((ParameterShape("a", (3,)),), (pieces,))


@given(shapes=PARAMETERS, num_fragments=st.integers(1, 5))
def test_edges_are_where_another_parameter_begins(
    shapes: list[ParameterShape], num_fragments: int
) -> None:
    try:
        plan = plan_fragments(shapes, num_fragments)
    except ConfigError:
        return
    for pieces, edges in zip(plan.fragments, plan.edges, strict=True):
        owners = [piece.parameter for piece in pieces for _ in range(piece.numel)]
        changes = [i for i in range(len(owners)) if i == 0 or owners[i] != owners[i - 1]]
        assert set(changes) <= set(edges)
        assert list(edges) == sorted(set(edges))
        assert len(edges) == len(pieces)
