from __future__ import annotations

import pytest

from runnel.errors import ConfigError
from runnel.node.forecast import LINKS, Crowd, Forecast, Link, forecast, parse_crowds
from runnel.node.manifest import RunSpec, make_spec, parse_overrides
from runnel.node.rounds import slice_bounds
from runnel.optim.codecs import codec_named

HOME = LINKS["home"]


def spec_of(*settings: str) -> RunSpec:
    return make_spec(parse_overrides(["run.name=planned", *settings]), source="test")


def forecast_of(*settings: str, links: str = "home:4", size: int = 100_000) -> Forecast:
    spec = spec_of(*settings)
    return forecast(spec, [size] * spec.outer.fragments, parse_crowds(links), 0.1)


def test_links_are_named_or_given_by_their_rates() -> None:
    assert parse_crowds("home:18, lab:6,2.5/30:1") == (
        Crowd(HOME, 18),
        Crowd(LINKS["lab"], 6),
        Crowd(Link("2.5/30", 2.5e6, 30e6), 1),
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", "home", "home:", "home:0", "home:-1", "home:1.5", "home:65", "home:\u0663"),
        *("home:40,lab:30", "home:2,,lab:1", "moon:3"),
        *("1/:2", "0/5:2", "nan/5:2", "inf/5:2", "-1/5:2"),
    ],
)
def test_links_that_make_no_sense_are_config_errors(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        parse_crowds(text)


@pytest.mark.parametrize("count", ["0", "65", "100", "9" * 5_000])
def test_a_number_of_peers_that_no_run_has_is_told_as_that(count: str) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 64 peers, as a run has"):
        parse_crowds(f"home:{count}")
    assert parse_crowds("home:0064") == (Crowd(LINKS["home"], 64),)


def test_payload_bytes_are_those_of_the_codecs() -> None:
    found = forecast_of("outer.codec=int8", "outer.result_codec=fp32", size=90_001)
    bounds = slice_bounds(90_001, 4)
    assert found.share_bytes == sum(codec_named("int8").max_bytes(b - a) for a, b in bounds)
    assert found.result_bytes == 4 * 90_001
    assert (found.slices, found.parameters, found.members) == (4, 4 * 90_001, 4)


def test_bytes_of_layers_with_bits_of_their_own_are_those_of_the_uniform_choice() -> None:
    uniform = forecast_of(size=90_001)
    found = forecast_of("outer.codec=l-greco+e3m0", "outer.result_codec=l-greco+e3m0", size=90_001)
    assert uniform.share_bytes < found.share_bytes <= uniform.share_bytes + 4 * 3
    assert found.result_bytes == found.share_bytes


def test_what_is_expected_of_layers_with_bits_of_their_own_is_less_and_decides_nothing() -> None:
    codec = "outer.codec=l-greco+e3m0"
    uniform, found = forecast_of(size=90_001), forecast_of(codec, size=90_001)
    assert uniform.expected_share_bytes == uniform.share_bytes
    assert uniform.expected_fewer == uniform.fewer
    assert found.expected_share_bytes == pytest.approx(0.91 * found.share_bytes)
    saved = 0.09 * found.share_bytes * 3 / 4
    assert found.expected_fewer == pytest.approx(
        found.data_parallel_bytes / (found.sent_bytes - saved)
    )
    assert found.fewer <= uniform.fewer
    for small in (
        forecast_of(codec, size=20_000),
        forecast_of("outer.codec=l-greco+int4", size=90_001),
    ):
        assert small.expected_share_bytes == small.share_bytes


def test_it_says_what_sixteen_peers_were_counted_to_send() -> None:
    """10 million values at 4 bits, a round each 10.4 s: see the control benchmark."""
    spec = spec_of("outer.codec=e3m0", "outer.result_codec=e3m0", "outer.every_steps=40")
    found = forecast(spec, [2_500_000] * 4, parse_crowds("home:16"), 10.4 / 10)
    assert found.sent_bytes == pytest.approx(2_380_380 + 66_700 + 6_300, rel=0.01)
    assert found.control_bytes == pytest.approx(66_700, rel=0.03)


def test_a_round_takes_its_part_of_a_window() -> None:
    found = forecast_of("outer.every_steps=60", "outer.fragments=4")
    assert found.round_s == pytest.approx(0.1 * 60 / 4)
    assert found.results_after_steps >= 2


def test_longer_windows_ask_for_less_and_fewer_bits_too() -> None:
    usual = forecast_of().links[0]
    assert forecast_of("outer.every_steps=400").links[0].up_share < usual.up_share / 5
    assert forecast_of("outer.codec=fp32").links[0].up_share > 2 * usual.up_share


def test_data_parallel_sends_every_gradient_every_step() -> None:
    found = forecast_of("outer.every_steps=40", "outer.fragments=4")
    assert found.data_parallel_bytes == pytest.approx(2 * 0.75 * 2 * 400_000 * 10)
    assert found.fewer == found.data_parallel_bytes / found.sent_bytes


def test_a_slow_link_sends_what_it_carries_and_the_others_reduce_for_it() -> None:
    alone = forecast_of(links="home:3", size=2_500_000)
    found = forecast_of(links="home:3,1/20:1", size=2_500_000)
    home, slow = found.links
    assert home.sent_slices == found.slices == 4
    assert 0 < slow.sent_slices < 3
    assert slow.up_share < 1
    assert home.up_bits_s > alone.links[0].up_bits_s
    carried = slow.sent_slices / 4 * found.share_bytes * 8 / found.round_s
    assert slow.up_bits_s >= carried


def test_a_swarm_of_slow_links_only_still_has_reducers() -> None:
    found = forecast_of(links="0.1/1:4", size=2_500_000)
    assert found.links[0].sent_slices < found.slices
    assert found.sent_bytes > 0


def test_a_peer_alone_sends_nothing() -> None:
    found = forecast_of(links="home:1")
    assert found.sent_bytes == found.control_bytes == 0
    assert found.fewer == float("inf")


@pytest.mark.parametrize("step_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_takes_some_time(step_s: float) -> None:
    with pytest.raises(ConfigError, match="expected more than 0"):
        forecast(spec_of(), [1_000], parse_crowds("home:2"), step_s)


def test_public_windows_send_as_much_and_all_of_it_at_once() -> None:
    settings = ("outer.every_steps=400", "rounds.open=2")
    private = forecast_of(*settings, size=2_500_000)
    public = forecast_of(*settings, "outer.windows=public", size=2_500_000)
    assert public.sent_bytes == private.sent_bytes
    (alone,), (together,) = private.links, public.links
    assert together.up_bits_s == alone.up_bits_s
    delays_s = 5 * 0.05
    assert together.exchange_s == pytest.approx(4 * (alone.exchange_s - delays_s) + 2 * delays_s)
    assert public.results_after_steps == pytest.approx(together.exchange_s / 0.1)


def test_the_peak_is_what_is_sent_until_it_is_merged() -> None:
    private, public = (
        forecast_of(f"outer.windows={windows}", "outer.overlap_steps=30", "outer.every_steps=400")
        for windows in ("private", "public")
    )
    for found, rounds in ((private, 1), (public, 4)):
        link = found.links[0]
        assert link.exchange_s < 3.0, "merged after the overlap"
        assert link.peak_bits_s == pytest.approx(8 * rounds * found.sent_bytes / 3.0)
    full = forecast_of("outer.overlap_steps=0", size=2_500_000).links[0]
    assert full.up_bits_s <= full.peak_bits_s <= HOME.up_bits_s
