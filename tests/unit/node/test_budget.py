"""What a budget of bytes makes of ``codec = "auto"``: the choice keeps to it, and no shorter window would."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import runnel
from runnel.dht.identity import Identity
from runnel.errors import BugError, ConfigError
from runnel.node.budget import Budget, expected_cost, settle, settled_like
from runnel.node.forecast import forecast, parse_crowds
from runnel.node.manifest import Genesis, RunSpec, SignedManifest, make_spec, parse_overrides
from runnel.types import Digest

NUMEL = 10_000_000


def spec_of(budget: str, *more: str) -> RunSpec:
    tables = parse_overrides(
        ["run.name=cheap", "outer.codec=auto", f"outer.budget={budget}", *more]
    )
    return make_spec(tables, source="test")


def test_a_budget_is_a_rate_or_a_part_of_data_parallel() -> None:
    assert Budget.parse("20 kbit/s") == Budget(20_000.0, 0.0, 8)
    assert Budget.parse("1/1000 of data parallel for 16 peers") == Budget(0.0, 1000.0, 16)


@pytest.mark.parametrize("text", ["20", "1/0 of data parallel", "0 kbit/s", "1 kbit/s for 1 peers"])
def test_what_is_no_budget_is_told_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"outer\.budget"):
        settle(spec_of(text), NUMEL, 1.0)


@settings(max_examples=25, deadline=None)
@given(
    fewer=st.integers(20, 3_000),
    peers=st.integers(2, 32),
    numel=st.integers(2_000_000, 100_000_000),
    step_s=st.sampled_from([None, 1.0]),
)
def test_a_choice_keeps_to_its_budget_and_a_shorter_window_would_not(
    fewer: int, peers: int, numel: int, step_s: float | None
) -> None:
    spec = spec_of(f"1/{fewer} of data parallel for {peers} peers")
    chosen = settle(spec, numel, step_s)
    outer = chosen.spec.outer
    assert chosen.forecast.fewer >= fewer
    assert RunSpec.model_validate(chosen.spec.model_dump()) == chosen.spec
    if outer.every_steps > 10:
        shorter = outer.model_copy(update={"every_steps": outer.every_steps - 1})
        sizes = [
            numel * (i + 1) // outer.fragments - numel * i // outer.fragments
            for i in range(outer.fragments)
        ]
        crowds = parse_crowds(f"lab:{peers}")
        spec = chosen.spec.model_copy(update={"outer": shorter})
        assert forecast(spec, sizes, crowds, step_s or 1.0).fewer < fewer


def test_more_bytes_cost_less_and_the_line_says_what_was_chosen() -> None:
    choices = [settle(spec_of(f"1/{n} of data parallel"), NUMEL, None) for n in (50, 400, 1500)]
    assert [c.spec.outer.codec for c in choices] == ["e3m0", "two-bit", "two-bit"]
    assert [c.cost for c in choices] == sorted(c.cost for c in choices)
    line = choices[1].line()
    for word in ("1/400 of data parallel", "two-bit both ways", "each every", "8 peers", "%"):
        assert word in line
    assert expected_cost("e3m0", 50) < expected_cost("e3m0", 100) < expected_cost("two-bit", 100)


E3M0, BY_LAYER = ("e3m0", "e3m0"), ("l-greco+e3m0", "e3m0")


@pytest.mark.parametrize(
    ("fewer", "numel", "step_s", "codecs", "why"),
    [
        (150, NUMEL, 3.0, BY_LAYER, "bits are by layer"),
        (150, NUMEL, 0.5, E3M0, "would take 5.45 % of a processor's time, more than 2 %"),
        (150, NUMEL, None, E3M0, "the speed of this model is not known"),
        (1500, NUMEL, 3.0, ("two-bit",) * 2, "save next to nothing beside two-bit"),
        (15, NUMEL, 30.0, ("int8",) * 2, "save next to nothing beside int8"),
        (30, 24_576, 9.0, E3M0, "fragments of 24,576 values are too small for bits by layer"),
        (30, 24_577, 9.0, BY_LAYER, "bits are by layer"),
    ],
)
def test_bits_are_by_layer_where_that_pays_and_why_is_said(
    fewer: int, numel: int, step_s: float | None, codecs: tuple[str, str], why: str
) -> None:
    whole = () if numel == NUMEL else ("outer.fragments=1", "rounds.open=1")
    chosen = settle(spec_of(f"1/{fewer} of data parallel for 2 peers", *whole), numel, step_s)
    assert chosen.spec.outer.codecs == codecs
    assert why in chosen.line()
    assert (chosen.layers == "") == (codecs == BY_LAYER)


def test_bits_by_layer_keep_to_the_budget_with_the_most_they_may_take() -> None:
    spec = spec_of("1/150 of data parallel")
    plain, chosen = settle(spec, NUMEL, None), settle(spec, NUMEL, 3.0)
    assert plain.spec.outer.every_steps <= chosen.spec.outer.every_steps
    assert chosen.cost <= 1.1 * plain.cost
    found = chosen.forecast
    assert 150 <= found.fewer < 0.97 * found.expected_fewer
    for word in (
        "l-greco+e3m0 for contributions, e3m0 for results",
        f"each sends at least {found.fewer:,.0f} times less than data parallel;",
        f"9 % off contributions of small models, which would make {found.expected_fewer:,.0f} times",
        "never takes more than was counted",
    ):
        assert word in chosen.line()
    assert "both ways" in plain.line()
    assert "at least" not in plain.line()


def test_bits_by_layer_are_not_worth_much_longer_windows() -> None:
    whole = ("outer.fragments=1", "rounds.open=1")
    tables = parse_overrides(
        ["run.name=x", "outer.result_codec=e3m0", "outer.every_steps=10", *whole]
    )
    found = forecast(make_spec(tables, source="test"), [100_000], parse_crowds("lab:2"), 3.0)
    kbit_s = 8 * found.sent_bytes / found.round_s / 1e3
    for more, codecs in ((1e-6, E3M0), (0.01 * kbit_s, BY_LAYER)):
        chosen = settle(spec_of(f"{kbit_s + more:.6f} kbit/s for 2 peers", *whole), 100_000, 3.0)
        assert (chosen.spec.outer.codecs, chosen.spec.outer.every_steps) == (codecs, 10)
        assert ("windows would be longer" in chosen.line()) == (codecs == E3M0)


def test_a_rate_needs_the_speed_of_training() -> None:
    rate = settle(spec_of("500 kbit/s"), NUMEL, 0.5)
    found = rate.forecast
    assert 8 * found.sent_bytes / found.round_s <= 500_000
    assert "kbit/s at 0.5 s a step" in rate.line()
    slower = settle(spec_of("500 kbit/s"), NUMEL, 5.0)
    assert slower.spec.outer.every_steps < rate.spec.outer.every_steps
    with pytest.raises(ConfigError, match="speed of this model is not known"):
        settle(spec_of("500 kbit/s"), NUMEL, None)
    with pytest.raises(ConfigError, match="nothing keeps to"):
        settle(spec_of("1 kbit/s"), NUMEL, 1.0)


def test_auto_needs_a_budget_and_never_gets_into_a_manifest() -> None:
    with pytest.raises(ConfigError, match="without a budget"):
        make_spec(parse_overrides(["run.name=x", "outer.codec=auto"]), source="test")
    with pytest.raises(ConfigError, match="which is not chosen by it"):
        make_spec(parse_overrides(["run.name=x", "outer.budget=9 Mbit/s"]), source="test")
    owner = Identity.generate()
    genesis = Genesis(
        state_root=Digest(bytes(32)),
        members=(owner.peer_id,),
        created_unix_s=0,
        data_root=Digest(bytes(32)),
    )
    with pytest.raises(BugError):
        SignedManifest.issue(owner, spec_of("1/400 of data parallel"), genesis)


def test_a_run_that_goes_on_keeps_what_was_chosen() -> None:
    spec = spec_of("1/400 of data parallel")
    settled = settle(spec, NUMEL, None).spec
    assert settled_like(spec, settled) == settled
    lax = spec_of("1/150 of data parallel")
    by_layer = settle(lax, NUMEL, 3.0).spec
    assert by_layer.outer.codecs == BY_LAYER
    assert settled_like(lax, by_layer) == by_layer
    other = spec_of("1/500 of data parallel")
    assert settled_like(other, settled) == other


def test_an_author_starts_a_run_within_a_budget_and_goes_on_with_it(tmp_path: Path) -> None:
    place = runnel.local(
        "outer.codec=auto",
        "outer.budget=1/30 of data parallel for 2 peers",
        home=tmp_path / "home",
        host="127.0.0.1",
    )
    runs = []
    for _ in range(2):
        with runnel.Peer(place, model=nn.Linear(512, 512)) as peer:
            runs.append((peer.status()["run_id"], peer.node.spec.outer))
    assert runs[0] == runs[1]
    assert runs[0][1].codec in {"int8", "e3m0", "two-bit"}
    assert runs[0][1].budget == "1/30 of data parallel for 2 peers"
