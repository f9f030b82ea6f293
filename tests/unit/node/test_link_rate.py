"""Rates as people write them: two forms of one thing, and one clear line for everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import ConfigError
from runnel.node.link_rate import LEAST_BITS_S, parse_rate, rate_text


@pytest.mark.parametrize(
    ("text", "bits_s"),
    [("500 kbit/s", 5e5), ("2Mbit/s", 2e6), (" 1.5 Gbit/s ", 1.5e9), ("64 kbit/s", 64e3)],
)
def test_a_number_and_its_unit_are_a_rate(text: str, bits_s: float) -> None:
    assert parse_rate("max upload", text) == bits_s


@given(st.integers(64, 999_999).map(lambda kbit: kbit * 1e3))
def test_what_is_shown_can_be_given_again(bits_s: float) -> None:
    assert parse_rate("max upload", rate_text(bits_s)) == pytest.approx(bits_s, rel=1e-5)


@pytest.mark.parametrize(
    "text",
    ["2", "2 MB/s", "2 mbit/s", "fast", "-1 Mbit/s", "1e3 kbit/s", "inf Mbit/s", "0 kbit/s"],
)
def test_anything_else_is_one_line_that_says_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_rate("max upload", text)
    line = str(refused.value)
    assert text in line
    assert '"2 Mbit/s"' in line
    assert rate_text(LEAST_BITS_S) in line
    assert "\n" not in line
