from __future__ import annotations

import pytest
import torch
from torch import nn

from runnel.errors import ConfigError
from runnel.node.check import check, require, require_finite
from runnel.node.gpt import Gpt, GptConfig
from runnel.optim.check import survey
from runnel.optim.codecs import CODECS
from runnel.optim.fragments import plan_fragments


def test_a_good_model_is_reported_with_its_sizes() -> None:
    model = Gpt(GptConfig(layers=4, width=32, context=16))
    report = check(model, fragments=4)
    plan = plan_fragments(survey(model).exchanged, 4)
    assert report.ok
    assert report.numel == sum(parameter.numel() for parameter in model.parameters())
    assert report.fragment_sizes == plan.sizes
    assert report.fingerprint == plan.fingerprint().hex()
    assert report.tied == (("embedding.weight", "head.weight"),)
    assert report.float_buffers == ("cosines", "sines")


def test_bytes_per_round_are_those_of_the_largest_fragment() -> None:
    report = check(nn.Linear(1024, 1, bias=False), fragments=1)
    assert list(report.round_bytes) == list(CODECS)
    assert report.round_bytes["fp32"] == 4096
    assert report.round_bytes["int8"] == 1024 + 2 * 4
    assert report.round_bytes["e3m0"] == 512 + 8
    assert report.round_bytes["two-bit"] == 256 + 4 * 2
    assert report.round_bytes["top-k"] == 4 + 16 * 2 // 8 + 16 * 12 // 8


def test_a_huge_parameter_is_named() -> None:
    model = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 8))
    assert check(model).split == ("0.weight",)
    assert "0.weight (in several fragments, to keep these equal)" in str(check(model))


def test_what_is_not_exchanged_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[0].requires_grad_(requires_grad=False)
    text = str(check(model))
    assert "0.bias, 0.weight (not exchanged)" in text
    assert "1.running_mean, 1.running_var (not exchanged, each peer keeps its own)" in text
    assert "1.num_batches_tracked (not exchanged)" in text
    assert "can train in a swarm" in text


def test_long_lists_are_cut() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    for layer in list(model)[:4]:
        layer.requires_grad_(requires_grad=False)
    assert "and 4 more (not exchanged)" in str(check(model))


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (nn.ReLU(), "0 trainable values"),
        (nn.Linear(2, 2).requires_grad_(requires_grad=False), "0 trainable values"),
        (nn.Linear(2, 2, device="meta"), "meta device"),
        (nn.Linear(2, 2, dtype=torch.complex64), "complex64"),
        (nn.LazyLinear(3), "no shape yet"),
        (nn.Linear(1, 1, bias=False), "fragments is 4"),
    ],
)
def test_a_bad_model_is_reported_and_refused_in_one_line(model: nn.Module, problem: str) -> None:
    report = check(model)
    assert not report.ok
    assert problem in report.problems[0]
    assert "cannot train in a swarm yet" in str(report)
    assert not report.fragment_sizes
    assert not report.fingerprint
    with pytest.raises(ConfigError, match=problem) as caught:
        require(model)
    assert "\n" not in str(caught.value)


def test_all_problems_are_reported() -> None:
    assert len(check(nn.Linear(2, 2, device="meta")).problems) == 2
    with pytest.raises(ConfigError, match="and 1 more"):
        require(nn.Linear(2, 2, device="meta"))


def test_require_gives_the_report_of_a_good_model() -> None:
    assert require(nn.Linear(2, 2)) == check(nn.Linear(2, 2))


def test_a_notebook_gets_an_escaped_table() -> None:
    model = nn.Module()
    model.register_parameter("<b>&", nn.Parameter(torch.zeros(2), requires_grad=False))
    shown = check(model)._repr_html_()
    assert "&lt;b&gt;&amp;" in shown
    assert "<b>" not in shown
    assert shown.startswith("<table>")


def test_parameters_that_are_not_finite_are_a_problem_only_where_a_run_starts_from_them() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(2, 2, dtype=torch.float64)
    model = nn.Sequential(first, second)
    require_finite(model)
    with torch.no_grad():
        first.weight[1, 2] = torch.nan
        first.weight[0, 0] = -torch.inf
        second.bias[0] = 1e300  # finite, but exchanged as float32
    report = check(model, fragments=2)
    assert not report.ok
    assert [line.split(" values")[0] for line in report.problems] == [
        "0.weight: 2 of 6",
        "1.bias: 1 of 2",
    ]
    with pytest.raises(ConfigError, match=r"0\.weight: 2 of 6 .*and 1 more") as caught:
        require_finite(model)
    assert "\n" not in str(caught.value)
    assert require(model, fragments=2).ok


def test_frozen_parameters_and_those_without_values_need_not_be_finite() -> None:
    still = nn.Linear(3, 2)
    model = nn.Sequential(still, nn.Linear(2, 2, device="meta"))
    with torch.no_grad():
        still.weight.fill_(torch.nan)
    still.requires_grad_(requires_grad=False)
    require_finite(model)
    assert all("meta device" in line for line in check(model).problems)
